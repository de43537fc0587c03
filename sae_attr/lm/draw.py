"""How one token is drawn from logits: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.lm.mlp import wide

_BLOCK = 256  # weights whose sum is one step of the search for a token


@dataclass(frozen=True)
class Sampling:
    """Sets how tokens are drawn; static under jit.

    Args:
      temperature: logits are divided by it; 0 takes the most probable token.
      top_p: only the smallest set of most probable tokens that holds this much
        probability; 1 for all.
      top_k: only so many most probable tokens, before `top_p` is applied to what is
        left; 0 for all.
      max_new: tokens of a completion at most, a stop token included.
      stop_ids: a row ends with the first of these that it draws.
      min_new: tokens of a completion before a stop token may be drawn.

    Raises:
      ValueError: a value outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new: int = 64
    stop_ids: tuple[int, ...] = ()
    min_new: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        rules = {
            "temperature": (
                0 <= self.temperature < float("inf"),
                "at least 0 (0 is greedy)",
            ),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0 (0 is all)"),
            "max_new": (self.max_new >= 1, "at least 1"),
            "min_new": (
                0 <= self.min_new <= self.max_new,
                f"from 0 to max_new, which is {self.max_new}",
            ),
            "stop_ids": (
                min(self.stop_ids, default=0) >= 0,
                "token ids, which count from 0",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(
                    f"sampling: {name} is {getattr(self, name)}; it must be {rule}"
                )


def draw(logits_bv: jax.Array, keys_b: jax.Array, *, sampling: Sampling) -> jax.Array:
    """Draws one token per row, `[b]` int32: one uniform number against the cumulative
    sum of the probabilities that are left.
    """
    # A Gumbel draw would need a random number for every token of the vocabulary, which
    # costs as much as a small model's whole step.
    if not sampling.temperature:
        top_bv = logits_bv == jnp.max(logits_bv, axis=-1, keepdims=True)
        first_b = jnp.zeros(len(logits_bv))
        return pick(top_bv.astype(jnp.float32), first_b)
    ids_bk = None
    if 0 < sampling.top_k < logits_bv.shape[-1]:
        logits_bv, ids_bk = jax.lax.top_k(logits_bv, sampling.top_k)
    scaled_bv = wide(logits_bv) / sampling.temperature
    weights_bv = jnp.exp(scaled_bv - jnp.max(scaled_bv, axis=-1, keepdims=True))
    weights_bv = weights_bv.astype(jnp.float32)
    if sampling.top_p < 1:
        weights_bv = nucleus(weights_bv, sampling.top_p)
    uniform_b = jax.vmap(jax.random.uniform)(keys_b)
    place_b = pick(weights_bv, uniform_b)
    if ids_bk is None:
        return place_b
    token_b1 = jnp.take_along_axis(ids_bk, place_b[:, None], axis=1)
    return token_b1[:, 0].astype(jnp.int32)


def pick(weights_bv: jax.Array, uniform_b: jax.Array) -> jax.Array:
    """Returns the place of the weight, `[b]` int32, in which a share `uniform_b` of
    the row's sum ends; never that of a weight of 0.
    """
    # Sums of blocks first, then one block alone: a cumulative sum of a whole vocabulary
    # takes several times as long as everything else that a draw does.
    weights_bmk = _blocks(weights_bv)
    sums_bm = jnp.sum(weights_bmk, axis=-1)
    ends_bm = jnp.cumsum(sums_bm, axis=-1)
    target_b1 = uniform_b[:, None] * ends_bm[:, -1:]
    block_b1 = _first(ends_bm, sums_bm, target_b1)
    before_b1 = jnp.take_along_axis(ends_bm - sums_bm, block_b1, axis=1)
    inside_bk = jnp.take_along_axis(weights_bmk, block_b1[..., None], axis=1)[:, 0]
    place_b1 = _first(jnp.cumsum(inside_bk, axis=-1), inside_bk, target_b1 - before_b1)
    return (block_b1 * _BLOCK + place_b1)[:, 0].astype(jnp.int32)


def _blocks(weights_bv: jax.Array) -> jax.Array:
    """Weights in blocks `[b, m, k]`, the last one filled up with 0."""
    b, v = weights_bv.shape
    filled = jnp.pad(weights_bv, ((0, 0), (0, -v % _BLOCK)))
    return filled.reshape(b, -1, _BLOCK)


def _first(ends_bm: jax.Array, weights_bm: jax.Array, target_b1: jax.Array) -> Any:
    """First place `[b, 1]` with a weight whose cumulative sum exceeds the target; the
    last one with a weight where rounding leaves none.
    """
    positive_bm = weights_bm > 0
    hit_bm = (ends_bm > target_b1) & positive_bm
    last_b1 = jnp.max(
        jnp.where(positive_bm, jnp.arange(weights_bm.shape[1]), 0), 1, keepdims=True
    )
    first_b1 = jnp.argmax(hit_bm, axis=1, keepdims=True)
    return jnp.where(jnp.any(hit_bm, axis=1, keepdims=True), first_b1, last_b1)


def nucleus(weights_bv: jax.Array, top_p: float) -> jax.Array:
    """Puts weights to 0 outside the smallest set of largest ones that holds `top_p` of
    their sum (Holtzman et al. 2020).

    Args:
      weights_bv: float32, not negative.
    """
    # The smallest weight that stays is found by bisection over the bits of a float, 31
    # sums instead of a sort; tokens whose weight equals it exactly all stay. From 0 up,
    # the bits of floats have the order of the floats.
    needed_b1 = top_p * jnp.sum(weights_bv, axis=-1, keepdims=True)
    bits_bv = jax.lax.bitcast_convert_type(weights_bv, jnp.int32)

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_b1, high_b1 = ends  # enough stays at `low`, not at `high`
        middle_b1 = low_b1 + (high_b1 - low_b1) // 2
        staying_bv = jnp.where(bits_bv >= middle_b1, weights_bv, 0)
        enough_b1 = jnp.sum(staying_bv, axis=-1, keepdims=True) >= needed_b1
        low_b1 = jnp.where(enough_b1, middle_b1, low_b1)
        high_b1 = jnp.where(enough_b1, high_b1, middle_b1)
        return low_b1, high_b1

    low_b1 = jnp.zeros_like(bits_bv[:, :1])
    high_b1 = jnp.max(bits_bv, axis=-1, keepdims=True) + 1
    low_b1, _ = jax.lax.fori_loop(0, 31, halve, (low_b1, high_b1))
    return jnp.where(bits_bv >= low_b1, weights_bv, 0)
