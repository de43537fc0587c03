"""Keys and values of the tokens that a model has seen, so that one more token costs one
position instead of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from sae_attr.lm.config import LMConfig


@struct.dataclass
class KV:
    """Keys `[l, b, k, c, s]` and values `[l, b, k, s, c]` of all layers: kv-heads k
    before channels c and slots s, in the order in which the attention products read
    them without turning them first.

    The loop over layers only reads it, and returns the new tokens' keys and values,
    which are written behind the loop, all layers at once. A loop that writes its layer
    as well as reading it has XLA copy the whole array, layer by layer.
    """

    k_lbkcs: jax.Array
    v_lbksc: jax.Array


@struct.dataclass
class Cache:
    """What `forward` has seen; the next tokens go to the slots from `used` on.

    Args:
      kv: keys, rotated, and values. With longrope they hold while a row stays as long
        as it was for it (see `outgrown`).
      pos_bs: position of the token in every slot.
      valid_bs: False where a slot holds padding, or nothing yet.
      used: slots that were written, int32: `[b]`, or `[]` where all rows have as many;
        a plain integer, and then the slots behind are not even read.
    """

    kv: KV
    pos_bs: jax.Array
    valid_bs: jax.Array
    used: jax.Array | int


def init_cache(cfg: LMConfig, *, rows: int, slots: int, dtype: Any) -> Cache:
    """Makes an empty cache.

    Args:
      rows: b.
      slots: tokens that a row may come to hold, padding included.
      dtype: of the weights, which keys and values have too.
    """
    heads = (cfg.n_layers, rows, cfg.n_kv_heads)
    k_lbkcs = jnp.zeros((*heads, cfg.head_dim, slots), dtype)
    kv = KV(k_lbkcs, jnp.zeros((*heads, slots, cfg.head_dim), dtype))
    return Cache(
        kv,
        jnp.zeros((rows, slots), jnp.int32),
        jnp.zeros((rows, slots), bool),
        0,
    )


def check_room(cfg: LMConfig, *, rows: int, slots: int, dtype: Any, mesh: Mesh) -> None:
    """Raises ValueError for a cache that is larger than the memory of its devices, with
    the numbers; where a device does not say how much it has, nothing is checked.

    Args:
      rows, slots: of the whole cache; rows lie over the mesh's `data` axis, kv-heads
        over `model` where that divides them.
    """
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    across = mesh.shape["data"]
    heads = mesh.shape["model"]
    if cfg.n_kv_heads % heads == 0:
        across *= heads
    shapes = jax.eval_shape(
        partial(init_cache, cfg, rows=rows, slots=slots, dtype=dtype)
    )
    size = sum([leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.kv)])
    if limit is not None and size // across > limit:
        raise ValueError(
            f"a cache of {rows} rows and {slots} tokens takes "
            f"{size / across / 2**30:.1f} GiB on each of {across} devices, which have "
            f"{limit / 2**30:.1f}; lower the batch size, max_new or the prompts' length"
        )


def with_room(cache: Cache, count: int) -> Cache:
    """Returns the cache with `count` empty slots more."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, count)
        return jnp.pad(x, widths)

    kv = KV(pad(cache.kv.k_lbkcs, 4), pad(cache.kv.v_lbksc, 3))
    pos_bs, valid_bs = pad(cache.pos_bs, 1), pad(cache.valid_bs, 1)
    return replace(cache, kv=kv, pos_bs=pos_bs, valid_bs=valid_bs)


def outgrown(cfg: LMConfig, length_b: jax.Array, *, slots: int) -> jax.Array | None:
    """Returns which rows, of these lengths, have just become too long for their cache,
    `[b]`; None if none ever does.

    longrope turns all tokens of a row by other angles once the row is longer than the
    original context. Every activation of the earlier tokens changes with that, so the
    row has to be read anew from its first token.
    """
    limits = {
        rope.original_len
        for rope in cfg.ropes
        if rope.kind == "longrope" and rope.original_len < slots
    }
    if not limits:
        return None
    return jnp.isin(length_b, jnp.asarray(sorted(limits)) + 1)


def enter(cache: Cache, pos_bt: jax.Array, valid_bt: jax.Array | None) -> Cache:
    """Returns the cache with positions and masks of new tokens; their keys and values
    follow when all layers ran (`store`).

    Raises:
      ValueError: more tokens or other rows than the cache has room for. (How full it is
        only its maker knows: slots beyond the last one do not exist, and a write there
        would fall on the last ones.)
    """
    (b, t), (rows, slots) = pos_bt.shape, cache.pos_bs.shape
    if b != rows or t > slots:
        raise ValueError(
            f"{b} rows of {t} tokens do not fit a cache of {rows} rows and {slots} "
            "slots; make it so large"
        )
    valid_bt = jnp.ones((b, t), bool) if valid_bt is None else valid_bt
    used_b = jnp.broadcast_to(cache.used, rows)
    put_row = partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    put = lambda old, new: jax.vmap(put_row)(old, new.astype(old.dtype), used_b)
    return replace(
        cache,
        pos_bs=put(cache.pos_bs, pos_bt),
        valid_bs=put(cache.valid_bs, valid_bt),
        used=cache.used + t,
    )


def past_slots(cache: Cache, count: int) -> int:
    """Returns how many slots, from the first on, may hold tokens before the last
    `count` that `enter` was given.
    """
    slots = cache.pos_bs.shape[1]
    return cache.used - count if isinstance(cache.used, int) else slots


def past_kv(cache: Cache) -> KV:
    """Returns the keys and values that tokens which have not entered may see."""
    slots = past_slots(cache, 0)
    return KV(cache.kv.k_lbkcs[..., :slots], cache.kv.v_lbksc[:, :, :, :slots])


def layer_kv(kv: KV, layer: Any) -> tuple[jax.Array, jax.Array]:
    """Returns one layer's keys `[b, k, c, s]` and values `[b, k, s, c]`."""
    k_bkcs, v_bksc = jax.tree.map(
        lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False),
        (kv.k_lbkcs, kv.v_lbksc),
    )
    return k_bkcs, v_bksc


def store(cache: Cache, new: Sequence[KV], first_layer: int) -> Cache:
    """Returns the cache with the keys and values of the tokens that `enter` was given
    last.

    Args:
      new: keys `[l, b, k, c, t]` and values `[l, b, k, t, c]`, of layers that follow
        one another.
      first_layer: the one that `new` begins with.
    """
    join = lambda old, *parts: jnp.concatenate(parts).astype(old.dtype)
    added = jax.tree.map(join, cache.kv, *new)
    first = cache.used - added.v_lbksc.shape[3]
    if jnp.ndim(first) == 0:
        return replace(cache, kv=_written(added, cache.kv, first_layer, 0, first))

    def row(b: jax.Array, kv: KV) -> KV:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=b, slice_size=1, axis=1)
        return _written(jax.tree.map(cut, added), kv, first_layer, b, first[b])

    # Slice by slice, in place: a scatter has XLA copy the whole cache on CPUs.
    rows = cache.pos_bs.shape[0]
    return replace(cache, kv=jax.lax.fori_loop(0, rows, row, cache.kv))


def _written(new: KV, kv: KV, layer: Any, row: Any, slot: Any) -> KV:
    """Returns `kv` with new keys and values from a layer, row and slot on."""
    put = jax.lax.dynamic_update_slice
    return KV(
        put(kv.k_lbkcs, new.k_lbkcs, (layer, row, 0, 0, slot)),
        put(kv.v_lbksc, new.v_lbksc, (layer, row, 0, slot, 0)),
    )
