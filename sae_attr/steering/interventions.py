"""Interventions on the rows of a batch, each row with latents and strengths of its own,
as edits that work with a cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.hooks import NO_END, Add, Edit, Pull, Within
from sae_attr.parallel import with_namespace
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.sae.model import SAE, code_rows, code_scale, encode, encode_latents

TOKENS = ("all", "prompt", "generated")


@dataclass(frozen=True, eq=False)
class SteeredCoordinates:
    """The m coordinates that are moved in every row of a batch, and by how much.

    Args:
      directions_bmd: D, one direction a coordinate; need not have unit length. A
        direction of zeros changes nothing.
      strengths_bm: c, which an intervention reads in its own way.
      sae, latents_bm: for interventions on latent activations, instead of directions;
        latent -1 changes nothing.
    """

    directions_bmd: jax.Array
    strengths_bm: jax.Array
    sae: SAE | None = None
    latents_bm: jax.Array | None = None


def add(rows: SteeredCoordinates) -> Edit:
    """Returns x + sum_m c_m d_m (docs/method.md, Steering)."""
    shift_bd = jnp.einsum(
        "bm,bmd->bd", rows.strengths_bm, rows.directions_bmd, precision="highest"
    )
    return Add(shift_bd)


def set_projections(rows: SteeredCoordinates) -> Edit:
    """Returns x + D⁺ (c - D x), so that D x = c: the smallest change that moves every
    x . d_m to c_m.
    """
    whole_bm = jnp.ones_like(rows.strengths_bm)
    return _pulled(rows.directions_bmd, rows.strengths_bm, whole_bm)


def project_out(rows: SteeredCoordinates) -> Edit:
    """Returns x - D⁺ (c * D x): c = 1 removes the part of x in the span of D, 0 leaves
    it (the same c for all m).
    """
    nought_bm = jnp.zeros_like(rows.strengths_bm)
    return _pulled(rows.directions_bmd, nought_bm, rows.strengths_bm)


def clamp(rows: SteeredCoordinates) -> Edit:
    """Returns x + sum_m (c_m - z_m(x)) dec_m: latent activations are set to c, and what
    the SAE does not explain stays.

    Raises:
      ValueError: no SAE, or a transcoder or crosscoder, whose latent activations are no
        functions of this site alone.
    """
    if rows.sae is None or rows.latents_bm is None:
        raise ValueError(
            "mode clamp needs the SAE and, instead of directions, its latents; pass "
            "sae= and integers"
        )
    check_clamp(rows.sae)
    present_bm = rows.latents_bm >= 0
    latents_bm = jnp.maximum(rows.latents_bm, 0)
    dec_bmd = jnp.where(present_bm[..., None], code_rows(rows.sae)[latents_bm], 0)
    return Pull(dec_bmd, (rows.sae, latents_bm, rows.strengths_bm), _code_gap)


def set_activations(
    sae: SAE,
    latents_k: Any,
    values_k: Any,
    *,
    unedited: int = 0,
) -> Edit:
    """Returns the edit that sets one latent activation a row to a value, its part of
    the decoder's output in the units of `code_rows`; what the SAE does not explain
    stays.

    Args:
      sae: of these latents at least; the whole of a gate that compares latents.
      latents_k: one latent of it a row.
      values_k: activation times the SAE's scale of the token.
      unedited: rows before these in which nothing changes.

    Raises:
      ValueError: as `clamp`.
    """
    check_clamp(sae)

    def gap(state: tuple[jax.Array, jax.Array], x_btd: jax.Array) -> jax.Array:
        latents_b1, value_b1 = state
        codes_bt1 = row_codes(sae, x_btd, latents_b1) * code_scale(sae, x_btd)
        return value_b1[:, None] - codes_bt1

    latents_k = jnp.asarray(latents_k, jnp.int32)
    push_kd = jnp.pad(code_rows(sae)[latents_k], ((unedited, 0), (0, 0)))
    latents_k = jnp.pad(latents_k, (unedited, 0))
    values_k = jnp.pad(jnp.asarray(values_k, jnp.float32), (unedited, 0))
    return Pull(push_kd[:, None], (latents_k[:, None], values_k[:, None]), gap)


@dataclass(frozen=True)
class Intervention:
    """One way to steer: a line of `INTERVENTIONS`.

    Args:
      edit: the function, `SteeredCoordinates -> Edit`.
      meaning: for readers.
      in_norms: strengths are multiples of the site's mean norm; else plain numbers.
      of_latents: it reads latents of an SAE instead of directions.
    """

    edit: Callable[[SteeredCoordinates], Edit]
    meaning: str
    in_norms: bool = False
    of_latents: bool = False


# Every mode of `steer` and of experiments.steer: a new one is a function and a line.
INTERVENTIONS: dict[str, Intervention] = {
    "add": Intervention(add, "adds c·d", in_norms=True),
    "set": Intervention(set_projections, "sets the projection on d to c", in_norms=True),
    "project_out": Intervention(project_out, "removes a share c of the projection on d"),
    "clamp": Intervention(clamp, "sets the latent activation to c", of_latents=True),
}  # fmt: skip


def intervention_named(mode: str) -> Intervention:
    """Returns the intervention of a mode; raises ValueError for a mode that does not
    exist.
    """
    if mode not in INTERVENTIONS:
        names = ", ".join(INTERVENTIONS)
        raise ValueError(f"mode {mode!r} is unknown; choose one of {names}")
    return INTERVENTIONS[mode]


def intervention(
    directions_bmd: jax.Array,
    strengths_bm: jax.Array,
    *,
    mode: str = "add",
    sae: SAE | None = None,
    latents_bm: jax.Array | None = None,
) -> Edit:
    """Returns the edit that moves m coordinates of every row at once.

    Args:
      directions_bmd, strengths_bm, sae, latents_bm: see `SteeredCoordinates`.
      mode: of `INTERVENTIONS`.

    Raises:
      ValueError: an unknown mode, or what the intervention refuses.
    """
    rows = SteeredCoordinates(directions_bmd, strengths_bm, sae, latents_bm)
    return intervention_named(mode).edit(rows)


def scope(tokens: str, prompt_lengths_b: Any, *, skip: int = 0) -> tuple[Any, Any]:
    """Returns the half-open range of positions `[b]`, `[b]` on which rows that begin
    with a prompt are steered.

    A token's position is its own, not that of the token it predicts. `prompt` are the
    positions 0 to P - 1 of a prompt of P tokens, its last one, from which the first new
    token is drawn, among them; `generated` are P, P + 1, ..., so the first new token is
    drawn unsteered and steers from then on; `all` are both.

    Args:
      tokens: all | prompt | generated.
      prompt_lengths_b: P of every row.
      skip: positions at the start of the row that are never changed (1 spares BOS).

    Returns:
      Start and stop, int32; numpy where the arguments are on the host.

    Raises:
      ValueError: an unknown scope.
    """
    if tokens not in TOKENS:
        raise ValueError(
            f"tokens {tokens!r} is unknown; choose one of {', '.join(TOKENS)}"
        )
    xp, length_b, first = with_namespace(prompt_lengths_b, skip)
    length_b = length_b.astype(xp.int32)
    begin_b = length_b if tokens == "generated" else xp.zeros_like(length_b)
    start_b = xp.maximum(begin_b, first)
    stop_b = length_b if tokens == "prompt" else xp.full_like(length_b, NO_END)
    return start_b, stop_b


def scoped(edit: Edit, tokens: str, prompt_lengths_b: Any, *, skip: int = 0) -> Edit:
    """Returns an edit on a scope's positions alone; arguments are those of `scope`."""
    start_b, stop_b = scope(tokens, prompt_lengths_b, skip=skip)
    if tokens == "all" and not skip:
        return edit
    return Within(edit, start_b, stop_b)


