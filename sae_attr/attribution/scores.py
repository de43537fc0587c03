"""δ and Δ for every latent of a dictionary: token by token, or through the moment
(method, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from tqdm import tqdm

from sae_attr.files.row_source import RowSource
from sae_attr.parallel import shard_rows, to_host
from sae_attr.sae.model import unit_decoder

SIDES = ("both", "active", "gated", "quadrant")


def _check_sides(sides: str) -> None:
    if sides not in SIDES:
        raise ValueError(
            f"sides {sides!r} is unknown; choose one of {', '.join(SIDES)}"
        )


def token_scores(
    acts: jax.Array,
    grads: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    sides: str = "both",
) -> jax.Array:
    """δ of every token and latent, `[..., n]`: −(g·d)((a − ā)·d), or one of the repairs
    that keep a single side.

    `both` and `gated` are the product itself (gating is a decision per latent, see
    `attribute`), `active` is −(g·d) max((a − ā)·d, 0) and `quadrant` is max(−g·d, 0)
    max((a − ā)·d, 0).

    Args:
      acts, grads: `[..., d]`, the site's activations and gradients; a weight per token
        may be folded into `grads`.
      dec_nd: unit decoder rows.
      mean_d: ā.
    """
    _check_sides(sides)
    project = partial(jnp.einsum, "...d,nd->...n", precision=jax.lax.Precision.HIGHEST)
    push, presence = -project(grads, dec_nd), project(acts - mean_d, dec_nd)
    if sides in ("active", "quadrant"):
        presence = jnp.maximum(presence, 0)
    return (jnp.maximum(push, 0) if sides == "quadrant" else push) * presence


def attribute(
    acts_btd: jax.Array,
    grads_btd: jax.Array,
    weights_bt: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    *,
    sides: str = "both",
    chunk: int = 1024,
) -> jax.Array:
    """Σ_t w_t δ_{i,t} per completion and latent, `[b, n]`: a vmapped einsum over chunks
    of latents.

    With w = mask / T_row this is mean_t δ, the post's attribution of one completion.

    Args:
      acts_btd, grads_btd: from `act_and_grad`, or cached elsewhere.
      weights_bt: weight of every token, 0 where it does not count.
      dec_nd: decoder rows of any norm; they are scaled to unit norm here.
      mean_d: ā.
      sides: one of `SIDES`. `gated` keeps the latents whose weighted push −Σ_{b,t} w
        g·d over all rows of this call is positive, so give it the rows with their signs
        in the weights.
      chunk: latents at a time; `b * t * chunk` numbers are alive.

    Raises:
      ValueError: unknown `sides`, or a dictionary of another width than the
        activations.
    """
    _check_sides(sides)
    check_width(dec_nd.shape[-1], acts_btd.shape[-1])
    n, d = dec_nd.shape
    chunk = min(chunk, n)
    padded = jnp.pad(dec_nd, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, d)
    total_d = jnp.einsum(
        "bt,btd->d", weights_bt, grads_btd, precision=jax.lax.Precision.HIGHEST
    )

    def scores(dec_cd: jax.Array) -> jax.Array:
        dec_cd = unit_decoder(dec_cd)
        row = lambda a, g, w: jnp.sum(
            w[:, None] * token_scores(a, g, dec_cd, mean_d, sides), axis=0
        )
        scores_bc = jax.vmap(row)(acts_btd, grads_btd, weights_bt)
        return (
            scores_bc * (jnp.sum(dec_cd * total_d, axis=-1) < 0)
            if sides == "gated"
            else scores_bc
        )

    scores_mbc = jax.lax.map(scores, padded)
    return jnp.moveaxis(scores_mbc, 0, 1).reshape(acts_btd.shape[0], -1)[:, :n]


def check_width(dec_width: int, acts_width: int) -> None:
    """Raises ValueError if a dictionary does not fit the activations of its site."""
    if dec_width != acts_width:
        raise ValueError(
            f"the SAE's decoder rows have {dec_width} numbers but the site's "
            f"activations have {acts_width}; this SAE "
            "belongs to another model or another site"
        )


@struct.dataclass
class Moment:
    """`s_dd` = Σ w g aᵀ and `g_d` = Σ w g: all that Δ needs of a data set. Moments add
    up; ā may be chosen afterwards.
    """

    s_dd: jax.Array
    g_d: jax.Array

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.s_dd + other.s_dd, self.g_d + other.g_d)


def moment(acts: jax.Array, grads: jax.Array, weights: jax.Array) -> Moment:
    """The moment of tokens `acts`, `grads` `[..., d]` with signed weights `[...]`, w =
    ±1 / (P · T_row).
    """
    weighted = grads * weights[..., None]
    s_dd = jnp.einsum(
        "...d,...e->de", weighted, acts, precision=jax.lax.Precision.HIGHEST
    )
    return Moment(s_dd, jnp.sum(weighted, axis=tuple(range(weighted.ndim - 1))))


def quadratic_form(m: Moment, mean_d: jax.Array) -> jax.Array:
    """Symmetric part of ΔM = S − G āᵀ, `[d, d]`; Δ_i = −d_iᵀ ΔM d_i for a unit
    direction d_i.
    """
    m_dd = m.s_dd - jnp.outer(m.g_d, mean_d)
    return (m_dd + m_dd.T) / 2


def best_direction(m: Moment, mean_d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest score that ANY unit direction could get, and that direction: −λ_min
    of ΔM's symmetric part.
    """
    values, vectors = jnp.linalg.eigh(quadratic_form(m, mean_d))
    return -values[0], vectors[:, 0]


