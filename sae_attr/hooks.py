"""Where a model is read or changed (`Site`) and how it is changed (the edits).

An edit is a pytree that is called as `edit(x_btd, pos_bt) -> x_btd`. Its vectors are
traced, so a new latent, strength or target does not recompile anything; a new site
does. A vector may be `[d]`, `[b, d]` (batch rows are latents) or `[b, t, d]`; a scalar
may be `[]`, `[b]` or `[b, t]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

POINTS = (
    *("resid_pre", "attn_z", "attn_raw", "attn_out"),
    *("resid_mid", "mlp_in", "mlp_hidden", "mlp_raw", "mlp_out", "resid_post"),
)
NO_END = 2**31 - 1  # beyond every position, as an int32


@dataclass(frozen=True, order=True)
class Site:
    """A named activation of one layer; static under jit.

    Args:
      layer: index of the block, from 0.
      point: one of `POINTS`. `resid_post` of layer l is what Hugging Face calls
        `hidden_states[l + 1]`. `attn_out` and `mlp_out` are what is added to the
        residual stream, `attn_raw` and `mlp_raw` what the sublayer itself puts out:
        another activation where a norm follows it (Gemma 2 and 3, OLMo 2), the same one
        elsewhere.

    Raises:
      ValueError: unknown point or negative layer.
    """

    layer: int
    point: str = "resid_post"

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise ValueError(
                f"site point {self.point!r} is unknown; the points are "
                f"{', '.join(POINTS)}"
            )
        if self.layer < 0:
            raise ValueError(
                f"site layer {self.layer} is negative; layers count from 0"
            )

    def __str__(self) -> str:
        return f"layer{self.layer}.{self.point}"


class Edit(Protocol):
    """Changes an activation in the forward pass: a pytree `(x_btd, pos_bt) -> x_btd` of
    the same shape and dtype.
    """

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array: ...


def _kind(name: str) -> Any:
    """A static field that tells one edit from another.

    In jaxlib 0.10 the pytree structures of two dataclasses with equally many leaves may
    compare equal, so that jit could reuse another edit's compiled program (whether it
    does depends on hashes that differ from process to process).
    """
    return struct.field(pytree_node=False, default=name, repr=False)


def _rows(vector: jax.Array, x_btd: jax.Array) -> jax.Array:
    """A `[d]`, `[b, d]` or `[b, t, d]` vector made to broadcast against `x_btd`."""
    vector = jnp.asarray(vector, x_btd.dtype)
    # Numpy would line up `[b, d]` with `[t, d]`, without an error wherever b = t.
    if vector.ndim == 2:
        return vector[:, None, :]
    return vector


def _scalars(value: Any, x_btd: jax.Array) -> jax.Array:
    """A `[]`, `[b]` or `[b, t]` scalar field made to broadcast against `x_btd[..., :1]`."""
    value = jnp.asarray(value, x_btd.dtype)
    if value.ndim == 0:
        return value
    return _trailing(value)


def _trailing(field: jax.Array) -> jax.Array:
    """`[b]` or `[b, t]` with axes of length 1 appended: `[b, 1, 1]` or `[b, t, 1]`."""
    return field.reshape(field.shape + (1,) * (3 - field.ndim))


def _only(where: Any, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` where the `[b]` or `[b, t]` mask is true, `old` elsewhere; everywhere
    without a mask.
    """
    if where is None:
        return new
    return jnp.where(_trailing(jnp.asarray(where, bool)), new, old)


def _dot(x_btd: jax.Array, direction: jax.Array) -> jax.Array:
    """Projection `x . d`, `[b, t, 1]`; a sum of products, since a matrix product would
    round to bf16 on a TPU.
    """
    return jnp.sum(x_btd * direction, axis=-1, keepdims=True)