def _pulled(
    directions_bmd: jax.Array, value_bm: jax.Array, share_bm: jax.Array
) -> Edit:
    """The edit that moves every projection by a share of its distance to a value."""
    state = (directions_bmd, value_bm, share_bm)
    return Pull(_inverse(directions_bmd), state, _projection_gap)


def _inverse(directions_bmd: jax.Array) -> jax.Array:
    """Columns of D⁺ as rows, `[b, m, d]`; directions of zeros get zeros, repeated ones
    share.
    """
    gram_bmm = jnp.einsum(
        "bmd,bnd->bmn", directions_bmd, directions_bmd, precision="highest"
    )
    inverse_bmm = jnp.linalg.pinv(gram_bmm, hermitian=True)
    return jnp.einsum("bmn,bnd->bmd", inverse_bmm, directions_bmd, precision="highest")


def _projection_gap(
    state: tuple[jax.Array, jax.Array, jax.Array], x_btd: jax.Array
) -> jax.Array:
    directions_bmd, value_bm, share_bm = state
    at_btm = jnp.einsum(
        "btd,bmd->btm", x_btd, directions_bmd.astype(x_btd.dtype), precision="highest"
    )
    return share_bm[:, None] * (value_bm[:, None] - at_btm)


def _code_gap(state: tuple[SAE, jax.Array, jax.Array], x_btd: jax.Array) -> jax.Array:
    sae, latents_bm, value_bm = state
    return (value_bm[:, None] - row_codes(sae, x_btd, latents_bm)) * code_scale(
        sae, x_btd
    )


def row_codes(sae: SAE, x_btd: jax.Array, latents_bm: jax.Array) -> jax.Array:
    """Returns the latent activations `[b, t, m]` of each row's own latents; a gate that
    compares latents has to compute them all.
    """
    if sae.cfg.gate in LOCAL_GATES:
        return jax.vmap(lambda x_td, latents_m: encode_latents(sae, x_td, latents_m))(
            x_btd, latents_bm
        )
    return jnp.take_along_axis(encode(sae, x_btd), latents_bm[:, None, :], axis=2)


def check_clamp(sae: SAE) -> None:
    """Raises ValueError for a transcoder or crosscoder, whose latent activations are no
    functions of one site alone.
    """
    cfg = sae.cfg
    if (
        cfg.streams > 1
        or cfg.skip
        or cfg.site_out not in (None, cfg.site)
        or cfg.d_in != cfg.d_out
    ):
        raise ValueError(
            f"mode clamp on {cfg.source or 'an SAE'} that reads {cfg.site} and writes "
            f"{cfg.site_out or cfg.site}: its codes "
            "are no function of the site that is changed; use mode add with its "
            "decoder rows"
        )
