"""Interventions on the rows of a batch, each with its own latents and strengths, as
edits that work with a cache.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.hooks import NO_END, Add, Edit, Pull, Within
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.sae.model import SAE, code_rows, code_scale, encode, encode_latents

MODES = ("add", "set", "project_out", "clamp")
TOKENS = ("all", "prompt", "generated")


def intervention(
    directions_bmd: jax.Array,
    strengths_bm: jax.Array,
    *,
    mode: str = "add",
    sae: SAE | None = None,
    latents_bm: jax.Array | None = None,
) -> Edit:
    """The edit that moves m coordinates of every row at once; a direction of zeros, or
    latent -1, changes nothing.

    With D the directions of a row and c its strengths, modes are

        add          x + sum_m c_m d_m                   (method, section 4)
        set          x + D⁺ (c - D x), so that D x = c: the smallest change that puts every x . d_m to c_m
        project_out  x - D⁺ (c * D x): c = 1 takes the part of x in the span of D out, 0 leaves it (the same c for all m)
        clamp        x + sum_m (c_m - z_m(x)) dec_m: codes are put to c and what the SAE does not explain stays

    Args:
      directions_bmd: need not have unit length; not read by clamp.
      strengths_bm: in the units of the direction (add, set), a share (project_out) or
        codes (clamp).
      sae, latents_bm: of clamp.

    Raises:
      ValueError: an unknown mode, clamp without an SAE, or with a transcoder or
        crosscoder, whose codes are not functions of this site alone.
    """
    if mode == "add":
        return Add(
            jnp.einsum("bm,bmd->bd", strengths_bm, directions_bmd, precision="highest")
        )
    if mode in ("set", "project_out"):
        value, share = (
            (strengths_bm, 1.0)
            if mode == "set"
            else (jnp.zeros_like(strengths_bm), strengths_bm)
        )
        share_bm = jnp.broadcast_to(
            jnp.asarray(share, strengths_bm.dtype), strengths_bm.shape
        )
        return Pull(
            _inverse(directions_bmd), (directions_bmd, value, share_bm), _projection_gap
        )
    if mode != "clamp":
        raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if sae is None or latents_bm is None:
        raise ValueError(
            "mode clamp needs the SAE and, instead of directions, its latents; pass "
            "sae= and integers"
        )
    _check_clamp(sae)
    rows_bmd = jnp.where(
        latents_bm[..., None] >= 0, code_rows(sae)[jnp.maximum(latents_bm, 0)], 0
    )
    return Pull(rows_bmd, (sae, jnp.maximum(latents_bm, 0), strengths_bm), _code_gap)


def scope(
    tokens: str, prompt_lengths_b: Any, *, skip: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Half-open range of positions `[b]`, `[b]` on which rows that begin with a prompt
    are steered.

    A token's position is its own, not that of the token it predicts. `prompt` are the
    positions 0 to P - 1 of a prompt of P tokens, its last one, from which the first new
    token is drawn, among them; `generated` are P, P + 1, ..., so the first new token is
    drawn unsteered and steers from then on; `all` are both.

    Args:
      tokens: all | prompt | generated.
      prompt_lengths_b: P of every row.
      skip: positions at the start of the row that are never changed (1 spares BOS).

    Raises:
      ValueError: an unknown scope.
    """
    if tokens not in TOKENS:
        raise ValueError(
            f"tokens {tokens!r} is unknown; choose one of {', '.join(TOKENS)}"
        )
    length_b = jnp.asarray(prompt_lengths_b, jnp.int32)
    start_b = jnp.maximum(length_b if tokens == "generated" else 0, skip)
    stop_b = length_b if tokens == "prompt" else jnp.full_like(length_b, NO_END)
    return jnp.broadcast_to(start_b, length_b.shape), stop_b


def scoped(edit: Edit, tokens: str, prompt_lengths_b: Any, *, skip: int = 0) -> Edit:
    """The edit on the tokens of a `scope` only; each position is changed once, when it
    is read.
    """
    return Within(edit, *scope(tokens, prompt_lengths_b, skip=skip))


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
    """Codes `[b, t, m]` of each row's own latents; a gate that compares latents has to
    compute them all.
    """
    if sae.cfg.gate in LOCAL_GATES:
        return jax.vmap(lambda x_td, latents_m: encode_latents(sae, x_td, latents_m))(
            x_btd, latents_bm
        )
    return jnp.take_along_axis(encode(sae, x_btd), latents_bm[:, None, :], axis=2)


def _check_clamp(sae: SAE) -> None:
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