def score_rows(
    dec_cd: jax.Array, forms_qdd: jax.Array, vectors_kd: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """−dᵀ M d and v·d for unit rows d: `[q, c]` and `[k, c]`, with one read of the
    rows.

    Rows are not normalised first; the results are divided by ‖d‖² and ‖d‖, which saves
    writing them once more.
    """
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    square_c = jnp.sum(jnp.square(dec_cd), axis=-1)
    square_c = jnp.where(square_c > 0, square_c, jnp.inf)
    quadratic = [
        -jnp.sum(product("cd,de->ce", dec_cd, m_dd) * dec_cd, axis=-1) / square_c
        for m_dd in forms_qdd
    ]
    linear_kc = product("kd,cd->kc", vectors_kd, dec_cd) * jax.lax.rsqrt(square_c)
    return jnp.stack(quadratic) if quadratic else jnp.zeros((0, len(dec_cd))), linear_kc


def score_moment(
    m: Moment, mean_d: jax.Array, dec_nd: jax.Array | RowSource, *, chunk: int = 8192
) -> jax.Array:
    """Δ of every latent `[n]` from the moment: 2·n·d² operations however many tokens
    and pairs there are.

    Args:
      dec_nd: decoder rows of any norm: an array (composes under jit), or a `RowSource`,
        which is streamed.
      chunk: rows at a time; extra memory is `chunk * d` numbers.
    """
    form_dd = quadratic_form(m, mean_d)
    if isinstance(dec_nd, RowSource):
        return jnp.asarray(
            score_dictionary(dec_nd, {"both": form_dd}, {}, chunk=chunk)["both"]
        )
    check_width(dec_nd.shape[-1], form_dd.shape[0])
    n, d = dec_nd.shape
    chunk = min(chunk, n)
    none_kd = jnp.zeros((0, d), dec_nd.dtype)
    score = lambda dec_cd: score_rows(dec_cd, form_dd[None], none_kd)[0][0]
    whole = n // chunk * chunk
    head_mc = jax.lax.map(
        lambda i: score(jax.lax.dynamic_slice_in_dim(dec_nd, i * chunk, chunk)),
        jnp.arange(n // chunk),
    )
    return (
        jnp.concatenate([head_mc.reshape(-1), score(dec_nd[whole:])])
        if whole < n
        else head_mc.reshape(-1)
    )


def score_dictionary(
    source: RowSource,
    forms: Mapping[str, jax.Array],
    vectors: Mapping[str, jax.Array],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 65536,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Scores of every quadratic form and every vector for a whole dictionary, in one
    pass over its rows.

    Args:
      source: decoder rows, in memory or on disk; only `chunk` of them are in memory at
        a time.
      forms: name -> symmetric `[d, d]`; the score is −dᵀ M d for unit d.
      vectors: name -> `[d]`; the score is v·d for unit d.
      mesh: rows of a chunk are spread over all its devices.

    Returns:
      name -> float32 `[n]`.

    Raises:
      ValueError: widths differ, or a score is NaN or infinite.
    """
    n, d = source.shape
    check_width(d, next(iter([*forms.values(), *vectors.values()])).shape[-1])
    if set(forms) & set(vectors):
        raise ValueError(
            "a form and a vector are both called "
            f"{sorted(set(forms) & set(vectors))[0]!r}; rename one"
        )
    forms_qdd = jnp.stack(list(forms.values())) if forms else jnp.zeros((0, d, d))
    vectors_kd = jnp.stack(list(vectors.values())) if vectors else jnp.zeros((0, d))
    out = {name: np.empty(n, np.float32) for name in (*forms, *vectors)}
    chunk = min(chunk, n)
    score = jax.jit(score_rows)
    for start in tqdm(
        range(0, n, chunk), desc="score latents", unit="chunk", disable=not progress
    ):
        rows_cd = source.rows(start, min(start + chunk, n))
        count = len(rows_cd)
        if count < chunk:  # one compiled shape
            rows_cd = np.concatenate(
                [rows_cd, np.zeros((chunk - count, d), rows_cd.dtype)]
            )
        scores = score(
            shard_rows(rows_cd, mesh) if mesh is not None else rows_cd,
            forms_qdd,
            vectors_kd,
        )
        for name, values_c in zip(
            out, np.concatenate([to_host(s) for s in scores]), strict=True
        ):
            out[name][start : start + count] = values_c[:count]
    check_finite(out)
    return out


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
