"""The segmented forward pass: scan up to a site, that block inline with its taps, scan
on.

The backward pass runs only through the layers above the site, because nothing that is
differentiated enters the first scan; a stored prefix (`span`, `x_btd`) saves the lower
layers' forward pass too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sae_attr.hooks import Edit, Site
from sae_attr.lm.attention import (
    Context,
    context,
    layer_facts,
    positions,
)
from sae_attr.lm.block import Block, Norm, Tap, no_tap
from sae_attr.lm.cache import KV, Cache, enter, past_kv, store
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules, check_rules
from sae_attr.lm.mlp import wide
from sae_attr.lm.params import (
    Params,
    layer_variables,
    spans_of_one_kind,
    weights_dtype,
)
from sae_attr.lm.sites import check_span


@struct.dataclass
class Output:
    """`hidden_btd`: residual after the last block that ran, before the final norm;
    `acts`: one array per kept site.

    `cache`: the one that was given, with the new tokens in it.
    """

    hidden_btd: jax.Array
    acts: dict[Site, jax.Array]
    cache: Cache | None = None


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
      params: as `sae_attr.lm.params` describes them; those of `unstacked` run layer by
        layer instead of in a loop.
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
    edits = dict(edits or {})
    start, stop = span or (0, cfg.n_layers)
    sites = {*edits, *keep}
    entering = tokens_bt if x_btd is None else x_btd
    check_span(cfg, sites, (start, stop), entering)
    pos_bt = positions(cfg, entering, pos_bt, segment_bt, cache)
    if x_btd is None:
        assert tokens_bt is not None  # check_span
        x_btd = embed(params, tokens_bt, pos_bt, cfg=cfg)
    past = None
    if cache is not None:
        past = past_kv(cache)
        cache = enter(cache, pos_bt, valid_bt)
    ctx = context(cfg, pos_bt, valid_bt, segment_bt, cache)
    layers = _Layers(params, cfg, ctx, check_rules(rules), remat, unroll, past)

    acts: dict[Site, jax.Array] = {}
    taps = {}
    for layer in sorted({site.layer for site in sites}):
        taps[layer] = _tap(layer, edits, keep, acts, pos_bt)
    hidden_btd, new = layers.run(x_btd, start, stop, taps)
    if cache is not None and new:
        cache = store(cache, _behind(hidden_btd, new), start)
    return Output(hidden_btd, acts, cache)


def _behind(hidden_btd: jax.Array, new: list[KV]) -> list[KV]:
    """Returns new keys and values, in a row without a finite residual NaN as well.

    Such a row ends in any case. What matters is that they can be written only when all
    layers have read: XLA would else copy the cache to be safe, where the last layers
    are no loop, and drops barriers before it decides.
    """
    broken_b = jnp.isnan(hidden_btd[:, -1, 0])[:, None, None, None]
    return jax.tree.map(lambda x: jnp.where(broken_b, jnp.nan, x), new)


@dataclass(frozen=True)
class _Layers:
    """The blocks of one call of `forward`, with everything that does not change between
    them.
    """

    params: Params
    cfg: LMConfig
    ctx: Context
    rules: Rules
    remat: bool
    unroll: bool
    past: tuple[KV, ...] | None

    def run(
        self, x_btd: jax.Array, start: int, stop: int, taps: Mapping[int, Tap]
    ) -> tuple[jax.Array, list[KV]]:
        """Runs a span: up to each layer with a tap, that layer, and on. Returns the
        residual, and where there is a cache new keys and values of consecutive layers.
        """
        new: list[KV] = []
        if isinstance(self.params["blocks"], tuple):
            for layer in range(start, stop):
                x_btd = self.one(x_btd, layer, taps.get(layer, no_tap), new)
            return x_btd, new
        for layer, tap in taps.items():
            x_btd = self.scan(x_btd, start, layer, new)
            x_btd = self.one(x_btd, layer, tap, new)
            start = layer + 1
        return self.scan(x_btd, start, stop, new), new

    def block(
        self, x_btd: jax.Array, layer: Any, kind_of: int, tap: Tap = no_tap
    ) -> tuple[jax.Array, KV | None]:
        """Runs one layer, whose number may be traced; `kind_of` is a layer of the same
        kind. Returns its new keys and values too, where there is a cache.
        """
        cfg, params = self.cfg, self.params
        dense = kind_of in cfg.dense_layers
        block = Block(cfg, weights_dtype(params), self.rules, dense)
        variables = layer_variables(cfg, params, layer, kind_of)
        facts = layer_facts(cfg, layer)
        return block.apply(variables, x_btd, self.ctx, facts, tap, self.past)  # type: ignore[return-value]

    def one(self, x_btd: jax.Array, layer: int, tap: Tap, new: list[KV]) -> jax.Array:
        """Runs the layer of a site; adds its keys and values to `new`
        where there is a cache.
        """
        x_btd, of_layer = self.block(x_btd, layer, kind_of=layer, tap=tap)
        if of_layer is not None:
            new.append(of_layer)
        return x_btd

    def scan(self, x_btd: jax.Array, start: int, stop: int, new: list[KV]) -> jax.Array:
        """Runs the layers of a span that nobody reads or changes; adds their keys and
        values to `new` where there is a cache.
        """
        # Products are kept, the rest is cheap to repeat: plain reverse mode would also
        # keep a copy of every sliced weight.
        policies = jax.checkpoint_policies
        policy = policies.nothing_saveable if self.remat else policies.dots_saveable
        for first, end in spans_of_one_kind(self.cfg, start, stop):
            # Inside a loop nothing can be merged, so CSE need not be prevented.
            run = jax.checkpoint(
                partial(self.block, kind_of=first),
                policy=policy,
                prevent_cse=self.unroll,
            )
            layers = jnp.arange(first, end)
            x_btd, of_layers = jax.lax.scan(run, x_btd, layers, unroll=self.unroll)
            if of_layers is not None:
                for i in range(end - first):
                    new.append(jax.tree.map(lambda x, i=i: x[i], of_layers))
        return x_btd


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


def embed(
    params: Params, tokens_bt: jax.Array, pos_bt: jax.Array, *, cfg: LMConfig
) -> jax.Array:
    """Looks up token (and learned position) embeddings `[b, t, d]`, in the residual
    stream's dtype.
    """
    x_btd = params["embed"]["table"][tokens_bt].astype(cfg.resid_dtype)
    if cfg.embed_scale != 1.0:
        # Rounded to the weights' dtype first, as the models were trained.
        scale = jnp.asarray(cfg.embed_scale, weights_dtype(params))
        x_btd = x_btd * scale.astype(x_btd.dtype)
    if cfg.learned_pos:
        x_btd = x_btd + params["pos"]["table"][pos_bt].astype(cfg.resid_dtype)
    return x_btd


def logits(
    params: Params, hidden: jax.Array, *, cfg: LMConfig, rules: Rules = PLAIN
) -> jax.Array:
    """Applies final norm, unembedding and soft-cap to residuals `[..., d]`; returns
    `[..., v]` in float32 (float64 if hidden is).
    """
    dtype = weights_dtype(params)
    normed = final_norm(params, hidden, cfg=cfg, dtype=dtype, rules=rules)
    out = wide(jnp.einsum("...d,vd->...v", normed, output_table(params, cfg=cfg)))
    if cfg.final_softcap:
        return cfg.final_softcap * jnp.tanh(out / cfg.final_softcap)
    return out


def final_norm(
    params: Params,
    hidden: jax.Array,
    *,
    cfg: LMConfig,
    dtype: Any,
    rules: Rules = PLAIN,
) -> jax.Array:
    """Returns residuals `[..., d]` after the final norm, in `dtype`."""
    norm = Norm(cfg, dtype, check_rules(rules))
    normed = norm.apply({"params": params["final_norm"]}, hidden)
    return jnp.asarray(normed)


@partial(jax.jit, static_argnames="cfg")
def unembedding(params: Params, *, cfg: LMConfig) -> jax.Array:
    """Returns unembedding vectors as rows `[v, d]`, with the final norm's gain folded
    in.
    """
    scale_d = wide(params["final_norm"]["scale"]) + (1 if cfg.norm_plus_one else 0)
    return wide(output_table(params, cfg=cfg)) * scale_d


def output_table(params: Params, *, cfg: LMConfig) -> jax.Array:
    """Returns the rows `[v, d]` that make logits of what the final norm gives."""
    return params["embed" if cfg.tied_head else "head"]["table"]
