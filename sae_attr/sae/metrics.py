"""How well an SAE does on given activations: sums that add up over batches, and the
numbers that follow from them.

There is ONE explained variance here: 1 − SS_res / SS_tot, where SS_tot is taken about
each dimension's mean over the whole set, both are pooled over dimensions and tokens,
and both are in the raw units of the site, whatever the SAE normalises inside. (The mean
of per-batch or per-token ratios is another number, and so is 1 − SS_res / Σ|x|².)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.sae.model import SAE, SAEConfig, decode, encode

_BLOCK = 2**24  # codes in memory at once


@dataclass(frozen=True, eq=False)
class FitSums:
    """Sums over tokens, in float64; `a + b` is the sums of both sets, so batches of any
    size give the same numbers.

    Args:
      tokens: how many.
      sum_d: Σ x.
      squares: Σ |x|².
      residual: Σ |x − y|², y the reconstruction.
      active: Σ number of latents with a code other than 0.
      fired_n: int64, tokens on which each latent's code is not 0.
    """

    tokens: int
    sum_d: np.ndarray
    squares: float
    residual: float
    active: float
    fired_n: np.ndarray

    def __add__(self, other: FitSums) -> FitSums:
        sums = []
        for name in self.__dataclass_fields__:
            sums.append(getattr(self, name) + getattr(other, name))
        return FitSums(*sums)


class Reconstruction(NamedTuple):
    """`recon_kd` float32; `active_k` latents active per token; `fired_n` tokens per
    latent, int64.
    """

    recon_kd: np.ndarray
    active_k: np.ndarray
    fired_n: np.ndarray


class NormRange(NamedTuple):
    """Smallest, middle and largest norm of the decoder's rows."""

    min: float
    median: float
    max: float


