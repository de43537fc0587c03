"""Whether a score that changes over checkpoints changes with the model, or with the
prompts that it was measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SeriesAgreement(NamedTuple):
    """States how far the scores of c checkpoints agree.

    `same_cc`: correlation over latents of the scores, measured on the same prompts.
    `halves_cc`: of a checkpoint's scores on one half of the prompts with another's on
      the other half, mean over random halvings; the diagonal is the split half, which
      falls below 1 by the sample alone.
    `model_cc`: the second without what the sample costs, r_ab / √(r_aa r_bb): below 1
      by the model alone. NaN where a split half is not above 0.
    """

    same_cc: np.ndarray
    halves_cc: np.ndarray
    model_cc: np.ndarray


def series_agreement(
    series: Sequence[np.ndarray], *, splits: int, seed: int = 0
) -> SeriesAgreement:
    """Compares the scores of checkpoints.

    Args:
      series: a checkpoint each: scores within each prompt, `[p, n]`, of the same
        prompts.
      splits: random halvings.

    Raises:
      ValueError: fewer than two prompts, or not the same ones.
    """
    prompts = {len(scores_pn) for scores_pn in series}
    if len(prompts) != 1 or min(prompts) < 2:
        raise ValueError(
            f"checkpoints are scored on {sorted(prompts)} prompts; score all on the "
            "same two or more"
        )
    (p,) = prompts
    draw = np.random.default_rng(seed)
    same_cc = _correlations(_means(series, np.arange(p)), _means(series, np.arange(p)))
    total_cc = np.zeros_like(same_cc)
    for _ in range(splits):
        order_p = draw.permutation(p)
        first_cn = _means(series, order_p[: p // 2])
        second_cn = _means(series, order_p[p // 2 :])
        across_cc = _correlations(first_cn, second_cn)
        total_cc += (across_cc + across_cc.T) / 2
    halves_cc = total_cc / splits
    split_c = np.where(np.diag(halves_cc) > 0, np.diag(halves_cc), np.nan)
    model_cc = halves_cc / np.sqrt(split_c[:, None] * split_c)
    return SeriesAgreement(same_cc, halves_cc, model_cc)


def _means(series: Sequence[np.ndarray], prompts: np.ndarray) -> np.ndarray:
    means = [np.asarray(scores_pn, np.float64)[prompts].mean(0) for scores_pn in series]
    return np.stack(means)


def _correlations(first_cn: np.ndarray, second_cn: np.ndarray) -> np.ndarray:
    """Pearson's r over latents of every row of one with every row of the other."""
    return _standard(first_cn) @ _standard(second_cn).T


def _standard(scores_cn: np.ndarray) -> np.ndarray:
    centred_cn = scores_cn - scores_cn.mean(1, keepdims=True)
    length_c1 = np.linalg.norm(centred_cn, axis=1, keepdims=True)
    return centred_cn / np.where(length_c1 > 0, length_c1, np.nan)


def mean_with_error(scores_pk: np.ndarray) -> tuple[float, float]:
    """Returns the mean score of some latents, and its standard error over prompts."""
    mean_p = np.asarray(scores_pk, np.float64).mean(1)
    return float(mean_p.mean()), float(mean_p.std(ddof=1) / np.sqrt(len(mean_p)))
