"""How well descriptions tell which held-out texts they fit: balanced accuracies with
intervals, of single descriptions and of groups of latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sae_attr.comparison_records import Estimate
from sae_attr.passage_draws import FITS, ORDINARY, OTHER

_TAILS = (0.025, 0.975)  # of draws, the ends of an interval of 95 %
_DRAWS = 20_000
_PRIOR = 0.5  # of Jeffreys' interval of a share

Verdicts = Mapping[str, Sequence[float | None]]
"""Kind of text -> 1 where the reader said that it fits, 0, None where it is not known."""


def balanced_accuracy(verdicts: Verdicts, against: Sequence[str]) -> Estimate:
    """Returns the mean of two shares: of texts that fit and were said to, and of texts
    that do not and were said not to; 0.5 is chance. NaN without a verdict on either side.

    The interval draws both shares from Jeffreys' posteriors: of ten texts that are all
    told rightly, resampling would give an interval without width.

    Args:
      against: kinds of texts that do not fit.
    """
    fit = right_of(verdicts, (FITS,))
    unfit = right_of(verdicts, against)
    if not fit[1] or not unfit[1]:
        return Estimate()
    rng = np.random.default_rng(0)
    draws = []
    for right, of in (fit, unfit):
        draws.append(rng.beta(right + _PRIOR, of - right + _PRIOR, _DRAWS))
    low, high = np.quantile(np.mean(draws, axis=0), _TAILS)
    value = (fit[0] / fit[1] + unfit[0] / unfit[1]) / 2
    return Estimate(value, float(low), float(high))


def right_of(verdicts: Verdicts, kinds: Sequence[str]) -> tuple[int, int]:
    """Returns how many texts of some kinds were told rightly, and how many were told."""
    right = of = 0
    for kind in kinds:
        expected = 1.0 if kind == FITS else 0.0
        answers = [v for v in verdicts.get(kind, ()) if v is not None]
        right += sum(verdict == expected for verdict in answers)
        of += len(answers)
    return right, of


def mean_accuracy(values: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """Returns the mean over latents with a bootstrap interval; NaN of none, without an
    interval of one.
    """
    return difference_of_means(values, (0.0,), resamples=resamples, seed=seed)


def difference_of_means(
    first: Sequence[float], second: Sequence[float], *, resamples: int, seed: int
) -> Estimate:
    """Returns the difference between the means of two groups of latents, with a
    bootstrap interval over the latents of both; NaN where a group has none.
    """
    if not len(first) or not len(second):
        return Estimate()
    value = float(np.mean(first) - np.mean(second))
    if len(first) == 1:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    means = []
    for group in (np.asarray(first), np.asarray(second)):
        picks = rng.integers(0, len(group), (resamples, len(group)))
        means.append(group[picks].mean(axis=1))
    low, high = np.quantile(means[0] - means[1], _TAILS)
    return Estimate(value, float(low), float(high))


AGAINST = {"": (ORDINARY, OTHER), ORDINARY: (ORDINARY,), OTHER: (OTHER,)}