def reconstruct_tokens(sae: SAE, acts_kd: np.ndarray) -> Reconstruction:
    """Returns the reconstruction `[k, d_out]` of many tokens, in blocks: the codes `[k, n]` of a
    large dictionary do not fit in memory.

    Args:
      acts_kd: what the SAE reads, of a crosscoder `[k, streams, d]` or the streams side
        by side. A transcoder's output stands for the activation of another site.

    Raises:
      ValueError: activations of another width.
    """
    streams, d_in = sae.cfg.streams, sae.cfg.d_in
    acts_kd = np.asarray(acts_kd, np.float32)
    if sae.cfg.decoupled:
        raise ValueError(
            "a decoupled crosscoder has a code of every stream; a latent has no rate"
        )
    if streams > 1:
        acts_kd = acts_kd.reshape(len(acts_kd), -1)
        if acts_kd.shape[1] != streams * d_in:
            raise ValueError(
                f"a crosscoder reads {streams} streams of every token, each of width "
                f"{d_in}, but the activations have width {acts_kd.shape[1]}; give all"
            )
    acts_kd = acts_kd.reshape(-1, streams * d_in)
    block = max(1, min(1024, _BLOCK // sae.cfg.n_latents))
    recon_kd = np.empty((len(acts_kd), streams * sae.cfg.d_out), np.float32)
    active_k = np.empty(len(acts_kd), np.int64)
    fired_n = np.zeros(sae.cfg.n_latents, np.int64)
    plain = bare(sae)
    for start in range(0, len(acts_kd), block):
        part = acts_kd[start : start + block]
        # Every block has one shape, so that one program is compiled.
        padded = np.pad(part, ((0, block - len(part)), (0, 0)))
        y_kd, active, fired = _block(plain, padded, np.arange(block) < len(part))
        recon_kd[start : start + block] = np.asarray(y_kd)[: len(part)]
        active_k[start : start + block] = np.asarray(active)[: len(part)]
        fired_n += np.asarray(fired)
    return Reconstruction(recon_kd, active_k, fired_n)


@jax.jit
def _block(
    sae: SAE, x_kd: jax.Array, valid_k: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if sae.cfg.streams > 1:
        x_kd = x_kd.reshape(-1, sae.cfg.streams, sae.cfg.d_in)
    codes_kn = encode(sae, x_kd)
    active_kn = (codes_kn != 0) & valid_k[:, None]
    return (
        decode(sae, codes_kn, x_kd).reshape(len(x_kd), -1),
        jnp.sum(active_kn, axis=1),
        jnp.sum(active_kn, axis=0),
    )


def bare(sae: SAE) -> SAE:
    """Returns the same arithmetic without what the config only records: SAEs that differ in
    that alone share compiled programs.
    """
    defaults = {}
    for name in _RECORDED:
        defaults[name] = SAEConfig.__dataclass_fields__[name].default
    return replace(sae, cfg=replace(sae.cfg, **defaults))


_RECORDED = (
    "source", "architecture", "dtype", "site", "site_out", "layer", "head_index", "model_name", "context_size",
    "prepend_bos", "exclude_special", "masks", "expected_l0", "folded",
)  # fmt: skip


def fit_sums(acts_kd: np.ndarray, recon: Reconstruction) -> FitSums:
    """Returns the sums of one batch of tokens `[k, d]` and their reconstruction; ValueError
    where the widths differ.
    """
    # In float64: explained variance is a difference of two sums that are nearly equal.
    x_kd = np.asarray(acts_kd, np.float64)
    x_kd = x_kd.reshape(len(x_kd), int(np.prod(x_kd.shape[1:])))
    if x_kd.shape != recon.recon_kd.shape:
        raise ValueError(
            f"activations have width {x_kd.shape[1]} but the SAE writes "
            f"{recon.recon_kd.shape[1]}; a transcoder is compared "
            "with what it stands for, not with what it reads"
        )
    return FitSums(
        tokens=len(x_kd),
        sum_d=x_kd.sum(0),
        squares=float(np.sum(x_kd * x_kd)),
        residual=float(np.sum((x_kd - recon.recon_kd) ** 2)),
        active=float(recon.active_k.sum()),
        fired_n=recon.fired_n.astype(np.int64),
    )


def fit(sae: SAE, acts_kd: np.ndarray, target_kd: np.ndarray | None = None) -> FitSums:
    """Returns `fit_sums` of an SAE on tokens `[k, d]`; a transcoder is compared with
    `target_kd`.
    """
    return fit_sums(
        acts_kd if target_kd is None else target_kd, reconstruct_tokens(sae, acts_kd)
    )


def explained_variance(sums: FitSums) -> float:
    """Returns 1 − SS_res / SS_tot about the per-dimension mean, pooled, raw units; NaN where
    the set does not vary.
    """
    # Σ|x|² - |Σx|²/k: sums of batches, which a two-pass variance would not allow.
    total = sums.squares - float(sums.sum_d @ sums.sum_d) / max(sums.tokens, 1)
    return 1.0 - sums.residual / total if total > 0 else float("nan")


def mse(sums: FitSums) -> float:
    """Returns Σ |x − y|² / (tokens · d): the mean squared error of one coordinate."""
    return (
        sums.residual / (sums.tokens * len(sums.sum_d)) if sums.tokens else float("nan")
    )


def l0(sums: FitSums) -> float:
    """Returns the mean number of active latents of a token."""
    return sums.active / sums.tokens if sums.tokens else float("nan")


def dead_share(sums: FitSums) -> float:
    """Returns the share of latents that fired on none of the tokens: an upper bound of the share
    that never fires.
    """
    return float(np.mean(sums.fired_n == 0))


class Density(NamedTuple):
    """Latents by the decimal logarithm of their firing rate: `edges [k + 1]`, `counts
    [k]`, and `dead`, which never fired.
    """

    edges: np.ndarray
    counts: np.ndarray
    dead: int


def density(sums: FitSums, *, bins_per_decade: int = 4) -> Density:
    """Returns the histogram of log10 firing rates, from the rarest that the set can tell (one
    token) to 1.

    Raises ValueError for a set without a token.
    """
    if not sums.tokens:
        raise ValueError("no token to count firings on; give more text")
    decades = max(1, int(np.ceil(np.log10(sums.tokens))))
    edges = np.linspace(-decades, 0, decades * bins_per_decade + 1)
    alive_n = sums.fired_n[sums.fired_n > 0]
    counts, _ = np.histogram(np.log10(alive_n / sums.tokens), edges)
    return Density(edges, counts, int(np.sum(sums.fired_n == 0)))


def decoder_norms(sae: SAE) -> NormRange:
    """Returns smallest, middle and largest norm of the decoder's rows, as loaded."""
    norms_n = np.linalg.norm(np.asarray(sae.dec_nm, np.float32), axis=1)
    return NormRange(
        float(norms_n.min()), float(np.median(norms_n)), float(norms_n.max())
    )


def encoder_decoder_cosine(sae: SAE, fired_n: np.ndarray) -> float:
    """Returns the median cosine between a latent's encoder column and its own decoder row, over
    latents that fired.

    A trained SAE reads about the direction that it writes; near 0 the two matrices are
    not of the same latents (or not in the same order, or one of them is laid out
    transposed). NaN for a transcoder, whose two matrices live in two spaces.
    """
    if sae.cfg.site_out not in (None, sae.cfg.site) or sae.cfg.d_in != sae.cfg.d_out:
        return float("nan")
    live = np.flatnonzero(fired_n) if np.any(fired_n) else np.arange(sae.cfg.n_latents)
    enc_dk = np.asarray(sae.enc_dn, np.float32)[:, live]
    dec_km = np.asarray(sae.dec_nm, np.float32)[live]
    norms_k = np.linalg.norm(enc_dk, axis=0) * np.linalg.norm(dec_km, axis=1)
    dots_k = np.einsum("dk,kd->k", enc_dk, dec_km)
    return float(np.median(dots_k / np.where(norms_k > 0, norms_k, 1)))


def max_decoder_cosine(sae: SAE, fired_n: np.ndarray) -> float:
    """Returns the mean, over latents that fired, of the largest |cosine| between a
    latent's decoder row and that of another one that fired.

    Near 1 latents come in copies (or in opposite pairs), as where concepts are split or
    absorbed (arXiv:2503.17547). Rows of norm 0 count as 0; NaN with fewer than two
    latents that fired. Takes n² · d operations, and a block of rows of memory.
    """
    dec_kf = np.asarray(sae.dec_nm, np.float32).reshape(sae.cfg.n_latents, -1)
    dec_kf = dec_kf[np.flatnonzero(fired_n)]
    if len(dec_kf) < 2:
        return float("nan")
    norms_k = np.linalg.norm(dec_kf, axis=1, keepdims=True)
    unit_kf = dec_kf / np.where(norms_k > 0, norms_k, 1)
    largest_k = np.empty(len(unit_kf))
    block = max(1, _BLOCK // len(unit_kf))
    for start in range(0, len(unit_kf), block):
        rows = np.arange(start, min(start + block, len(unit_kf)))
        cosines_rk = np.abs(unit_kf[rows] @ unit_kf.T)
        cosines_rk[rows - start, rows] = 0  # with itself
        largest_k[rows] = cosines_rk.max(axis=1)
    return float(largest_k.mean())


def summary(sae: SAE, sums: FitSums) -> dict[str, Any]:
    """Returns the numbers of this module by name, but those that take n² operations."""
    numbers = {f.__name__: f(sums) for f in (explained_variance, l0, mse, dead_share)}
    return {
        "tokens": sums.tokens,
        "latents": sae.cfg.n_latents,
        **numbers,
        "decoder_norms": decoder_norms(sae)._asdict(),
        "encoder_decoder_cosine": encoder_decoder_cosine(sae, sums.fired_n),
    }
