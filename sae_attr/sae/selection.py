"""Selects the largest pre-activations, of every token or of a whole batch, exactly and
without a sort of the matrix.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sae_attr.parallel import replicated, split_axis
from sae_attr.sae.slots import Slots

_WIDE_SHARE = 16  # one row in so many may be searched whole


def row_topk(
    pre_bn: jax.Array, k: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """Values and latents `[b, k]` of the k largest of every row, falling; of equal ones
    the lower latent comes first.

    Args:
      pre_bn: any values.
      k: how many.
      mesh: where rows lie over `data` and latents over `model`: each device ranks its
        part, then the winners of all parts, with the same result. Left to the
        compiler, every device would be sent the whole matrix.
    """
    if mesh is None:
        values_bk, latents_bk = jax.lax.top_k(pre_bn, k)
        return values_bk, latents_bk
    b, n = pre_bn.shape
    data, model = split_axis("data", b, mesh), split_axis("model", n, mesh)

    def ranked(pre_bn: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = pre_bn.shape[1]
        values_bk, latents_bk = jax.lax.top_k(pre_bn, min(k, width))
        if model is None:
            return values_bk, latents_bk
        latents_bk = latents_bk + width * jax.lax.axis_index(model)
        gather = partial(jax.lax.all_gather, axis_name=model, axis=1, tiled=True)
        values_bw, latents_bw = gather(values_bk), gather(latents_bk)
        # Parts lie in the order of their latents, so that equal values still rank by
        # latent.
        values_bk, places_bk = jax.lax.top_k(values_bw, k)
        return values_bk, jnp.take_along_axis(latents_bw, places_bk, axis=1)

    parts = jax.shard_map(
        ranked,
        mesh=mesh,
        in_specs=P(data, model),
        out_specs=(P(data), P(data)),
        check_vma=False,
    )
    values_bk, latents_bk = parts(pre_bn)
    return values_bk, latents_bk


def kth_largest(values: jax.Array, k: int | jax.Array) -> jax.Array:
    """Returns the k-th largest of values at or above 0, exactly and without sorting; 0 where
    fewer than k are positive.

    Non-negative floats are ordered as their bits read as integers are, so the answer is
    built bit by bit: 31 counts. Negative values count as 0.

    Args:
      values: float32 `[..., n]`, up to 2^31 along the last axis and 2^15 before it.
      k: from 1 to the number of values.
    """
    # A negative float has its sign bit set, so it reads as a negative integer and is
    # in no count.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    def step(i: jax.Array, prefix: jax.Array) -> jax.Array:
        trial = prefix | (jnp.int32(1) << (30 - i))
        return jnp.where(_at_least(bits >= trial, k), trial, prefix)

    answer = jax.lax.fori_loop(0, 31, step, jnp.int32(0))
    return jax.lax.bitcast_convert_type(answer, jnp.float32)


def _at_least(mask: jax.Array, k: int | jax.Array) -> jax.Array:
    """Returns whether k entries are true; counted in halves of 16 bits, since 4096 × 2^20
    entries overflow 32.
    """
    rows = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    low = jnp.sum(rows & 0xFFFF, dtype=jnp.int32)
    high = jnp.sum(rows >> 16, dtype=jnp.int32) + (low >> 16)
    return (high > k >> 16) | ((high == k >> 16) & (low & 0xFFFF >= k & 0xFFFF))


class BatchChoice(NamedTuple):
    """`slots` of the batch's best entries, their smallest value, and whether some row
    had more than its candidates.
    """

    slots: Slots
    threshold: jax.Array
    spilled: jax.Array


class _Part(NamedTuple):
    """Some values of a matrix: of these rows, and of which latents (None: all of them,
    in order).
    """

    values_rc: jax.Array
    rows_r: jax.Array
    latents_rc: jax.Array | None = None


def batch_topk(
    pre_bn: jax.Array, k: int, candidates: int, mesh: Mesh | None = None
) -> BatchChoice:
    """Selects the `b * k` largest positive entries of a matrix, exactly, by a threshold
    and not by a sort.

    Entries above the threshold are selected, and of those equal to it the first ones in
    order of rows (within a row, of latents), until there are `b * k`. There are fewer
    only where fewer are positive.

    Args:
      pre_bn: pre-activations.
      k: entries per row, on average.
      candidates: entries of a row that are looked at first. A row that may have more
        among the best is searched whole; if more than a sixteenth of the rows are such,
        the matrix is.
      mesh: as for `row_topk`; the candidates go to every device, and what follows is
        done on each.
    """
    b, n = pre_bn.shape
    candidates = min(candidates, n)
    max_whole_rows = -(-b // _WIDE_SHARE)
    best = _best_of_rows(pre_bn, candidates, mesh)
    # Of some of the entries: the matrix's own threshold is as large or larger.
    low = kth_largest(best.values_rc, b * k)
    spilled_b = _may_have_more(best, low) & (candidates < n)

    def from_candidates() -> tuple[Slots, jax.Array]:
        return _entries([best], low, b, k), low

    def from_whole_rows() -> tuple[Slots, jax.Array]:
        whole = _whole_rows(pre_bn, spilled_b, max_whole_rows)
        # A spilled row counts once: its candidates are among its whole row.
        rest_bc = jnp.where(spilled_b[:, None], 0, best.values_rc)
        values = jnp.concatenate([rest_bc.reshape(-1), whole.values_rc.reshape(-1)])
        threshold = kth_largest(values, b * k)
        parts = [best._replace(values_rc=rest_bc), whole]
        return _entries(parts, threshold, b, k), threshold

    def from_the_matrix() -> tuple[Slots, jax.Array]:
        values_bn = jax.nn.relu(pre_bn)
        threshold = kth_largest(values_bn, b * k)
        part = _Part(values_bn, jnp.arange(b))
        return _entries([part], threshold, b, k), threshold

    # All three searches have static shapes; the number of spilled rows, known only on
    # the device, picks the one that runs.
    count = jnp.sum(spilled_b, dtype=jnp.int32)
    case = (count > 0).astype(jnp.int32) + (count > max_whole_rows)
    searches = [from_candidates, from_whole_rows, from_the_matrix]
    slots, threshold = jax.lax.switch(case, searches)
    return BatchChoice(slots, threshold, count > 0)


def _best_of_rows(pre_bn: jax.Array, candidates: int, mesh: Mesh | None) -> _Part:
    """Returns the best entries of every row, on every device."""
    values_bc, latents_bc = row_topk(pre_bn, candidates, mesh)
    if mesh is not None:
        whole = partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))
        values_bc, latents_bc = whole(values_bc), whole(latents_bc)
    return _Part(jax.nn.relu(values_bc), jnp.arange(len(pre_bn)), latents_bc)


def _may_have_more(best: _Part, low: jax.Array) -> jax.Array:
    """Returns for each row whether entries beyond its candidates may be selected, since
    all of its candidates reach the threshold.
    """
    smallest_b = best.values_rc[:, -1]
    return (smallest_b.astype(jnp.float32) >= low) & (smallest_b > 0)


def _whole_rows(pre_bn: jax.Array, spilled_b: jax.Array, count: int) -> _Part:
    """Returns all values of the spilled rows, at most `count` of them."""
    b = len(pre_bn)
    # Places that no row fills get row b, which is outside: their values are 0 here,
    # and additions to that row are dropped.
    (rows_w,) = jnp.nonzero(spilled_b, size=count, fill_value=b)
    values_wn = jax.nn.relu(pre_bn[jnp.minimum(rows_w, b - 1)])
    return _Part(jnp.where(rows_w[:, None] < b, values_wn, 0), rows_w)


def _entries(parts: list[_Part], threshold: jax.Array, b: int, k: int) -> Slots:
    """Returns the entries that the threshold selects, as slots. A row that counts is in
    one part; elsewhere its values are 0.
    """
    sums = [jnp.int32(0)] * 3
    size = jnp.int32(0)
    for part, selected_rc in zip(parts, _selected(parts, threshold, b, k), strict=True):
        entries, count = _listed(part, selected_rc, b * k)
        # How many entries a part has is known only on the device, so that the parts
        # cannot be concatenated: each is moved behind the ones before and added.
        for i, entry in enumerate(entries):
            sums[i] = sums[i] + jnp.roll(entry, size)
        size += count
    values, latents, rows = (total.reshape(k, b) for total in sums)
    return Slots(values, latents.astype(jnp.int32), rows.astype(jnp.int32))


def _listed(
    part: _Part, selected_rc: jax.Array, size: int
) -> tuple[list[jax.Array], jax.Array]:
    """Returns values, latents and rows `[size]` of the selected entries of a part, all
    0 beyond them, and their number.
    """
    rows, columns = jnp.nonzero(selected_rc, size=size, fill_value=0)
    latents = columns
    if part.latents_rc is not None:
        latents = part.latents_rc[rows, columns]
    count = jnp.sum(selected_rc, dtype=jnp.int32)
    is_entry = jnp.arange(size) < count
    arrays = (part.values_rc[rows, columns], latents, part.rows_r[rows])
    return [jnp.where(is_entry, array, 0) for array in arrays], count


def _selected(
    parts: list[_Part], threshold: jax.Array, b: int, k: int
) -> list[jax.Array]:
    """Returns for each part a mask of the entries that the threshold selects."""
    # In float32, as the threshold is.
    values = [part.values_rc.astype(jnp.float32) for part in parts]
    above = [x > threshold for x in values]
    # A threshold of 0 means that fewer than b * k are positive: no zero is selected.
    equal = [(x == threshold) & (threshold > 0) for x in values]
    left = b * k - sum(jnp.sum(mask, dtype=jnp.int32) for mask in above)
    equal_b = jnp.zeros(b, jnp.int32)
    for part, mask in zip(parts, equal, strict=True):
        counts_r = jnp.sum(mask, axis=1, dtype=jnp.int32)
        equal_b = equal_b.at[part.rows_r].add(counts_r, mode="drop")
    # Equal ones in the rows before.
    earlier_b = jnp.cumsum(equal_b, dtype=jnp.int32) - equal_b
    selected = []
    for part, larger, same in zip(parts, above, equal, strict=True):
        within_row = jnp.cumsum(same, axis=1, dtype=jnp.int32)
        ordinal = earlier_b[part.rows_r][:, None] + within_row
        selected.append(larger | (same & (ordinal <= left)))
    return selected
