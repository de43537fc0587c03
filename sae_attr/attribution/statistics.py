"""Uncertainty of Δ for candidates: everything is clustered by prompt, the unit that was
sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from scipy import stats


@dataclass(frozen=True, eq=False)
class ClusterStatistics:
    """Per latent: mean over prompts, its standard error, a bootstrap interval, and how
    consistent its sign is.

    `se_k` is NaN with fewer than two prompts. `consistency_k` is the share of prompts
    whose value has the mean's sign.
    """

    mean_k: np.ndarray
    se_k: np.ndarray
    low_k: np.ndarray
    high_k: np.ndarray
    consistency_k: np.ndarray


def cluster_statistics(
    scores_pk: np.ndarray, key: jax.Array, *, resamples: int = 1000, level: float = 0.95
) -> ClusterStatistics:
    """Computes statistics of per-prompt scores `[prompts, latents]`; the bootstrap
    resamples whole prompts (percentile interval).
    """
    p = len(scores_pk)
    mean_k = scores_pk.mean(0)
    se_k = (
        scores_pk.std(0, ddof=1) / np.sqrt(p)
        if p > 1
        else np.full(scores_pk.shape[1], np.nan)
    )
    picks = np.asarray(jax.random.randint(key, (resamples, p), 0, p))
    counts = np.stack([np.bincount(pick, minlength=p) for pick in picks]) / p
    low_k, high_k = np.quantile(
        counts @ scores_pk, [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    same = np.sign(scores_pk) == np.sign(mean_k)
    return ClusterStatistics(mean_k, se_k, low_k, high_k, same.mean(0))


def halves(prompts: int, key: jax.Array) -> np.ndarray:
    """Draws a random half of the prompts as a bool mask `[p]`; the draw depends on the key
    alone.
    """
    order = np.asarray(jax.random.permutation(key, prompts))
    return np.isin(np.arange(prompts), order[: prompts // 2])


def split_half_spearman(
    scores_pk: np.ndarray, key: jax.Array, *, splits: int = 100
) -> tuple[float, float]:
    """Returns mean and standard deviation, over random halvings of the prompts, of
    Spearman's rho between the halves' means.

    Over the candidates only. They were selected with all prompts, so that a half that
    is high leaves the other low: the number is biased downwards and may be negative
    where the order within the top is noise.
    """
    if len(scores_pk) < 4 or scores_pk.shape[1] < 3:
        return float("nan"), float("nan")
    rhos = []
    for k in jax.random.split(key, splits):
        half = halves(len(scores_pk), k)
        rhos.append(
            stats.spearmanr(scores_pk[half].mean(0), scores_pk[~half].mean(0))[0]
        )
    return float(np.mean(rhos)), float(np.std(rhos))


def duplicates(dec_kd: np.ndarray, *, cosine: float = 0.95) -> np.ndarray:
    """Returns per candidate (best first) the position of the best-ranked earlier one with
    |cos| above `cosine`, else -1.
    """
    unit = dec_kd / np.maximum(np.linalg.norm(dec_kd, axis=1, keepdims=True), 1e-30)
    alike = np.tril(np.abs(unit @ unit.T) > cosine, k=-1)
    return np.where(alike.any(1), alike.argmax(1), -1)
