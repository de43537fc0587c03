"""Keys and values of the tokens that a model has seen, so that one more token costs one
position instead of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from sae_attr.device_memory import device_memory
from sae_attr.lm.config import LMConfig

T = TypeVar("T")


@struct.dataclass
class KV:
    """Keys `[b, k, c, s]` and values `[b, k, s, c]` of one layer: kv-heads k before
    channels c and slots s, in the order in which the attention products read them
    without turning them first.
    """

    k_bkcs: jax.Array
    v_bksc: jax.Array


@struct.dataclass
class Cache:
    """Holds what `forward` has seen; the next tokens go to the slots from `used` on.

    Args:
      kv: keys, rotated, and values of every layer, each layer's arrays by themselves: a
        layer's part of one array for all would be copied out of it before attention
        reads it. With longrope they hold while a row stays as long as it was for it
        (see `outgrown`).
      pos_bs: position of the token in every slot.
      valid_bs: False where a slot holds padding, or nothing yet.
      used: slots that were written, int32: `[b]`, or `[]` where all rows have as many;
        a plain integer, and then the slots behind are not even read.
    """

    kv: tuple[KV, ...]
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
    heads = rows, cfg.n_kv_heads

    def layer() -> KV:
        k_bkcs = jnp.zeros((*heads, cfg.head_dim, slots), dtype)
        return KV(k_bkcs, jnp.zeros((*heads, slots, cfg.head_dim), dtype))

    return Cache(
        tuple([layer() for _ in range(cfg.n_layers)]),
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
    limit = device_memory(mesh)
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

    kv = tuple([KV(pad(one.k_bkcs, 3), pad(one.v_bksc, 2)) for one in cache.kv])
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


def past_kv(cache: Cache) -> tuple[KV, ...]:
    """Returns the keys and values that tokens which have not entered may see."""
    slots = past_slots(cache, 0)
    cut = lambda one: KV(one.k_bkcs[..., :slots], one.v_bksc[:, :, :slots])
    return tuple(map(cut, cache.kv))


def on_layer(kv: tuple[KV, ...], layer: Any, use: Callable[[KV], T]) -> T:
    """Returns `use` of one layer's keys and values, which it reads where they lie.

    Args:
      layer: its number; where it is traced, in a loop over layers, each layer has a
        branch of its own: to pick the arrays first would copy them.
    """
    if isinstance(layer, int):
        return use(kv[layer])
    branches = [partial(use, one) for one in kv]
    return jax.lax.switch(layer, branches)


def store(cache: Cache, new: Sequence[KV], first_layer: int) -> Cache:
    """Returns the cache with the keys and values of the tokens that `enter` was given
    last.

    Args:
      new: keys `[b, k, c, t]` and values `[b, k, t, c]` of layers that follow one
        another.
      first_layer: the one that `new` begins with.
    """
    behind = first_layer + len(new)
    old = cache.kv[first_layer:behind]
    added = jax.tree.map(lambda x, old: x.astype(old.dtype), tuple(new), old)
    first = jnp.asarray(cache.used - new[0].v_bksc.shape[2])
    if first.ndim == 0:
        written = _written(added, old, 0, first)
    else:

        def row(b: jax.Array, kv: tuple[KV, ...]) -> tuple[KV, ...]:
            cut = partial(jax.lax.dynamic_slice_in_dim, start_index=b, slice_size=1)
            return _written(jax.tree.map(cut, added), kv, b, first[b])

        # Slice by slice, in place: a scatter has XLA copy the whole cache on CPUs.
        rows = cache.pos_bs.shape[0]
        written = jax.lax.fori_loop(0, rows, row, old)
    return replace(cache, kv=(*cache.kv[:first_layer], *written, *cache.kv[behind:]))


def _written(
    new: tuple[KV, ...], kv: tuple[KV, ...], row: Any, slot: Any
) -> tuple[KV, ...]:
    """Returns `kv` with new keys and values from a row and slot on."""
    put = jax.lax.dynamic_update_slice

    def one(new: KV, old: KV) -> KV:
        return KV(
            put(old.k_bkcs, new.k_bkcs, (row, 0, 0, slot)),
            put(old.v_bksc, new.v_bksc, (row, 0, slot, 0)),
        )

    return tuple(map(one, new, kv))
