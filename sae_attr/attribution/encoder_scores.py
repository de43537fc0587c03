"""The encoder's own view of a latent, and what the SAE does not explain
(docs/method.md, The score).

    δ′_{i,t}  = −(g_t · r_i) (c_{i,t} − mean c_i)          r_i = d_i ‖dec_i‖, the decoder row
    δ_err,t   = −g_t · (e_t − mean e),                     e_t = a_t − SAE(a_t)

c = z · scale_t is the code z, times the factor by which the decoder scales that token
(1 unless the SAE has a norm per token); means are over the corpus. An SAE without such
a norm and without a skip connection decomposes the activation, so

    Σ_i δ′_{i,t} + δ_err,t = −g_t · (a_t − ā)

exactly, with ā over the same positions as mean c and mean e.

A transcoder encodes another site than it writes to: codes are then of that site, a_t,
g_t and e_t of the one written to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.prompt_merge import MergedTokens
from sae_attr.attribution.token_table import block_length, padded
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.sae.model import (
    SAE,
    code_rows,
    code_scale,
    decode,
    encode,
    encode_latents,
)

NUMBERS = 2**25  # codes that are alive at a time


def contributions(
    sae: SAE, x: jax.Array, latents: jax.Array | None = None
) -> jax.Array:
    """Computes c = z · scale_t of all or of some latents, `[..., n]` or `[..., k]`, at
    least float32.

    Raises ValueError for a crosscoder, whose code belongs to several sites at once.
    """
    if sae.cfg.streams > 1:
        raise ValueError(
            f"a crosscoder of {sae.cfg.streams} streams has no codes of one site; "
            "score its decoder rows alone"
        )
    if latents is None:
        codes = encode(sae, x)
    elif sae.cfg.gate in LOCAL_GATES and not sae.cfg.block_encoder:
        codes = encode_latents(sae, x, latents)
    else:
        # A gate such as top-k compares a latent with all others.
        codes = encode(sae, x)[..., latents]
    codes = codes.astype(jnp.promote_types(codes.dtype, jnp.float32))
    return codes * code_scale(sae, x).astype(codes.dtype)


def code_scores(
    codes: jax.Array, grads: jax.Array, rows_kd: jax.Array, mean_k: jax.Array
) -> jax.Array:
    """Computes δ′ of every token and latent, `[..., k]`.

    Args:
      codes: c, `[..., k]`.
      grads: `[..., d]`; a weight per token may be folded in.
      rows_kd: decoder rows as they are used (`code_rows`), not scaled to unit norm.
      mean_k: mean c over the corpus.
    """
    push = -jnp.einsum(
        "...d,kd->...k", grads, rows_kd, precision=jax.lax.Precision.HIGHEST
    )
    return push * (codes - mean_k)


def attribute_codes(
    sae: SAE,
    acts_btd: jax.Array,
    grads_btd: jax.Array,
    weights_bt: jax.Array,
    mean_n: jax.Array,
) -> jax.Array:
    """Computes Σ_t w_t δ′_{i,t} per completion and latent, `[b, n]`: `attribute` with the
    SAE's codes for the projections.

    Args:
      acts_btd: at the site that the SAE reads.
      grads_btd: at the site that it writes to; for an SAE the same.
      weights_bt: weight of every token, 0 where it does not count.
      mean_n: mean c over the corpus (`CodeStatistics.mean_n`).
    """

    def row(item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        acts_td, grads_td, weights_t = item
        codes_tn = contributions(sae, acts_td)
        delta_tn = code_scores(codes_tn, grads_td, code_rows(sae), mean_n)
        return jnp.einsum(
            "t,tn->n", weights_t, delta_tn, precision=jax.lax.Precision.HIGHEST
        )

    # One completion at a time: `[t, n]` codes are in memory, not `[b, t, n]`.
    return jax.lax.map(row, (acts_btd, grads_btd, weights_bt))


def error_scores(
    sae: SAE, acts: jax.Array, reads: jax.Array, grads: jax.Array, mean_m: jax.Array
) -> jax.Array:
    """Computes δ_err of every token, `[...]`.

    Args:
      acts: a_t, what the SAE reconstructs.
      reads: what it encodes; for an SAE the same.
      grads: gradient at `acts`.
      mean_m: mean e over the corpus (`CodeStatistics.error_m`).
    """
    error = acts - decode(sae, encode(sae, reads), reads)
    return -jnp.sum(grads * (error - mean_m), axis=-1)


class _Tokens(NamedTuple):
    """A block of merged tokens."""

    reads_jd: Any
    acts_jd: Any
    grads_jd: Any


def encoder_prompt_scores(
    merged: MergedTokens,
    sae: SAE,
    mean_n: np.ndarray,
    latents: np.ndarray | None = None,
) -> np.ndarray:
    """Computes Δ′ within each prompt, `[p, k]`, of some latents or of all; the mean over
    prompts is Δ′.
    """
    width = sae.cfg.n_latents
    if latents is not None:
        latents, width = np.asarray(latents), len(latents)
    return _by_prompt(merged, sae, _code_scores, (mean_n, latents), width)


def _code_scores(
    sae: SAE, tokens: _Tokens, mean_n: jax.Array, latents: jax.Array | None
) -> jax.Array:
    rows_kd, mean_k = code_rows(sae), mean_n
    if latents is not None:
        rows_kd, mean_k = rows_kd[latents], mean_n[latents]
    codes = contributions(sae, tokens.reads_jd, latents)
    return code_scores(codes, tokens.grads_jd, rows_kd, mean_k)


def fires_on_pairs(merged: MergedTokens, sae: SAE, latents: np.ndarray) -> np.ndarray:
    """Returns the share of prompts in which each of some latents fires on a counted
    token, `[k]`.
    """
    some = (np.asarray(latents),)
    firings_pk = _by_prompt(merged, sae, _fires, some, len(latents))
    return (firings_pk > 0).mean(0)


def _fires(sae: SAE, tokens: _Tokens, latents: jax.Array) -> jax.Array:
    # Padding is zeros, and an encoder with a bias may fire on zeros.
    is_token = jnp.any(tokens.reads_jd != 0, axis=-1, keepdims=True)
    fires = contributions(sae, tokens.reads_jd, latents) != 0
    return (is_token & fires).astype(jnp.float32)


def error_prompt_scores(
    merged: MergedTokens, sae: SAE, mean_m: np.ndarray, mean_d: np.ndarray
) -> np.ndarray:
    """Computes Δ_err and the whole −g·(a − ā) within each prompt, `[p, 2]`: how much of
    the first order lies outside the SAE.
    """
    return _by_prompt(merged, sae, _error_and_whole, (mean_m, mean_d), 2)


def _error_and_whole(
    sae: SAE, tokens: _Tokens, mean_m: jax.Array, mean_d: jax.Array
) -> jax.Array:
    reads, acts, grads = tokens
    error = error_scores(sae, acts, reads, grads, mean_m)
    whole = -jnp.sum(grads * (acts - mean_d), axis=-1)
    return jnp.stack([error, whole], axis=-1)


@partial(jax.jit, static_argnames=("score", "prompts"))
def _block_sums(
    sae: SAE,
    tokens: _Tokens,
    segments: jax.Array,
    given: tuple[Any, ...],
    *,
    score: Callable[..., jax.Array],
    prompts: int,
) -> jax.Array:
    scores = score(sae, tokens, *given)
    return jax.ops.segment_sum(scores, segments, num_segments=prompts)


def _by_prompt(
    merged: MergedTokens,
    sae: SAE,
    score: Callable[..., jax.Array],
    given: tuple[Any, ...],
    width: int,
) -> np.ndarray:
    """Sums of a score over each prompt's tokens, `[p, width]`, float64, a block of
    tokens at a time.

    Args:
      score: `(sae, tokens, *given) -> [j, width]`; one of this module, so that calls
        with the same shapes share a program.
    """
    count = len(merged.prompt_j)
    block = block_length(count, max(1, NUMBERS // sae.cfg.n_latents))
    # Blocks are summed in float64: a prompt's tokens may lie in several of them.
    total_pk = np.zeros((merged.prompts, width))
    for start in range(0, count, block):
        part = slice(start, start + block)
        prompt_j = merged.prompt_j[part]
        # Padding goes to prompt 0. Its gradients are zero, and so is every score.
        segments = np.pad(prompt_j, (0, block - len(prompt_j)))
        arrays = (merged.reads_jd, merged.acts_jd, merged.grads_jd)
        sums_pk = _block_sums(
            sae,
            _Tokens(*(padded(array_jd[part], block) for array_jd in arrays)),
            segments,
            given,
            score=score,
            prompts=merged.prompts,
        )
        total_pk += np.asarray(sums_pk)
    return total_pk