@struct.dataclass
class Add:
    """`x + scale * vector`: steering, and with zeros the handle by which a gradient at
    a site is taken.
    """

    vector: jax.Array
    scale: Any = 1.0
    where: Any = None
    kind: str = _kind("Add")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        shift = _scalars(self.scale, x_btd) * _rows(self.vector, x_btd)
        return _only(self.where, x_btd + shift, x_btd)


@struct.dataclass
class Replace:
    """`value` instead of `x`; `jax.grad` with respect to `value` is the gradient at the
    site.
    """

    value: jax.Array
    where: Any = None
    kind: str = _kind("Replace")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        value = jnp.broadcast_to(_rows(self.value, x_btd), x_btd.shape)
        return _only(self.where, value, x_btd)


@struct.dataclass
class SetProjection:
    """`x + (value - x . d) d` for a unit direction d; with `value = mean . d` this is
    mean ablation (docs/method.md, The score).
    """

    direction: jax.Array
    value: Any
    where: Any = None
    kind: str = _kind("SetProjection")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        direction = _rows(self.direction, x_btd)
        gap = _scalars(self.value, x_btd) - _dot(x_btd, direction)
        return _only(self.where, x_btd + gap * direction, x_btd)


@struct.dataclass
class Lerp:
    """`x + alpha (target - x)`: a point on the line from the activation to `target`, as
    integrated gradients needs.
    """

    target: jax.Array
    alpha: Any
    where: Any = None
    kind: str = _kind("Lerp")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        gap = _rows(self.target, x_btd) - x_btd
        return _only(self.where, x_btd + _scalars(self.alpha, x_btd) * gap, x_btd)


@struct.dataclass
class Chain:
    """Several edits at one site, first to last; for instance several latents at once."""

    edits: tuple[Any, ...]
    kind: str = _kind("Chain")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        for edit in self.edits:
            x_btd = edit(x_btd, pos_bt)
        return x_btd


@struct.dataclass
class Pull:
    """`x + sum_m gap_m(x) push_m`: several coordinates are moved at once, all their
    gaps taken from the same x.

    Args:
      push: `[m, d]` or `[b, m, d]`.
      state: pytree that `gap_fn` reads, for instance directions and target values.
      gap_fn: static; `(state, x_btd) -> gap_btm`.
    """

    push: jax.Array
    state: Any
    gap_fn: Callable[[Any, jax.Array], jax.Array] = struct.field(pytree_node=False)
    kind: str = _kind("Pull")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        gap_btm = self.gap_fn(self.state, x_btd).astype(x_btd.dtype)
        push = jnp.asarray(self.push, x_btd.dtype)
        formula = "btm,bmd->btd"
        if push.ndim == 2:
            formula = "btm,md->btd"
        # At default precision a TPU would round both factors to bf16.
        return x_btd + jnp.einsum(formula, gap_btm, push, precision="highest")


@struct.dataclass
class Below:
    """Another edit at the tokens whose norm does not exceed a limit, `[]` or `[b]`:
    attention sinks stay as they are.
    """

    edit: Any
    limit: Any
    kind: str = _kind("Below")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        norm_bt = jnp.linalg.norm(x_btd.astype(jnp.float32), axis=-1)
        limit = jnp.asarray(self.limit, jnp.float32).reshape(-1, 1)
        return _only(norm_bt <= limit, self.edit(x_btd, pos_bt), x_btd)


@struct.dataclass
class Within:
    """Another edit at the positions `start <= pos < stop` of each row, and nowhere
    else; both `[]` or `[b]`.

    It looks at positions, not at places in the array, and so means the same for a whole
    row and for a single new token of generation with a cache.
    """

    edit: Any
    start: Any = 0
    stop: Any = NO_END
    kind: str = _kind("Within")

    def __call__(self, x_btd: jax.Array, pos_bt: jax.Array) -> jax.Array:
        rows = lambda end: jnp.asarray(end, pos_bt.dtype).reshape(-1, 1)
        where_bt = (rows(self.start) <= pos_bt) & (pos_bt < rows(self.stop))
        return _only(where_bt, self.edit(x_btd, pos_bt), x_btd)
