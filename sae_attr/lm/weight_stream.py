"""Leaves of the parameter tree streamed from memory-mapped files to their devices, a
piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_layouts import source_of
from sae_attr.lm.leaf_places import places
from sae_attr.lm.peft_load import Adapter, Factors

# Weights are streamed in pieces of about this size; larger ones were no faster.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """A part of a leaf that is small enough for the host: the same cut out of every
    device's shard.

    Args:
      view: the file's tensor as the leaf takes it, a layer of a stacked leaf as `[1,
        ...]`, an expert's as `[1, 1, ...]`.
      start: first element in `view`, within a shard.
      size: elements of one shard, per axis.
      shard: shape of a device's shard of `view`.
      at: where it goes in a shard of the leaf.
      factors: an adapter's matrices for this layer, whose product is added.
    """

    view: np.ndarray
    start: tuple[int, ...]
    size: tuple[int, ...]
    shard: tuple[int, ...]
    at: tuple[int, ...]
    factors: Factors | None = None

    def put(self, sharding: jax.NamedSharding, dtype: str) -> jax.Array:
        """Puts the piece on its devices: one array whose shards are the devices' cuts."""
        parts = [whole // part for whole, part in zip(self.view.shape, self.shard)]

        def cut(index: Any) -> np.ndarray:
            number = [(s.start or 0) // size for s, size in zip(index, self.size)]
            first = [
                n * part + start
                for n, part, start in zip(number, self.shard, self.start)
            ]
            slices = tuple(slice(a, a + size) for a, size in zip(first, self.size))
            block = self.view[slices]
            if self.factors is not None:
                block = block.astype(np.float64) + self.factors.product(*slices[1:])
            return np.ascontiguousarray(block).astype(dtype, copy=False)

        whole = tuple(size * n for size, n in zip(self.size, parts))
        return jax.make_array_from_callback(whole, sharding, cut)


def leaf_pieces(
    cfg: LMConfig,
    leaf: str,
    tensors: Mapping[str, Any],
    shape: tuple[int, ...],
    sharding: jax.NamedSharding,
    adapter: Adapter | None = None,
) -> Iterator[Piece]:
    """Yields a leaf in pieces of about `CHUNK_BYTES`, a layer or expert at a time, along the
    axis outermost in the file.
    """
    factors = adapter.factors(cfg, leaf) if adapter else {}
    for at, name in places(cfg, leaf):
        view = source_of(cfg, leaf).view(tensors, name, at[-1] if at else 0, cfg)[
            (None,) * len(at)
        ]
        shard = (*view.shape[: len(at)], *sharding.shard_shape(shape)[len(at) :])
        axis = (
            int(np.argmax(view.strides[len(at) :])) + len(at)
            if view.ndim > len(at)
            else 0
        )
        step = max(
            1, min(shard[axis], CHUNK_BYTES * shard[axis] // max(1, view.nbytes))
        )
        size = (*shard[:axis], step, *shard[axis + 1 :])
        starts = [
            *range(0, shard[axis] - step, step),
            shard[axis] - step,
        ]  # the last may overlap: one program for all
        for first in starts:
            start = tuple(first if k == axis else 0 for k in range(len(shard)))
            yield Piece(
                view,
                start,
                size,
                shard,
                (*at, *start[len(at) :]),
                factors.get(at[0]) if at else None,
            )


@lru_cache(maxsize=256)
def _programs(
    shape: tuple[int, ...], dtype: str, sharding: jax.NamedSharding
) -> tuple[Any, Any]:
    """Compiled `() -> buffer, finite` and `(buffer, finite, piece, at) -> buffer,
    finite`, shared by leaves of a shape.

    The second works in place. Every device updates its own shard: an update along an
    axis that is split would have XLA gather the whole leaf on every device.
    """
    spec, places = sharding.spec, (sharding, jax.NamedSharding(sharding.mesh, P()))

    def local(buffer: jax.Array, x: jax.Array, at: jax.Array) -> jax.Array:
        # As integers, since XLA on CPUs would convert a whole bfloat16 buffer to
        # float32 and back.
        bits = jnp.dtype(f"uint{8 * buffer.dtype.itemsize}")
        as_bits = lambda value: jax.lax.bitcast_convert_type(value, bits)
        filled = jax.lax.dynamic_update_slice(
            as_bits(buffer), as_bits(x), [at[k] for k in range(buffer.ndim)]
        )
        return jax.lax.bitcast_convert_type(filled, buffer.dtype)

    place = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(spec, spec, P()), out_specs=spec
    )
    fill = lambda buffer, finite, x, at: (
        place(buffer, x, at),
        finite & jnp.isfinite(x).all(),
    )
    start = lambda: (jnp.zeros(shape, dtype), jnp.bool_(True))
    return jax.jit(start, out_shardings=places), jax.jit(
        fill, donate_argnums=0, out_shardings=places
    )


def streamed(
    leaf: str,
    pieces: Iterator[Piece],
    shape: tuple[int, ...],
    sharding: jax.NamedSharding,
    dtype: str,
) -> jax.Array:
    """Returns a leaf, whose device buffer is filled in place; the host holds one piece of it at a
    time.
    """
    start, fill = _programs(shape, dtype, sharding)
    buffer, finite = start()
    for piece in pieces:
        buffer, finite = fill(
            buffer, finite, piece.put(sharding, dtype), np.array(piece.at, np.int32)
        )
        finite.block_until_ready()  # otherwise pieces are read faster than they are placed, and pile up
    if not bool(finite):
        raise ValueError(
            f"{leaf} holds NaN or infinity after loading as {dtype}; the file is "
            f"damaged or overflows {dtype}"
        )
    return buffer
