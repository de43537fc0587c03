"""Products with codes of which few are not zero, forward and backward, without a matrix
of batch × latents.

A step of a TopK SAE needs one dense product, the encoder's. All the rest touches the
active latents alone: the decoder, its gradient, the gradient of the codes and of the
encoder are k·d per token each instead of n·d.

Active codes come in `slots`: arrays `[s, b]` of values, latents and rows (the token
that an entry belongs to; None where entry (s, i) belongs to token i). A loop goes over
the slots, so that temporaries are `[b, d]`.

On a mesh each device does the entries of its tokens (`data`) and of its latents
(`model`), and sums are exchanged once, behind the loop: inside, every trip would have a
collective of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sae_attr.parallel import split_axis


class Slots(NamedTuple):
    """States where codes are: `latents_sb` int32, `rows_sb` int32 or None, and the
    value there, `values_sb`.

    An entry that stands for nothing has value 0 and any valid place.
    """

    values_sb: jax.Array
    latents_sb: jax.Array
    rows_sb: jax.Array | None = None


def decode_slots(
    slots: Slots, dec_nm: jax.Array, rows: int, mesh: Mesh | None = None
) -> jax.Array:
    """Returns `codes @ dec_nm` `[rows, m]` for the codes that the slots stand for; gradients of
    values and decoder are sparse.

    Args:
      mesh: where rows lie over `data` and latents over `model`; None on one device. On
        a mesh, entries of value 0 have no gradient.
    """
    return _decode(
        slots.values_sb,
        jnp.asarray(dec_nm),
        slots.latents_sb,
        slots.rows_sb,
        rows,
        mesh,
    )


def encoded(
    slots: Slots,
    x_bd: jax.Array,
    enc_dn: jax.Array,
    bias_n: jax.Array,
    mesh: Mesh | None = None,
) -> Slots:
    """Returns the same slots, whose values now have the gradients of `x @ enc_dn + bias_n` at
    their places.

    The caller has computed the product and chosen entries from it, outside the
    gradient; nothing is computed twice.

    Args:
      mesh: as for `decode_slots`.
    """
    values_sb = _attach(
        jax.lax.stop_gradient(slots.values_sb),
        jnp.asarray(x_bd),
        enc_dn,
        bias_n,
        slots.latents_sb,
        slots.rows_sb,
        mesh,
    )
    return slots._replace(values_sb=values_sb)


def fired(slots: Slots, n: int) -> jax.Array:
    """Returns whether each latent has a code above 0 in any slot, `[n]`."""
    hits = (slots.values_sb > 0).astype(jnp.int32).reshape(-1)
    return jnp.zeros(n, jnp.int32).at[slots.latents_sb.reshape(-1)].max(hits) > 0


# ---- loops over slots ----------------------------------------------------------------


def _decoded(slots: Slots, trips: Any, dec_nm: jax.Array, rows: int) -> jax.Array:
    """Sum of the decoder rows of the first `trips` slots, `[rows, m]`."""

    def step(s: jax.Array, sum_bm: jax.Array) -> jax.Array:
        values_b, latents_b, rows_b = _slot(slots, s)
        return _add_rows(sum_bm, values_b[:, None] * dec_nm[latents_b], rows_b)

    start_bm = jnp.zeros((rows, dec_nm.shape[1]), dec_nm.dtype)
    return jax.lax.fori_loop(0, trips, step, start_bm)


def _decoder_gradients(
    slots: Slots, trips: Any, dec_nm: jax.Array, grad_bm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the values `[s, b]` and of the decoder `[n, m]`."""

    def step(s: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        values_sb, dec_grad_nm = sums
        values_b, latents_b, rows_b = _slot(slots, s)
        grad = grad_bm if rows_b is None else grad_bm[rows_b]
        dec_grad_nm = dec_grad_nm.at[latents_b].add(values_b[:, None] * grad)
        of_values_b = jnp.sum(grad * dec_nm[latents_b], axis=1)
        return values_sb.at[s].set(of_values_b), dec_grad_nm

    start = jnp.zeros_like(slots.values_sb), jnp.zeros_like(dec_nm)
    return jax.lax.fori_loop(0, trips, step, start)


def _encoder_gradients(
    slots: Slots, trips: Any, enc_nd: jax.Array, x_bd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of the encoder `[n, d]`, of the input `[b, d]` and of the bias `[n]`;
    `slots` has the gradients of the values as its values.
    """

    def enc_step(s: jax.Array, sum_nd: jax.Array) -> jax.Array:
        grads_b, latents_b, rows_b = _slot(slots, s)
        x = x_bd if rows_b is None else x_bd[rows_b]
        return sum_nd.at[latents_b].add(grads_b[:, None] * x)

    def x_step(s: jax.Array, sum_bd: jax.Array) -> jax.Array:
        grads_b, latents_b, rows_b = _slot(slots, s)
        return _add_rows(sum_bd, grads_b[:, None] * enc_nd[latents_b], rows_b)

    # Two loops: a gradient of the input is seldom wanted, and then its loop is dropped.
    enc_grad_nd = jax.lax.fori_loop(0, trips, enc_step, jnp.zeros_like(enc_nd))
    x_grad_bd = jax.lax.fori_loop(0, trips, x_step, jnp.zeros_like(x_bd))
    bias_grad_n = jnp.zeros(len(enc_nd), slots.values_sb.dtype)
    bias_grad_n = bias_grad_n.at[slots.latents_sb.reshape(-1)].add(
        slots.values_sb.reshape(-1)
    )
    return enc_grad_nd, x_grad_bd, bias_grad_n


def _slot(slots: Slots, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Values, latents and rows of one slot, `[b]`."""
    at = partial(jax.lax.dynamic_index_in_dim, index=s, keepdims=False)
    rows_b = None if slots.rows_sb is None else at(slots.rows_sb)
    return at(slots.values_sb), at(slots.latents_sb), rows_b


def _add_rows(
    sum_bm: jax.Array, part_bm: jax.Array, rows_b: jax.Array | None
) -> jax.Array:
    """Adds to the rows that are named, or to all of them in order."""
    if rows_b is None:
        return sum_bm + part_bm
    return sum_bm.at[rows_b].add(part_bm)


# ---- on a mesh -----------------------------------------------------------------------


class _Split(NamedTuple):
    """The mesh axes over which rows, latents and the slots' entries lie; None where an
    axis does not divide them, or there is only one part.
    """

    mesh: Mesh
    rows: str | None
    latents: str | None
    entries: str | None

    @classmethod
    def of(cls, mesh: Mesh, rows: int, latents: int, slots: Slots) -> _Split:
        """Returns how the mesh splits so many rows and latents."""
        data = split_axis("data", rows, mesh)
        model = split_axis("model", latents, mesh)
        return cls(mesh, data, model, data if slots.rows_sb is None else None)

    def run(self, function: Callable[..., Any], into: Any, out: Any, *args: Any) -> Any:
        """Runs a function of each device's parts."""
        parts = jax.shard_map(
            function, mesh=self.mesh, in_specs=into, out_specs=out, check_vma=False
        )
        return parts(*args)

    @property
    def of_slots(self) -> P:
        """Where arrays `[s, b]` of the slots lie."""
        return P(None, self.entries)

    def summed(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Returns the sum over those of the axes that are split."""
        present = tuple(axis for axis in axes if axis is not None)
        return jax.lax.psum(x, present) if present else x


class _Owned(NamedTuple):
    """Entries of one device's rows and latents, counted from its first ones, and
    closed up so that the loop over slots ends with the last of them.
    """

    slots: Slots
    trips: jax.Array
    places_e: jax.Array
    is_entry_e: jax.Array


def _owned(slots: Slots, split: _Split, rows: int, latents: int) -> _Owned:
    """Takes the entries of this device, which has `rows` rows and `latents` latents."""
    s, width = slots.values_sb.shape
    rows_e = jnp.tile(jnp.arange(width), s)
    if slots.rows_sb is not None:
        first_row = rows * jax.lax.axis_index(split.rows) if split.rows else 0
        rows_e = slots.rows_sb.reshape(-1) - first_row
    first_latent = latents * jax.lax.axis_index(split.latents) if split.latents else 0
    latents_e = slots.latents_sb.reshape(-1) - first_latent
    values_e = slots.values_sb.reshape(-1)
    own_e = (values_e != 0) & (rows_e >= 0) & (rows_e < rows)
    own_e &= (latents_e >= 0) & (latents_e < latents)
    (places_e,) = jnp.nonzero(own_e, size=len(own_e), fill_value=0)
    count = jnp.sum(own_e, dtype=jnp.int32)
    is_entry_e = jnp.arange(len(own_e)) < count
    if width % max(rows, 1) == 0:
        width = rows  # short slots: the last one of a device is seldom full
    closed = lambda x_e: jnp.where(is_entry_e, x_e[places_e], 0).reshape(-1, width)
    closed_up = Slots(closed(values_e), closed(latents_e), closed(rows_e))
    return _Owned(closed_up, -(-count // width), places_e, is_entry_e)


# ---- gradients -----------------------------------------------------------------------


def _zero(x: Any) -> Any:
    """Returns the cotangent of an integer argument, which JAX wants as float0."""
    return None if x is None else np.zeros(x.shape, jax.dtypes.float0)


def _decode_values(values_sb, dec_nm, latents_sb, rows_sb, rows, mesh):
    slots = Slots(values_sb, latents_sb, rows_sb)
    if mesh is None:
        return _decoded(slots, len(values_sb), dec_nm, rows)
    split = _Split.of(mesh, rows, len(dec_nm), slots)

    def part(slots: Slots, dec_nm: jax.Array) -> jax.Array:
        here = rows // (mesh.shape["data"] if split.rows else 1)
        owned = _owned(slots, split, here, len(dec_nm))
        return split.summed(
            _decoded(owned.slots, owned.trips, dec_nm, here), split.latents
        )

    into = split.of_slots, P(split.latents)
    return split.run(part, into, P(split.rows), slots, dec_nm)


_decode = jax.custom_vjp(_decode_values, nondiff_argnums=(4, 5))


def _decode_forward(values_sb, dec_nm, latents_sb, rows_sb, rows, mesh):
    decoded = _decode_values(values_sb, dec_nm, latents_sb, rows_sb, rows, mesh)
    return decoded, (values_sb, dec_nm, latents_sb, rows_sb)


def _decode_backward(rows, mesh, saved, grad_bm):
    values_sb, dec_nm, latents_sb, rows_sb = saved
    slots = Slots(values_sb, latents_sb, rows_sb)
    integer_grads = _zero(latents_sb), _zero(rows_sb)
    if mesh is None:
        trips = len(values_sb)
        return *_decoder_gradients(slots, trips, dec_nm, grad_bm), *integer_grads
    split = _Split.of(mesh, rows, len(dec_nm), slots)

    def part(slots: Slots, dec_nm: jax.Array, grad_bm: jax.Array) -> Any:
        owned = _owned(slots, split, len(grad_bm), len(dec_nm))
        closed_sb, dec_grad_nm = _decoder_gradients(
            owned.slots, owned.trips, dec_nm, grad_bm
        )
        grads_e = jnp.where(owned.is_entry_e, closed_sb.reshape(-1), 0)
        values_e = jnp.zeros_like(grads_e).at[owned.places_e].add(grads_e)
        others = None if split.entries else split.rows
        values_sb = values_e.reshape(slots.values_sb.shape)
        return (
            split.summed(values_sb, split.latents, others),
            split.summed(dec_grad_nm, split.rows),
        )

    into = split.of_slots, P(split.latents), P(split.rows)
    out = split.of_slots, P(split.latents)
    return *split.run(part, into, out, slots, dec_nm, grad_bm), *integer_grads


_decode.defvjp(_decode_forward, _decode_backward)


def _attached(values_sb, x_bd, enc_dn, bias_n, latents_sb, rows_sb, mesh):
    return values_sb


_attach = jax.custom_vjp(_attached, nondiff_argnums=(6,))


def _attach_forward(values_sb, x_bd, enc_dn, bias_n, latents_sb, rows_sb, mesh):
    is_entry_sb = values_sb != 0  # padding has no gradient
    return values_sb, (x_bd, enc_dn, is_entry_sb, latents_sb, rows_sb)


def _attach_backward(mesh, saved, grads_sb):
    x_bd, enc_dn, is_entry_sb, latents_sb, rows_sb = saved
    grads_sb = jnp.where(is_entry_sb, grads_sb, 0)
    slots = Slots(grads_sb, latents_sb, rows_sb)
    enc_nd = enc_dn.T  # a latent is a row, as gather and scatter need it
    if mesh is None:
        grads = _encoder_gradients(slots, len(grads_sb), enc_nd, x_bd)
    else:
        grads = _encoder_gradients_on(mesh, slots, enc_nd, x_bd)
    enc_grad_nd, x_grad_bd, bias_grad_n = grads
    integer_grads = _zero(latents_sb), _zero(rows_sb)
    return (grads_sb, x_grad_bd, enc_grad_nd.T, bias_grad_n, *integer_grads)


def _encoder_gradients_on(
    mesh: Mesh, slots: Slots, enc_nd: jax.Array, x_bd: jax.Array
) -> Any:
    """`_encoder_gradients` on a mesh."""
    split = _Split.of(mesh, len(x_bd), len(enc_nd), slots)

    def part(slots: Slots, enc_nd: jax.Array, x_bd: jax.Array) -> Any:
        owned = _owned(slots, split, len(x_bd), len(enc_nd))
        enc_grad_nd, x_grad_bd, bias_grad_n = _encoder_gradients(
            owned.slots, owned.trips, enc_nd, x_bd
        )
        return (
            split.summed(enc_grad_nd, split.rows),
            split.summed(x_grad_bd, split.latents),
            split.summed(bias_grad_n, split.rows),
        )

    into = split.of_slots, P(split.latents), P(split.rows)
    out = P(split.latents), P(split.rows), P(split.latents)
    return split.run(part, into, out, slots, enc_nd, x_bd)


_attach.defvjp(_attach_forward, _attach_backward)
