"""Attention masks, rotary positions, and attention itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.lm.cache import Cache, past_slots
from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.lrp import hold
from sae_attr.lm.mlp import wide


@struct.dataclass
class Context:
    """Holds what all blocks share beside their input: who may attend to whom, and the
    rotations of every rope.

    `mask_bts` is causal and excludes padding and other segments; `gap_bts` is query
    position minus key position and is present only if some layer has a window;
    `rotation` holds cos and sin, `[r, b, t, m]`, one table per rope r. With a cache the
    keys s are its slots and, behind them, the new tokens.
    """

    mask_bts: jax.Array
    gap_bts: jax.Array | None
    rotation: tuple[jax.Array, jax.Array] | None


@struct.dataclass
class LayerFacts:
    """The facts that differ between layers and ride the scan: its number, window in
    tokens and index of the rope.
    """

    layer: Any
    window: jax.Array
    rope: jax.Array


# ---- masks and rotations ---------------------------------------------------------------


def positions(
    cfg: LMConfig,
    entering: Any,
    pos_bt: jax.Array | None,
    segment_bt: jax.Array | None,
    cache: Cache | None,
) -> jax.Array:
    """Returns the position of every token `[b, t]`: those that were given, else 0, 1,
    ... along the row.

    Args:
      entering: tokens or residuals, for their first two axes.

    Raises:
      ValueError: rows, or a cache, longer than the model is implemented for; a cache
        without positions, or with segments.
    """
    if cache is not None and (pos_bt is None or segment_bt is not None):
        raise ValueError(
            "forward with a cache needs pos_bt, and has no segments; pass positions of "
            "the rows alone"
        )
    b, t = entering.shape[:2]
    _check_length(cfg, t if cache is None else cache.pos_bs.shape[1])
    if cfg.learned_pos and t > cfg.max_len:
        raise ValueError(
            f"rows of {t} tokens are longer than the {cfg.max_len} learned positions "
            "of the model"
        )
    return jnp.broadcast_to(jnp.arange(t), (b, t)) if pos_bt is None else pos_bt


def longest_row(cfg: LMConfig) -> int:
    """Returns how many tokens a row may have without a change of the model's angles or
    positions beyond those that it was trained with.
    """
    trained = [cfg.max_len]
    for rope in cfg.ropes:
        if rope.kind in ("dynamic", "longrope"):
            trained.append(rope.original_len)
    return min(trained)


def _check_length(cfg: LMConfig, length: int) -> None:
    """Raises ValueError for rows, or caches, beyond the trained length of a rope whose
    angles change there.
    """
    dynamic = [rope.original_len for rope in cfg.ropes if rope.kind == "dynamic"]
    trained = min(dynamic, default=length)
    if length > trained:
        raise ValueError(
            f"rows of {length} tokens are longer than the {trained} up to which rope "
            "type 'dynamic' is implemented; shorten them"
        )


def layer_facts(cfg: LMConfig, layer: Any) -> LayerFacts:
    """Returns the facts of one layer, whose number may be traced."""
    ropes = cfg.rope_of_layer or (0,) * cfg.n_layers
    windows = cfg.window_of_layer or (NO_WINDOW,) * cfg.n_layers
    of_layer = lambda values: jnp.asarray(np.array(values, np.int32))[layer]
    return LayerFacts(layer, of_layer(windows), of_layer(ropes))


def context(
    cfg: LMConfig,
    pos_bt: jax.Array,
    valid_bt: jax.Array | None,
    segment_bt: jax.Array | None,
    cache: Cache | None,
) -> Context:
    """Returns the context of whole rows or, with a cache that has entered them, of new
    tokens.
    """
    if cache is None:
        return whole_rows(cfg, pos_bt, valid_bt, segment_bt)
    return after_cache(cfg, pos_bt, cache)


def whole_rows(
    cfg: LMConfig,
    pos_bt: jax.Array,
    valid_bt: jax.Array | None,
    segment_bt: jax.Array | None,
) -> Context:
    """Returns the context of rows that are there from their first token to their last."""
    gap_bts = pos_bt[:, :, None] - pos_bt[:, None, :]
    t = pos_bt.shape[1]
    mask_bts = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), gap_bts.shape)
    if valid_bt is not None:
        mask_bts = mask_bts & valid_bt[:, None, :]
    if segment_bt is not None:
        mask_bts = mask_bts & (segment_bt[:, :, None] == segment_bt[:, None, :])
    rotation = _rotations(cfg, pos_bt, _lengths(pos_bt, valid_bt))
    return Context(mask_bts, gap_bts if cfg.has_windows else None, rotation)


def after_cache(cfg: LMConfig, pos_bt: jax.Array, cache: Cache) -> Context:
    """Returns the context of new tokens that `cache` knows of already: the order of its
    slots is that of time.
    """
    b, t = pos_bt.shape
    first_b, slots = jnp.broadcast_to(cache.used - t, b), past_slots(cache, t)
    # The new tokens' own slots are not filled yet: their keys come behind the slots.
    past_bs = (jnp.arange(slots) < first_b[:, None]) & cache.valid_bs[:, :slots]
    past_bts = jnp.broadcast_to(past_bs[:, None, :], (b, t, slots))
    cut = partial(jax.lax.dynamic_slice_in_dim, slice_size=t)
    new_bt = jax.vmap(cut)(cache.valid_bs, first_b)
    new_btt = jnp.tril(jnp.ones((t, t), bool)) & new_bt[:, None, :]
    mask_bts = jnp.concatenate([past_bts, new_btt], axis=2)
    key_pos_bs = jnp.concatenate([cache.pos_bs[:, :slots], pos_bt], axis=1)
    gap_bts = pos_bt[:, :, None] - key_pos_bs[:, None, :]
    rotation = _rotations(cfg, pos_bt, _lengths(cache.pos_bs, cache.valid_bs))
    return Context(mask_bts, gap_bts if cfg.has_windows else None, rotation)


def _lengths(pos_bt: jax.Array, valid_bt: jax.Array | None) -> jax.Array:
    """Length `[b]` of each row by its largest position, padding apart."""
    real_bt = pos_bt if valid_bt is None else jnp.where(valid_bt, pos_bt, 0)
    return jnp.max(real_bt, axis=1) + 1


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
    cosines, sines = [], []
    for rope in cfg.ropes:
        inv = jnp.asarray(rope.inv_freq(), dtype)[None, None]
        if rope.kind == "longrope":
            long = jnp.asarray(rope.inv_freq(long=True), dtype)[None, None]
            inv = jnp.where((length_b > rope.original_len)[:, None, None], long, inv)
        angles_btm = pos_bt[..., None].astype(dtype) * inv
        cosines.append(jnp.cos(angles_btm) * rope.attention_factor)
        sines.append(jnp.sin(angles_btm) * rope.attention_factor)
    return jnp.stack(cosines), jnp.stack(sines)


# ---- on queries, keys and values -------------------------------------------------------


def rotate(x_bthc: jax.Array, cos_btm: jax.Array, sin_btm: jax.Array) -> jax.Array:
    """Rotates the first 2m channels of every head, first half against second half (Su
    et al. 2021, Hugging Face order).
    """
    m = cos_btm.shape[-1]
    first, second, rest = x_bthc[..., :m], x_bthc[..., m : 2 * m], x_bthc[..., 2 * m :]
    cos = cos_btm[:, :, None].astype(x_bthc.dtype)
    sin = sin_btm[:, :, None].astype(x_bthc.dtype)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
    )


Parts = tuple[jax.Array, ...]
"""Keys `[b, k, c, s]` or values `[b, k, s, c]`: of a cache and of new tokens, or of
whole rows."""


def attend(
    q_bthc: jax.Array,
    keys: Parts,
    values: Parts,
    mask_bts: jax.Array,
    softcap: float,
    sinks_h: jax.Array | None = None,
    *,
    fixed_pattern: bool = False,
) -> jax.Array:
    """Computes grouped-query attention, softmax in float32; returns `[b, t, h, c]`.

    Args:
      keys, values: in parts, which are read where they lie; s of the mask is their sum.
      sinks_h: one more logit per head, which takes its share of the softmax and adds
        nothing.
      fixed_pattern: the probabilities are constants, so that gradients flow through v
        alone.
    """
    # The products have their batch axes first and the softmax is normalised after the
    # second one, on c numbers a query instead of s: on two CPU cores a tenth less time
    # for a whole gradient of GPT-2's shape at 256 tokens.
    b, t, h, c = q_bthc.shape
    kv_heads = keys[0].shape[1]
    q_bkgtc = jnp.moveaxis(q_bthc.reshape(b, t, kv_heads, -1, c), 1, 3)
    scores = [
        hold(part, fixed_pattern) for part in _scores(q_bkgtc, keys, mask_bts, softcap)
    ]
    tops = [jnp.max(part, axis=-1, keepdims=True) for part in scores]
    if sinks_h is not None:
        sinks_kg11 = hold(wide(sinks_h), fixed_pattern)
        sinks_kg11 = sinks_kg11.reshape(kv_heads, -1, 1, 1)
        tops.append(sinks_kg11)
    top = jax.lax.stop_gradient(reduce(jnp.maximum, tops))
    powers = [jnp.exp(part - top) for part in scores]
    totals = [jnp.sum(part, axis=-1, keepdims=True) for part in powers]
    if sinks_h is not None:
        totals.append(jnp.exp(sinks_kg11 - top))
    dtype = values[0].dtype
    sums = []
    for part, v_bksc in zip(powers, values, strict=True):
        sums.append(jnp.einsum("bkgts,bksc->bkgtc", part.astype(dtype), v_bksc))
    z_bkgtc = (reduce(jnp.add, sums) / reduce(jnp.add, totals)).astype(dtype)
    return jnp.moveaxis(z_bkgtc, 3, 1).reshape(b, t, h, c)


def _scores(
    q_bkgtc: jax.Array, keys: Parts, mask_bts: jax.Array, softcap: float
) -> Iterator[jax.Array]:
    """Scores of the queries with each part of the keys, `[b, k, g, t, s]`, as low as
    they can be where the mask is False.
    """
    bias_bts = jnp.where(mask_bts, 0, jnp.finfo(wide(q_bkgtc).dtype).min)
    start = 0
    for k_bkcs in keys:
        stop = start + k_bkcs.shape[3]
        part = wide(jnp.einsum("bkgtc,bkcs->bkgts", q_bkgtc, k_bkcs))
        if softcap:
            part = softcap * jnp.tanh(part / softcap)
        yield part + bias_bts[:, None, None, :, start:stop]
        start = stop
