"""The segmented forward pass: scan up to a site, that block inline with its taps, scan
on (design: sites and edits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.hooks import Edit, Site, parse_site
from sae_attr.lm.block import Block, Context, LayerFacts, Norm, Tap, no_tap
from sae_attr.lm.cache import KV, Cache, enter
from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.lrp import PLAIN, Rules, check_rules
from sae_attr.lm.mlp import wide

Params = dict[str, Any]
Carry = tuple[jax.Array, KV | None]  # residual stream, cache


@struct.dataclass
class Output:
    """`hidden_btd`: residual after the last block that ran, before the final norm;
    `acts`: one array per kept site.

    `cache`: the one that was given, with the new tokens in it.
    """

    hidden_btd: jax.Array
    acts: dict[Site, jax.Array]
    cache: Cache | None = None


def check_site(cfg: LMConfig, site: Site) -> None:
    """Raises ValueError if the model has no such site."""
    if site.layer >= cfg.n_layers:
        raise ValueError(
            f"site {site} lies outside the model, whose layers are "
            f"0..{cfg.n_layers - 1}; choose one of those"
        )
    if site.point == "resid_mid" and cfg.parallel_residual:
        raise ValueError(
            f"site {site}: a {cfg.family} block adds attention and MLP in parallel and "
            "has no resid_mid"
        )
    if site.point == "mlp_hidden" and cfg.n_experts:
        raise ValueError(
            f"site {site}: the hidden units of a {cfg.family} model belong to "
            f"{cfg.n_experts} experts and only some run "
            "for a token; choose mlp_in or mlp_out"
        )


def site_named(cfg: LMConfig, name: str) -> Site:
    """Reads a site's name for this model, where every activation has one name.

    Raises:
      ValueError: no name of a site (`hooks.parse_site`), or none of this model
        (`check_site`).
    """
    site = parse_site(name, norms_behind=cfg.post_norm)
    check_site(cfg, site)
    return site


def norm_gain(params: Params, site: Site, *, cfg: LMConfig) -> jax.Array | None:
    """Gain `[d]`, at least float32, of the RMSNorm whose output the site is; None where
    it is not the output of one.
    """
    if site.point != "mlp_in" or cfg.norm != "rms":
        return None
    gain_d = wide(params["blocks"]["mlp_norm"]["scale"][site.layer])
    return 1 + gain_d if cfg.norm_plus_one else gain_d


def _params_dtype(params: Params) -> Any:
    return params["embed"]["table"].dtype


def embed(
    params: Params, tokens_bt: jax.Array, pos_bt: jax.Array, *, cfg: LMConfig
) -> jax.Array:
    """Token (and learned position) embeddings `[b, t, d]` in the residual stream's
    dtype.
    """
    x_btd = params["embed"]["table"][tokens_bt].astype(cfg.resid_dtype)
    if cfg.embed_scale != 1.0:
        x_btd = x_btd * jnp.asarray(
            cfg.embed_scale, params["embed"]["table"].dtype
        ).astype(x_btd.dtype)
    if cfg.learned_pos:
        x_btd = x_btd + params["pos"]["table"][pos_bt].astype(cfg.resid_dtype)
    return x_btd


def _rotations(
    cfg: LMConfig, pos_bt: jax.Array, length_b: jax.Array
) -> tuple[jax.Array, jax.Array] | None:
    """cos and sin `[ropes, b, t, m]` in float32 (float64 under x64); longrope looks at
    each row's own length.
    """
    if not cfg.ropes:
        return None
    if len({rope.dim for rope in cfg.ropes}) > 1:
        raise ValueError(
            f"layers of this {cfg.family} model rotate different numbers of channels; "
            "not implemented"
        )
    dtype = jnp.promote_types(cfg.resid_dtype, jnp.float32)
    tables = []
    for rope in cfg.ropes:
        inv = jnp.asarray(rope.inv_freq(), dtype)[None, None]
        if rope.kind == "longrope":
            long = jnp.asarray(rope.inv_freq(long=True), dtype)[None, None]
            inv = jnp.where((length_b > rope.original_len)[:, None, None], long, inv)
        angles_btm = pos_bt[..., None].astype(dtype) * inv
        tables.append(
            (
                jnp.cos(angles_btm) * rope.attention_factor,
                jnp.sin(angles_btm) * rope.attention_factor,
            )
        )
    return jnp.stack([cos for cos, _ in tables]), jnp.stack([sin for _, sin in tables])


def _lengths(pos_bt: jax.Array, valid_bt: jax.Array | None) -> jax.Array:
    """Length `[b]` of each row by its largest position, padding apart."""
    return (
        jnp.max(pos_bt if valid_bt is None else jnp.where(valid_bt, pos_bt, 0), axis=1)
        + 1
    )


def _context(
    cfg: LMConfig,
    pos_bt: jax.Array,
    valid_bt: jax.Array | None,
    segment_bt: jax.Array | None,
) -> Context:
    gap_bts = pos_bt[:, :, None] - pos_bt[:, None, :]
    t = pos_bt.shape[1]
    mask_bts = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), gap_bts.shape)
    if valid_bt is not None:
        mask_bts = mask_bts & valid_bt[:, None, :]
    if segment_bt is not None:
        mask_bts = mask_bts & (segment_bt[:, :, None] == segment_bt[:, None, :])
    rotation = _rotations(cfg, pos_bt, _lengths(pos_bt, valid_bt))
    return Context(mask_bts, gap_bts if cfg.has_windows else None, rotation)


def _cached_context(cfg: LMConfig, pos_bt: jax.Array, cache: Cache) -> Context:
    """The context of new tokens that `cache` knows of already: its slots are the keys,
    their order is that of time.
    """
    t, slots = pos_bt.shape[1], cache.pos_bs.shape[1]
    slot = cache.used - t
    past_ts = jnp.arange(slots) <= slot + jnp.arange(t)[:, None]
    gap_bts = pos_bt[:, :, None] - cache.pos_bs[:, None, :]
    rotation = _rotations(cfg, pos_bt, _lengths(cache.pos_bs, cache.valid_bs))
    mask_bts = past_ts & cache.valid_bs[:, None, :]
    return Context(mask_bts, gap_bts if cfg.has_windows else None, rotation, slot)


def _facts(cfg: LMConfig, layer: Any) -> LayerFacts:
    ropes = cfg.rope_of_layer or (0,) * cfg.n_layers
    windows = cfg.window_of_layer or (NO_WINDOW,) * cfg.n_layers
    of_layer = lambda values: jnp.asarray(np.array(values, np.int32))[layer]
    return LayerFacts(layer, of_layer(windows), of_layer(ropes))


def _layer(blocks: Params, layer: Any) -> Params:
    """One layer's parameters, sliced out of the stack inside the loop: a slice outside
    it would copy whole segments.
    """
    return jax.tree.map(
        lambda w: jax.lax.dynamic_index_in_dim(w, layer, keepdims=False), blocks
    )


def _layer_of(cfg: LMConfig, blocks: Params, layer: Any, first: int) -> Params:
    """`_layer` where layers may differ in kind: a leaf that only some of them have
    counts those alone.

    `first` is a layer of the same kind as `layer`, with none of another kind between
    them.
    """
    out: Params = {}
    for name, leaves in blocks.items():
        held = cfg.layers_of(name)
        if first in held:
            out[name] = _layer(leaves, layer - first + held.index(first))
    return out


def _same_kind(cfg: LMConfig, start: int, stop: int) -> list[tuple[int, int]]:
    """The spans of neighbouring layers that share one scanned body."""
    dense = set(cfg.dense_layers)
    starts = [
        i for i in range(start, stop) if i == start or (i in dense) != (i - 1 in dense)
    ]
    return list(zip(starts, [*starts[1:], stop]))


def forward(
    params: Params,
    tokens_bt: jax.Array | None,
    *,
    cfg: LMConfig,
    pos_bt: jax.Array | None = None,
    valid_bt: jax.Array | None = None,
    segment_bt: jax.Array | None = None,
    cache: Cache | None = None,
    edits: Mapping[Site, Edit] | None = None,
    keep: tuple[Site, ...] = (),
    span: tuple[int, int] | None = None,
    x_btd: jax.Array | None = None,
    remat: bool = False,
    unroll: bool = False,
    rules: Rules = PLAIN,
) -> Output:
    """Runs the blocks of `span` on tokens, or on a stored residual stream, with edits
    applied and sites kept.

    Args:
      params: `{embed, pos?, blocks, final_norm, head?, lora?}`; every leaf of `blocks`
        and of `lora`, an adapter that was kept apart, has the layers as its first axis.
      tokens_bt: token ids `[b, t]`; may be None if `x_btd` is given.
      pos_bt: positions; default 0, 1, ... along the row (right padding).
      valid_bt: False where a token is padding and may not be attended to.
      segment_bt: tokens of different segments do not see each other (packed rows).
      cache: what came before (see `lm.cache`); the tokens are new ones, which follow it
        in the next slots and see it. Give `pos_bt` then: positions of the row, whatever
        the slots. Edits and kept sites see the new tokens alone.
      edits: site -> edit, applied where the activation arises; kept activations are the
        edited ones.
      keep: sites whose activations are returned.
      span: half-open range of layers; default all. With `x_btd`, the residual that
        enters layer `span[0]`: a prefix that was run once serves many suffixes.
      remat: recompute each scanned block whole in the backward pass; otherwise its
        matrix products are stored.
      unroll: unroll the scans (operation counts; otherwise only slower to compile).
      rules: backward rules, a set of `sae_attr.lm.lrp.RULES`; values stay the same to
        the bit.

    Returns:
      `Output`; logits come from `logits(params, hidden, cfg=cfg)`.

    Raises:
      ValueError: a site outside the model or outside the span; a row longer than
        learned positions reach; an unknown rule; a cache without positions, with
        segments, or too small.
    """
    edits, (start, stop) = dict(edits or {}), span or (0, cfg.n_layers)
    sites = {*edits, *keep}
    _check_span(cfg, sites, (start, stop), tokens_bt if x_btd is None else x_btd)
    shape = (tokens_bt if x_btd is None else x_btd).shape[:2]  # type: ignore[union-attr]
    if cache is not None and (pos_bt is None or segment_bt is not None):
        raise ValueError(
            "forward with a cache needs pos_bt, and has no segments; pass positions of "
            "the rows alone"
        )
    _check_length(cfg, shape[1] if cache is None else cache.pos_bs.shape[1])
    pos_bt = _positions(pos_bt, shape, cfg)
    if x_btd is None:
        assert tokens_bt is not None  # _check_span
        x_btd = embed(params, tokens_bt, pos_bt, cfg=cfg)
    if cache is None:
        ctx = _context(cfg, pos_bt, valid_bt, segment_bt)
    else:
        cache = enter(cache, pos_bt, valid_bt)
        ctx = _cached_context(cfg, pos_bt, cache)
    check_rules(rules)

    def run(carry: Carry, layer: Any, first: int, tap: Tap = no_tap) -> Carry:
        block = Block(cfg, _params_dtype(params), rules, first in cfg.dense_layers)
        variables = {"params": _layer_of(cfg, params["blocks"], layer, first)}
        if "lora" in params:
            variables["lora"] = _layer(params["lora"], layer)
        return block.apply(variables, carry[0], ctx, _facts(cfg, layer), tap, carry[1])  # type: ignore[return-value]

    # Products are kept, the rest is cheap to repeat: plain reverse mode would also keep
    #   a copy of every sliced weight.
    policy = (
        jax.checkpoint_policies.nothing_saveable
        if remat
        else jax.checkpoint_policies.dots_saveable
    )
    # Inside a loop nothing can be merged.
    body = lambda first: jax.checkpoint(
        partial(run, first=first), policy=policy, prevent_cse=unroll
    )
    acts: dict[Site, jax.Array] = {}
    carry = (x_btd, None if cache is None else cache.kv)
    for layer in [*sorted({site.layer for site in sites}), stop]:
        for first, end in _same_kind(cfg, start, layer):
            step = body(first)
            carry, _ = jax.lax.scan(
                lambda c, i, f=step: (f(c, i), None),
                carry,
                jnp.arange(first, end),
                unroll=unroll,
            )
        if layer < stop:
            carry = run(carry, layer, layer, _tap(layer, edits, keep, acts, pos_bt))
        start = layer + 1
    return Output(
        carry[0], acts, None if cache is None else replace(cache, kv=carry[1])
    )


def _check_span(
    cfg: LMConfig, sites: set[Site], span: tuple[int, int], entering: jax.Array | None
) -> None:
    """Raises ValueError for sites that this call does not reach, or a start in the
    middle without its residual.
    """
    start, stop = span
    for site in sites:
        check_site(cfg, site)
        if not start <= site.layer < stop:
            raise ValueError(
                f"site {site} lies outside the layers {start}..{stop - 1} that this "
                "call runs"
            )
    if entering is None or (start and entering.ndim < 3):
        raise ValueError(
            f"a span that starts at layer {start} needs x_btd, the residual that "
            "enters that layer"
        )


def _tap(
    layer: int,
    edits: Mapping[Site, Edit],
    keep: tuple[Site, ...],
    acts: dict[Site, jax.Array],
    pos_bt: jax.Array,
) -> Tap:
    """The tap of one layer: applies its edits, and puts what is kept into `acts` while
    the block is traced.
    """

    def tap(point: str, x: jax.Array) -> jax.Array:
        site = Site(layer, point)
        if site in edits:
            x = edits[site](x, pos_bt).astype(x.dtype)
        if site in keep:
            acts[site] = x
        return x

    return tap


def _check_length(cfg: LMConfig, length: int) -> None:
    """Raises ValueError for rows, or caches, beyond the trained length of a rope whose
    angles change there.
    """
    trained = min(
        (rope.original_len for rope in cfg.ropes if rope.kind == "dynamic"),
        default=length,
    )
    if length > trained:
        raise ValueError(
            f"rows of {length} tokens are longer than the {trained} up to which rope "
            "type 'dynamic' is implemented; shorten "
            "them"
        )


def _positions(
    pos_bt: jax.Array | None, shape: tuple[int, ...], cfg: LMConfig
) -> jax.Array:
    if cfg.learned_pos and shape[1] > cfg.max_len:
        raise ValueError(
            f"rows of {shape[1]} tokens are longer than the {cfg.max_len} learned "
            "positions of the model"
        )
    return (
        jnp.broadcast_to(jnp.arange(shape[1]), shape[:2]) if pos_bt is None else pos_bt
    )


def logits(
    params: Params, hidden: jax.Array, *, cfg: LMConfig, rules: Rules = PLAIN
) -> jax.Array:
    """Final norm, unembedding and soft-cap of residuals `[..., d]`: `[..., v]` in
    float32 (float64 if hidden is).
    """
    dtype = _params_dtype(params)
    normed = Norm(cfg, dtype, check_rules(rules)).apply(
        {"params": params["final_norm"]}, hidden
    )
    out = wide(jnp.einsum("...d,vd->...v", normed, _head(params, cfg)))
    return (
        cfg.final_softcap * jnp.tanh(out / cfg.final_softcap)
        if cfg.final_softcap
        else out
    )


def unembedding(params: Params, *, cfg: LMConfig) -> jax.Array:
    """Unembedding vectors as rows `[v, d]`, with the final norm's gain folded in."""
    scale_d = wide(params["final_norm"]["scale"]) + (1 if cfg.norm_plus_one else 0)
    return wide(_head(params, cfg)) * scale_d


