"""Products with codes of which few are not zero, forward and backward, without a matrix
of batch × latents.

A step of a TopK SAE needs one dense product, the encoder's. All the rest touches the
active latents alone: the decoder, its gradient, the gradient of the codes and of the
encoder are k·d per token each instead of n·d.

Active codes come in `slots`: arrays `[s, b]` of values, latents and rows (the token
that an entry belongs to; None where entry (s, i) belongs to token i). A scan goes over
the slots, so that temporaries are `[b, d]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_WIDE_SHARE = 16  # one row in so many may be searched whole


class Slots(NamedTuple):
    """Where codes are: `latents_sb` int32, `rows_sb` int32 or None, and the value
    there, `values_sb`.

    An entry that stands for nothing has value 0 and any valid place.
    """

    values_sb: jax.Array
    latents_sb: jax.Array
    rows_sb: jax.Array | None = None


def row_topk(pre_bn: jax.Array, k: int, shards: int = 1) -> tuple[jax.Array, jax.Array]:
    """Values and latents `[b, k]` of the k largest of every row, falling; of equal ones
    the lower latent comes first.

    Args:
      pre_bn: any values.
      k: how many.
      shards: parts that the latents are split into; each is ranked by itself, then the
        winners, with the same result. With latents over a mesh axis no device then sees
        more than its part and the winners.
    """
    b, n = pre_bn.shape
    width = n // shards
    if shards == 1 or n % shards or width < k:
        return jax.lax.top_k(pre_bn, k)
    values_bsk, latents_bsk = jax.lax.top_k(pre_bn.reshape(b, shards, width), k)
    first_latent_s = width * jnp.arange(shards, dtype=jnp.int32)
    latents_bsk = latents_bsk + first_latent_s[:, None]
    # Shards lie in the order of their latents, so that equal values still rank by
    # latent.
    values_bk, places_bk = jax.lax.top_k(values_bsk.reshape(b, -1), k)
    return values_bk, jnp.take_along_axis(latents_bsk.reshape(b, -1), places_bk, axis=1)


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
    pre_bn: jax.Array, k: int, candidates: int, shards: int = 1
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
      shards: as for `row_topk`.
    """
    b, n = pre_bn.shape
    candidates = min(candidates, n)
    max_whole_rows = -(-b // _WIDE_SHARE)
    every_b = jnp.arange(b)
    values_bc, latents_bc = row_topk(pre_bn, candidates, shards)
    best = _Part(jax.nn.relu(values_bc), every_b, latents_bc)
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
        return _entries([_Part(values_bn, every_b)], threshold, b, k), threshold

    # All three searches have static shapes; the number of spilled rows, known only on
    # the device, picks the one that runs.
    count = jnp.sum(spilled_b, dtype=jnp.int32)
    case = (count > 0).astype(jnp.int32) + (count > max_whole_rows)
    searches = [from_candidates, from_whole_rows, from_the_matrix]
    slots, threshold = jax.lax.switch(case, searches)
    return BatchChoice(slots, threshold, count > 0)


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


def decode_slots(slots: Slots, dec_nm: jax.Array, rows: int) -> jax.Array:
    """Returns `codes @ dec_nm` `[rows, m]` for the codes that the slots stand for; gradients of
    values and decoder are sparse.
    """
    return _decode(
        slots.values_sb, jnp.asarray(dec_nm), slots.latents_sb, slots.rows_sb, rows
    )


def encoded(
    slots: Slots, x_bd: jax.Array, enc_dn: jax.Array, bias_n: jax.Array
) -> Slots:
    """Returns the same slots, whose values now have the gradients of `x @ enc_dn + bias_n` at
    their places.

    The caller has computed the product and chosen entries from it, outside the
    gradient; nothing is computed twice.
    """
    is_entry_sb = slots.values_sb != 0  # padding has no gradient
    values_sb = _attach(
        jax.lax.stop_gradient(slots.values_sb),
        jnp.asarray(x_bd),
        enc_dn,
        bias_n,
        is_entry_sb,
        *slots[1:],
    )
    return slots._replace(values_sb=values_sb)


def fired(slots: Slots, n: int) -> jax.Array:
    """Returns whether each latent has a code above 0 in any slot, `[n]`."""
    hits = (slots.values_sb > 0).astype(jnp.int32).reshape(-1)
    return jnp.zeros(n, jnp.int32).at[slots.latents_sb.reshape(-1)].max(hits) > 0


def _zero(x: Any) -> Any:
    """Returns the cotangent of an integer argument, which JAX wants as float0."""
    return None if x is None else np.zeros(x.shape, jax.dtypes.float0)


@jax.custom_vjp
def _attach(values_sb, x_bd, enc_dn, bias_n, is_entry_sb, latents_sb, rows_sb):
    return values_sb


def _attach_forward(values_sb, x_bd, enc_dn, bias_n, is_entry_sb, latents_sb, rows_sb):
    return values_sb, (x_bd, enc_dn, is_entry_sb, latents_sb, rows_sb)


def _attach_backward(saved, grads_sb):
    x_bd, enc_dn, is_entry_sb, latents_sb, rows_sb = saved
    grads_sb = jnp.where(is_entry_sb, grads_sb, 0)
    enc_nd = enc_dn.T  # a latent is a row, as gather and scatter need it

    def enc_step(sum_nd, slot):
        grads_b, latents_b, rows_b = slot
        x = x_bd if rows_b is None else x_bd[rows_b]
        return sum_nd.at[latents_b].add(grads_b[:, None] * x), None

    def x_step(sum_bd, slot):
        grads_b, latents_b, rows_b = slot
        part = grads_b[:, None] * enc_nd[latents_b]
        return _add_rows(sum_bd, part, rows_b), None

    slots = (grads_sb, latents_sb, rows_sb)
    enc_grad_nd, _ = jax.lax.scan(enc_step, jnp.zeros_like(enc_nd), slots)
    x_grad_bd, _ = jax.lax.scan(x_step, jnp.zeros_like(x_bd), slots)
    bias_grad_n = jnp.zeros(enc_dn.shape[1], grads_sb.dtype)
    bias_grad_n = bias_grad_n.at[latents_sb.reshape(-1)].add(grads_sb.reshape(-1))
    integer_grads = (_zero(is_entry_sb), _zero(latents_sb), _zero(rows_sb))
    return (grads_sb, x_grad_bd, enc_grad_nd.T, bias_grad_n, *integer_grads)


def _add_rows(sum_bm, part_bm, rows_b):
    """Adds to the rows that are named, or to all of them in order."""
    if rows_b is None:
        return sum_bm + part_bm
    return sum_bm.at[rows_b].add(part_bm)


_attach.defvjp(_attach_forward, _attach_backward)


def _decode_slots(values_sb, dec_nm, latents_sb, rows_sb, rows):
    def step(sum_bm, slot):
        values_b, latents_b, rows_b = slot
        part = values_b[:, None] * dec_nm[latents_b]
        return _add_rows(sum_bm, part, rows_b), None

    start = jnp.zeros((rows, dec_nm.shape[1]), dec_nm.dtype)
    return jax.lax.scan(step, start, (values_sb, latents_sb, rows_sb))[0]


_decode = jax.custom_vjp(_decode_slots, nondiff_argnums=(4,))


def _decode_forward(values_sb, dec_nm, latents_sb, rows_sb, rows):
    decoded = _decode_slots(values_sb, dec_nm, latents_sb, rows_sb, rows)
    return decoded, (values_sb, dec_nm, latents_sb, rows_sb)


def _decode_backward(rows, saved, grad_bm):
    values_sb, dec_nm, latents_sb, rows_sb = saved

    def step(sum_nm, slot):
        values_b, latents_b, rows_b = slot
        grad = grad_bm if rows_b is None else grad_bm[rows_b]
        dec_sum_nm = sum_nm.at[latents_b].add(values_b[:, None] * grad)
        return dec_sum_nm, jnp.sum(grad * dec_nm[latents_b], axis=1)

    slots = (values_sb, latents_sb, rows_sb)
    dec_grad, values_grad = jax.lax.scan(step, jnp.zeros_like(dec_nm), slots)
    return values_grad, dec_grad, _zero(latents_sb), _zero(rows_sb)


_decode.defvjp(_decode_forward, _decode_backward)
