"""Comparison at equal sparsity: more active latents always explain more, so that alone is
no improvement.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.sae.gates import safe_norm
from sae_attr.sae.metrics import (
    Reconstruction,
    bare,
    explained_variance,
    fit_sums,
    reconstruct_tokens,
)
from sae_attr.sae.model import SAE, decode, encode

SLACK = 1.1  # L0 may be so many times that of the SAE as loaded and counts as equal
_BLOCK = 2**24  # codes in memory at once


class Sparse(NamedTuple):
    """A reconstruction, and the L0 that the SAE had before its smallest codes were left
    out.
    """

    recon: Reconstruction
    l0: float


def reconstruct_at(sae: SAE, acts_kd: np.ndarray, most: float) -> Sparse:
    """Reconstructs tokens `[k, d]` with at most `most` active latents on average.

    Where the SAE fires more, one threshold for all codes is raised until it does not: a
    code counts by its length in the output, |code| · |decoder row|. So a variant cannot
    win by opening the gate.
    """
    whole = reconstruct_tokens(sae, acts_kd)
    active = float(whole.active_k.mean()) if len(whole.active_k) else 0.0
    if active <= most * SLACK:
        return Sparse(whole, active)
    plain = bare(sae)
    cut = _cut(plain, acts_kd, most)
    parts = []
    for x_kd, valid_k in _blocks(acts_kd, sae.cfg.n_latents):
        parts.append(_cut_block(plain, x_kd, valid_k, cut))
    recon_kd, active_k, fired_n = (
        np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(3)
    )
    n = sae.cfg.n_latents
    fired_n = fired_n.reshape(-1, n).sum(0, dtype=np.int64)
    return Sparse(
        Reconstruction(recon_kd[: len(acts_kd)], active_k[: len(acts_kd)], fired_n),
        active,
    )


def variance_at(
    sae: SAE, acts_kd: np.ndarray, target_kd: np.ndarray, most: float
) -> float:
    """Returns the explained variance of `reconstruct_at`."""
    return explained_variance(
        fit_sums(target_kd, reconstruct_at(sae, acts_kd, most).recon)
    )


def _cut(sae: SAE, acts_kd: np.ndarray, most: float) -> float:
    """Returns the length of code that `most` codes a token exceed, on average."""
    count = max(1, round(most * len(acts_kd)))
    # Tokens differ in how many codes they have; beyond four times the mean the rest is
    # small.
    top = min(sae.cfg.n_latents, 4 * math.ceil(most) + 64)
    longest = []
    for x_kd, valid_k in _blocks(acts_kd, sae.cfg.n_latents):
        longest.append(np.asarray(_longest(sae, x_kd, top))[valid_k])
    lengths = np.concatenate(longest).ravel()
    place = len(lengths) - count
    return float(np.partition(lengths, place)[place])


def _blocks(acts_kd: np.ndarray, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens in blocks of one size, and which of them are no padding."""
    size = max(1, min(1024, _BLOCK // n))
    for start in range(0, len(acts_kd), size):
        part = acts_kd[start : start + size]
        yield np.pad(part, ((0, size - len(part)), (0, 0))), np.arange(size) < len(part)


def _lengths(sae: SAE, codes_kn: jax.Array) -> jax.Array:
    return jnp.abs(codes_kn) * safe_norm(sae.dec_nm)[:, 0]


@jax.jit
def _cut_block(
    sae: SAE, x_kd: jax.Array, valid_k: jax.Array, cut: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    codes_kn = encode(sae, x_kd)
    kept_kn = jnp.where(_lengths(sae, codes_kn) >= cut, codes_kn, 0)
    active_kn = (kept_kn != 0) & valid_k[:, None]
    return (
        decode(sae, kept_kn, x_kd),
        jnp.sum(active_kn, axis=1),
        jnp.sum(active_kn, axis=0),
    )


@functools.partial(jax.jit, static_argnames="top")
def _longest(sae: SAE, x_kd: jax.Array, top: int) -> jax.Array:
    return jax.lax.top_k(_lengths(sae, encode(sae, x_kd)), top)[0]