def _head(params: Params, cfg: LMConfig) -> jax.Array:
    return params["embed" if cfg.tied_head else "head"]["table"]


def init_params(cfg: LMConfig, key: jax.Array, dtype: str = "float32") -> Params:
    """Random parameters in the layout that `forward` reads: embeddings N(0, 0.02),
    Linen's defaults in the blocks.
    """
    keys = jax.random.split(key, cfg.n_layers + 3)
    x_btd = jnp.zeros((1, 2, cfg.d_model), cfg.resid_dtype)
    ctx = _context(cfg, jnp.arange(2)[None], None, None)
    blocks = jax.vmap(
        lambda k: Block(cfg).init(k, x_btd, ctx, _facts(cfg, 0))["params"]
    )(keys[3:])
    if cfg.dense_layers:
        dense = jax.vmap(
            lambda k: Block(cfg, dense=True).init(k, x_btd, ctx, _facts(cfg, 0))[
                "params"
            ]
        )(keys[3:])
        blocks = {**dense, **blocks}
        pick = lambda name: jax.tree.map(
            lambda w: w[np.array(cfg.layers_of(name))], blocks[name]
        )
        blocks = {name: pick(name) for name in blocks}
    params: Params = {
        "embed": {"table": 0.02 * jax.random.normal(keys[0], (cfg.vocab, cfg.d_model))},
        "blocks": blocks,
        "final_norm": Norm(cfg, jnp.float32).init(keys[1], x_btd)["params"],
    }
    if cfg.learned_pos:
        params["pos"] = {
            "table": 0.02 * jax.random.normal(keys[1], (cfg.max_len, cfg.d_model))
        }
    if not cfg.tied_head:
        params["head"] = {
            "table": 0.02 * jax.random.normal(keys[2], (cfg.vocab, cfg.d_model))
        }
    return jax.tree.map(lambda w: w.astype(dtype), params)
