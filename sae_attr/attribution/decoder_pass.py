"""One pass over the rows of a dictionary: quadratic forms and projections."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.files.row_source import RowSource
from sae_attr.parallel import shard_rows, to_host

T = TypeVar("T")


def check_width(dec_width: int, acts_width: int) -> None:
    """Raises ValueError if a dictionary does not fit the activations of its site."""
    if dec_width != acts_width:
        raise ValueError(
            f"the SAE's decoder rows have {dec_width} numbers but the site's "
            f"activations have {acts_width}; this SAE belongs to another model or "
            "another site"
        )


def score_rows(
    dec_cd: jax.Array, forms_qdd: jax.Array, vectors_kd: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes −dᵀ M d and v·d for unit rows d: `[q, c]` and `[k, c]`.

    Rows of any norm are read once: the results are divided by ‖d‖² and ‖d‖, which saves
    writing normalised rows. A row of zeros scores 0.
    """
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    square_c = jnp.sum(jnp.square(dec_cd), axis=-1)
    square_c = jnp.where(square_c > 0, square_c, jnp.inf)
    quadratic_qc = jnp.zeros((0, len(dec_cd)))
    if len(forms_qdd):
        rows = []
        for m_dd in forms_qdd:
            projected_ce = product("cd,de->ce", dec_cd, m_dd)
            rows.append(-jnp.sum(projected_ce * dec_cd, axis=-1) / square_c)
        quadratic_qc = jnp.stack(rows)
    linear_kc = product("kd,cd->kc", vectors_kd, dec_cd) * jax.lax.rsqrt(square_c)
    return quadratic_qc, linear_kc


CHUNK_NUMBERS = 2**25  # of a chunk of rows: 134 MB in float32


def rows_at_a_time(n: int, d: int) -> int:
    """Returns how many of n rows of d numbers are scored at a time: a power of two, which
    meshes divide, unless it is all of them.
    """
    rows = 1 << max(CHUNK_NUMBERS // d, 1).bit_length() - 1
    return min(rows, n)


def score_dictionary(
    source: RowSource,
    forms: Mapping[str, jax.Array],
    vectors: Mapping[str, jax.Array],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Scores a whole dictionary by every quadratic form and every vector, in one pass
    over its rows.

    While a chunk is scored the next one is read; the pages of a mapped file are given
    back as it goes.

    Args:
      source: decoder rows, in memory or on disk; two chunks of them are in memory at a
        time.
      forms: name -> symmetric `[d, d]`; the score is −dᵀ M d for unit d.
      vectors: name -> `[d]`; the score is v·d for unit d.
      mesh: rows of a chunk are spread over all its devices.
      chunk: rows of a chunk; None for `rows_at_a_time`.

    Returns:
      name -> float32 `[n]`.

    Raises:
      ValueError: widths differ, or a score is NaN or infinite.
    """
    n, d = source.shape
    first = next(iter([*forms.values(), *vectors.values()]))
    check_width(d, first.shape[-1])
    if both := sorted(set(forms) & set(vectors)):
        raise ValueError(f"a form and a vector are both called {both[0]!r}; rename one")
    forms_qdd = jnp.stack(list(forms.values())) if forms else jnp.zeros((0, d, d))
    vectors_kd = jnp.stack(list(vectors.values())) if vectors else jnp.zeros((0, d))
    out = {name: np.empty(n, np.float32) for name in (*forms, *vectors)}
    chunk = rows_at_a_time(n, d) if chunk is None else min(chunk, n)
    score = jax.jit(score_rows)

    def store(start: int, scored: tuple[jax.Array, jax.Array]) -> None:
        scores = np.concatenate(to_host(scored))
        end = min(start + chunk, n)
        for name, values_c in zip(out, scores, strict=True):
            out[name][start:end] = values_c[: end - start]

    bar = tqdm(
        range(0, n, chunk), desc="score latents", unit="chunk", disable=not progress
    )
    begun = (
        (start, score(_chunk(source, start, chunk, mesh), forms_qdd, vectors_kd))
        for start in bar
    )
    for start, scored in _once_the_next_is_begun(begun):
        store(start, scored)
    check_finite(out)
    return out


def _once_the_next_is_begun(items: Iterable[T]) -> Iterator[T]:
    """Yields items, each after the next was taken: a device works on that one while
    this one is fetched.
    """
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) == 2:
            yield begun.popleft()
    yield from begun


def _chunk(
    source: RowSource, start: int, chunk: int, mesh: jax.sharding.Mesh | None
) -> np.ndarray | jax.Array:
    """Reads a chunk of rows, padded with zeros behind the last one: one compiled shape
    serves all.
    """
    end = min(start + chunk, len(source))
    rows_cd = source.rows(start, end)
    source.release(start, end)
    if end - start < chunk:
        rows_cd = np.pad(rows_cd, ((0, chunk - end + start), (0, 0)))
    return rows_cd if mesh is None else shard_rows(rows_cd, mesh)


def check_finite(scores: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError naming the first score array that holds NaN or infinity."""
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"score {name!r} of latent {bad[0]} is {values[bad[0]]} ({len(bad)} "
                "such latents); look for NaN in the "
                "decoder, the activations or the gradients, or for overflow in a "
                "low-precision run"
            )
