"""Effects by exact probabilities against those of sampled, graded answers, latent by
latent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from sae_attr.comparison_records import Direction, Estimate, SampledAgreement
from sae_attr.steering.groups import group_draws
from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    Paired,
    interval,
    weighted_mean,
)

OfLatents = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(exact changes, sampled changes), `[..., k]` each -> one number for each of `[...]`."""


def exact_changes(
    rate_kp: np.ndarray, base_p: np.ndarray, sampled: Paired
) -> np.ndarray:
    """Returns changes of the exact rate by latent `[k]`, over the prompts that the
    sampled answers are compared on, with the same weights.
    """
    return weighted_mean(rate_kp - base_p, sampled.weight_kp)


def binomial_errors(
    rate_kp: np.ndarray, base_p: np.ndarray, sampled: Paired
) -> np.ndarray:
    """Returns the standard error of each latent's sampled change `[k]`, if the answers
    are drawn with the exact probabilities; NaN where a latent has no answer.

    Steered and unsteered answers share their random numbers, so that the true one is
    not above this.
    """
    # By the exact probabilities, not by the answers: five of five have a variance too.
    variance_kp = rate_kp * (1 - rate_kp) + base_p * (1 - base_p)
    weight_kp = sampled.weight_kp
    part_kp = weight_kp**2 * variance_kp / np.maximum(sampled.pairs_kp, 1)
    total_k = weight_kp.sum(1)
    error_k = np.sqrt(part_kp.sum(1)) / np.maximum(total_k, 1e-300)
    return np.where(total_k > 0, error_k, np.nan)


def sampled_agreement(
    direction: Direction,
    rate_kp: np.ndarray,
    base_p: np.ndarray,
    sampled: Paired,
    group_p: np.ndarray,
    *,
    settings: EffectSettings = DEFAULT,
) -> SampledAgreement:
    """Compares exact with sampled changes; intervals draw whole groups of prompts.

    Args:
      rate_kp: exact rate of the behaviour under steering; latents, prompts.
      base_p: the same without steering.
      sampled: pairs of graded answers of the same latents and prompts
        (`effects.paired`).
      group_p: `groups.group_numbers` of the prompts.
    """
    weight_kp = sampled.weight_kp
    known_k = weight_kp.sum(1) > 0
    counts_bp = group_draws(group_p, settings=settings)

    def changes(diff_kp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        diff_kp, of_known = diff_kp[known_k], weight_kp[known_k]
        whole_k = weighted_mean(diff_kp, of_known)
        return whole_k, weighted_mean(diff_kp, of_known, counts_bp)

    exact_k, exact_bk = changes(rate_kp - base_p)
    sampled_k, sampled_bk = changes(sampled.diff_kp)

    def estimate(statistic: OfLatents) -> Estimate:
        value = float(statistic(exact_k, sampled_k))
        low, high = interval(statistic(exact_bk, sampled_bk), settings.level)
        return Estimate(value, float(low), float(high))

    error_k = binomial_errors(rate_kp, base_p, sampled)[known_k]
    error = float(error_k.mean()) if len(error_k) else float("nan")
    return SampledAgreement(
        direction=direction,
        latents=int(known_k.sum()),
        pearson=estimate(pearson),
        spearman=estimate(spearman),
        same_sign=estimate(same_sign),
        difference=estimate(mean_difference),
        # The mean of |x| of a normal x with this standard error.
        noise=error * float(np.sqrt(2 / np.pi)),
        standard_error=error,
        attainable=attainable_pearson(rate_kp[known_k], exact_k, sampled.at(known_k)),
    )


def attainable_pearson(
    rate_kp: np.ndarray, exact_k: np.ndarray, sampled: Paired
) -> float:
    """Returns the Pearson correlation of exact changes with those of so many answers, if
    they were drawn with the exact probabilities; NaN below 3 latents.
    """
    if len(exact_k) < 3:
        return float("nan")
    # Unsteered answers are the same for all latents: their noise moves all alike.
    noise_k = binomial_errors(rate_kp, np.zeros(rate_kp.shape[1]), sampled) ** 2
    spread = float(exact_k.var())
    return float(np.sqrt(spread / max(spread + noise_k.mean(), 1e-300)))


def pearson(a_bk: np.ndarray, b_bk: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation over the last axis; NaN below 3 latents or without
    spread.
    """
    if a_bk.shape[-1] < 3:
        return np.full(a_bk.shape[:-1], np.nan)
    a_bk = a_bk - a_bk.mean(-1, keepdims=True)
    b_bk = b_bk - b_bk.mean(-1, keepdims=True)
    spread = np.sqrt((a_bk**2).sum(-1) * (b_bk**2).sum(-1))
    together = (a_bk * b_bk).sum(-1)
    return np.divide(
        together, spread, out=np.full(spread.shape, np.nan), where=spread > 1e-15
    )


def spearman(a_bk: np.ndarray, b_bk: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlation over the last axis; NaN as `pearson`."""
    return pearson(stats.rankdata(a_bk, axis=-1), stats.rankdata(b_bk, axis=-1))


def same_sign(a_bk: np.ndarray, b_bk: np.ndarray) -> np.ndarray:
    """Returns the share of latents whose two changes have one sign."""
    return _mean(
        np.where(np.isnan(a_bk + b_bk), np.nan, np.sign(a_bk) == np.sign(b_bk))
    )


def mean_difference(a_bk: np.ndarray, b_bk: np.ndarray) -> np.ndarray:
    """Returns the mean absolute difference of the two changes."""
    return _mean(np.abs(a_bk - b_bk))


def _mean(values_bk: np.ndarray) -> np.ndarray:
    """Returns the mean over latents; NaN without any."""
    if not values_bk.shape[-1]:
        return np.full(values_bk.shape[:-1], np.nan)
    return values_bk.mean(-1)
