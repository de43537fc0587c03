"""δ and Δ of every latent: token by token, or through the moment (docs/method.md, The
score; The moment).

    δ_{i,t} = −(g_t · d_i) ((a_t − ā) · d_i)          d_i the unit decoder row
    Δ_i     = −d_iᵀ ΔM d_i,   ΔM = Σ w g (a − ā)ᵀ     w = ±1 / (prompts · T_row)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from sae_attr.attribution.decoder_pass import (
    check_width,
    score_dictionary,
    score_rows,
)
from sae_attr.files.row_source import RowSource
from sae_attr.sae.model import unit_decoder

GATINGS = ("both", "active", "gated", "quadrant")


def _check_gating(gating: str) -> None:
    if gating not in GATINGS:
        raise ValueError(
            f"gating {gating!r} is unknown; choose one of {', '.join(GATINGS)}"
        )


# ---- token by token ------------------------------------------------------------------


def token_scores(
    acts: jax.Array,
    grads: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    gating: str = "both",
) -> jax.Array:
    """Computes δ of every token and latent, `[..., n]`.

        both, gated   −g·d · (a − ā)·d         (the gate itself is in `attribute`)
        active        −g·d · max((a − ā)·d, 0)
        quadrant      max(−g·d, 0) · max((a − ā)·d, 0)

    Args:
      acts, grads: `[..., d]`, the site's activations and gradients; a weight per token
        may be folded into `grads`.
      dec_nd: unit decoder rows.
      mean_d: ā.
    """
    _check_gating(gating)
    project = partial(jnp.einsum, "...d,nd->...n", precision=jax.lax.Precision.HIGHEST)
    push = -project(grads, dec_nd)
    presence = project(acts - mean_d, dec_nd)
    if gating in ("active", "quadrant"):
        presence = jnp.maximum(presence, 0)
    if gating == "quadrant":
        push = jnp.maximum(push, 0)
    return push * presence


def attribute(
    acts_btd: jax.Array,
    grads_btd: jax.Array,
    weights_bt: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    *,
    gating: str = "both",
    chunk: int = 1024,
) -> jax.Array:
    """Computes Σ_t w_t δ_{i,t} per completion and latent, `[b, n]`: a vmapped einsum
    over chunks of latents.

    With w = mask / T_row this is mean_t δ, the attribution of one completion.

    Args:
      acts_btd, grads_btd: from `act_and_grad`, or cached elsewhere.
      weights_bt: weight of every token, 0 where it does not count.
      dec_nd: decoder rows of any norm; they are scaled to unit norm here.
      mean_d: ā.
      gating: one of `GATINGS`. `gated` keeps the latents whose weighted push −Σ_{b,t} w
        g·d over all rows of this call is positive, so give it the rows with their signs
        in the weights.
      chunk: latents at a time; `b * t * chunk` numbers are in memory.

    Raises:
      ValueError: unknown `gating`, or a dictionary of another width than the
        activations.
    """
    _check_gating(gating)
    check_width(dec_nd.shape[-1], acts_btd.shape[-1])
    n, d = dec_nd.shape
    chunk = min(chunk, n)
    chunks_mcd = jnp.pad(dec_nd, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, d)
    total_d = jnp.einsum(
        "bt,btd->d", weights_bt, grads_btd, precision=jax.lax.Precision.HIGHEST
    )

    def score_chunk(dec_cd: jax.Array) -> jax.Array:
        dec_cd = unit_decoder(dec_cd)

        def score_row(
            acts_td: jax.Array, grads_td: jax.Array, weights_t: jax.Array
        ) -> jax.Array:
            delta_tc = token_scores(acts_td, grads_td, dec_cd, mean_d, gating)
            return jnp.sum(weights_t[:, None] * delta_tc, axis=0)

        scores_bc = jax.vmap(score_row)(acts_btd, grads_btd, weights_bt)
        if gating == "gated":
            scores_bc = scores_bc * (jnp.sum(dec_cd * total_d, axis=-1) < 0)
        return scores_bc

    scores_mbc = jax.lax.map(score_chunk, chunks_mcd)
    return jnp.moveaxis(scores_mbc, 0, 1).reshape(acts_btd.shape[0], -1)[:, :n]


# ---- through the moment --------------------------------------------------------------


@struct.dataclass
class Moment:
    """`s_dd` = Σ w g aᵀ and `g_d` = Σ w g: all that Δ needs of a data set.

    Moments add up, and ā may be chosen afterwards.
    """

    s_dd: jax.Array
    g_d: jax.Array

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.s_dd + other.s_dd, self.g_d + other.g_d)


def moment(acts: jax.Array, grads: jax.Array, weights: jax.Array) -> Moment:
    """Computes the moment of tokens `[..., d]` with signed weights `[...]`."""
    weighted = grads * weights[..., None]
    s_dd = jnp.einsum(
        "...d,...e->de", weighted, acts, precision=jax.lax.Precision.HIGHEST
    )
    return Moment(s_dd, jnp.sum(weighted, axis=tuple(range(weighted.ndim - 1))))


@jax.jit
def quadratic_form(m: Moment, mean_d: jax.Array) -> jax.Array:
    """Returns the symmetric part of ΔM = S − G āᵀ, `[d, d]`: Δ_i = −d_iᵀ ΔM d_i."""
    m_dd = m.s_dd - jnp.outer(m.g_d, mean_d)
    return (m_dd + m_dd.T) / 2


@jax.jit
def best_direction(m: Moment, mean_d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the highest score that any unit direction could get, −λ_min of ΔM, and
    that direction.
    """
    values, vectors = jnp.linalg.eigh(quadratic_form(m, mean_d))
    return -values[0], vectors[:, 0]


def score_moment(
    m: Moment, mean_d: jax.Array, dec_nd: jax.Array | RowSource, *, chunk: int = 8192
) -> jax.Array:
    """Computes Δ of every latent `[n]` from the moment: 2·n·d² operations, however many
    tokens and pairs there are.

    Args:
      dec_nd: decoder rows of any norm: an array (composes under jit), or a `RowSource`,
        which is streamed.
      chunk: rows at a time; `chunk * d` numbers are in memory beside them.
    """
    form_dd = quadratic_form(m, mean_d)
    if isinstance(dec_nd, RowSource):
        scores = score_dictionary(dec_nd, {"both": form_dd}, {}, chunk=chunk)
        return jnp.asarray(scores["both"])
    check_width(dec_nd.shape[-1], form_dd.shape[0])
    n, d = dec_nd.shape
    chunk = min(chunk, n)
    no_vectors_kd = jnp.zeros((0, d), dec_nd.dtype)

    def score(dec_cd: jax.Array) -> jax.Array:
        quadratic_qc, _ = score_rows(dec_cd, form_dd[None], no_vectors_kd)
        return quadratic_qc[0]

    def score_chunk(i: jax.Array) -> jax.Array:
        return score(jax.lax.dynamic_slice_in_dim(dec_nd, i * chunk, chunk))

    whole = n // chunk * chunk
    head_n = jax.lax.map(score_chunk, jnp.arange(n // chunk)).reshape(-1)
    if whole == n:
        return head_n
    return jnp.concatenate([head_n, score(dec_nd[whole:])])
