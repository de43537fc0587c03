"""Agreement of two judges with intervals: scores, verdicts, and every pair of several
judges.

A missing grade is NaN; every statistic of two judges is over the items that both graded,
whose number is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from sae_attr.comparison_records import Estimate
from sae_attr.judge.coefficients import (
    kappa,
    mean_difference,
    pearson,
    quadratic_kappa,
    spearman,
)

Statistic = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class ScoreAgreement:
    """Two judges on one scale, or on two.

    Args:
      n: items that both scored; `missing` is the share of all items that one or both
        did not.
      pearson, spearman: correlations.
      weighted_kappa: Cohen's kappa with quadratic weights; of use where both scores are
        on the same scale.
      mean_difference: of the first minus the second.
    """

    n: int
    missing: float
    pearson: Estimate
    spearman: Estimate
    weighted_kappa: Estimate
    mean_difference: Estimate


@dataclass(frozen=True)
class VerdictAgreement:
    """Two judges' verdicts (1.0 the behaviour is there, 0.0 it is not).

    Args:
      n, missing: as in `ScoreAgreement`.
      both, first_only, second_only, neither: counts.
      agree: share of equal verdicts; kappa: Cohen's.
      first_rate, second_rate: share of items with the behaviour, among those that both
        judged.
    """

    n: int
    missing: float
    both: int
    first_only: int
    second_only: int
    neither: int
    agree: Estimate
    kappa: Estimate
    first_rate: Estimate
    second_rate: Estimate


@dataclass(frozen=True)
class PairAgreement:
    """Two judges by name.

    Args:
      first, second: names.
      scores: agreement of their scores.
      verdicts: of their verdicts; None where one of them has none.
    """

    first: str
    second: str
    scores: ScoreAgreement
    verdicts: VerdictAgreement | None


def wilson(count: int, n: int, confidence: float = 0.95) -> Estimate:
    """Returns a share with Wilson's score interval; NaN for n = 0."""
    if n == 0:
        return Estimate()
    # Not the normal interval, which has no width at 0 of n, where rare behaviours lie.
    test = stats.binomtest(int(count), int(n))
    interval = test.proportion_ci(confidence, method="wilson")
    return Estimate(count / n, float(interval.low), float(interval.high))


def rate(verdicts_n: np.ndarray) -> Estimate:
    """Returns the share of 1.0 among verdicts that are not missing, with Wilson's
    interval.
    """
    verdicts = verdicts_n[np.isfinite(verdicts_n)]
    return wilson(int(verdicts.sum()), len(verdicts))


def score_agreement(
    a_n: np.ndarray,
    b_n: np.ndarray,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreAgreement:
    """Compares two judges' scores, with percentile intervals of a bootstrap over items
    or clusters.

    Args:
      a_n, b_n: scores [n], NaN where missing.
      clusters_n: what each item belongs to (a question): whole clusters are drawn; None
        draws items.
      resamples: of the bootstrap; 0 leaves the intervals NaN.

    Raises:
      ValueError: the lengths differ.
    """
    pairs = _graded_by_both(a_n, b_n, clusters_n)
    # The same samples for all four statistics, so that their intervals fit each other.
    draws = _draws(pairs.groups, resamples, seed)
    return ScoreAgreement(
        len(pairs.a),
        pairs.missing,
        pearson=_estimate(pairs, draws, pearson),
        spearman=_estimate(pairs, draws, spearman),
        weighted_kappa=_estimate(pairs, draws, quadratic_kappa),
        mean_difference=_estimate(pairs, draws, mean_difference),
    )


def verdict_agreement(
    a_n: np.ndarray,
    b_n: np.ndarray,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> VerdictAgreement:
    """Compares two judges' verdicts; shares with Wilson's interval, kappa with a
    bootstrap's.

    Args: as `score_agreement`, with verdicts of 1.0, 0.0 and NaN.

    Raises:
      ValueError: the lengths differ, or other values.
    """
    pairs = _graded_by_both(a_n, b_n, clusters_n)
    a, b = pairs.a, pairs.b
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError(
            "verdicts must be 1.0, 0.0 or NaN; compare scores with score_agreement"
        )
    draws = _draws(pairs.groups, resamples, seed)
    return VerdictAgreement(
        len(a),
        pairs.missing,
        both=int(((a == 1) & (b == 1)).sum()),
        first_only=int(((a == 1) & (b == 0)).sum()),
        second_only=int(((a == 0) & (b == 1)).sum()),
        neither=int(((a == 0) & (b == 0)).sum()),
        agree=wilson(int((a == b).sum()), len(a)),
        kappa=_estimate(pairs, draws, kappa),
        first_rate=rate(a),
        second_rate=rate(b),
    )


def all_pairs(
    scores: Mapping[str, np.ndarray],
    verdicts: Mapping[str, np.ndarray] | None = None,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[PairAgreement]:
    """Compares every two judges; their verdicts where both have some.

    Args:
      scores, verdicts: judge -> values [n], NaN where missing.
      clusters_n, resamples, seed: as for `score_agreement`.
    """
    verdicts = verdicts or {}
    pairs = []
    for a, b in combinations(scores, 2):
        of_scores = score_agreement(
            scores[a], scores[b], clusters_n=clusters_n, resamples=resamples, seed=seed
        )
        of_verdicts = None
        if a in verdicts and b in verdicts:
            of_verdicts = verdict_agreement(
                verdicts[a],
                verdicts[b],
                clusters_n=clusters_n,
                resamples=resamples,
                seed=seed,
            )
        pairs.append(PairAgreement(a, b, of_scores, of_verdicts))
    return pairs


@dataclass(frozen=True)
class _Pairs:
    """Grades of the items that both judges graded, and the share of the others.

    Args:
      groups: cluster of each item, as integers.
    """

    a: np.ndarray
    b: np.ndarray
    groups: np.ndarray
    missing: float


def _graded_by_both(
    a_n: np.ndarray, b_n: np.ndarray, clusters_n: Sequence[object] | None
) -> _Pairs:
    a, b = np.asarray(a_n, np.float64), np.asarray(b_n, np.float64)
    groups = np.arange(len(a))
    if clusters_n is not None:
        names = [str(cluster) for cluster in clusters_n]
        groups = np.unique(names, return_inverse=True)[1]
    if not len(a) == len(b) == len(groups):
        raise ValueError(
            f"the judges have {len(a)} and {len(b)} grades in {len(groups)} clusters; "
            "give one per item"
        )
    both = np.isfinite(a) & np.isfinite(b)
    missing = float(1 - both.mean()) if len(both) else math.nan
    return _Pairs(a[both], b[both], groups[both], missing)


def _draws(groups_n: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Returns the indices of bootstrap samples: as many clusters as there are, drawn with
    replacement, with all their items.

    scipy.stats.bootstrap draws single observations, draws anew for each statistic (the
    same time), and has no interval where one sample of a thousand is without spread.
    """
    members = [np.flatnonzero(groups_n == g) for g in np.unique(groups_n)]
    rng = np.random.default_rng(seed)
    if not members:
        return []
    if len(members) == len(groups_n):
        return list(rng.integers(len(groups_n), size=(resamples, len(groups_n))))
    draws = []
    for _ in range(resamples):
        clusters = rng.integers(len(members), size=len(members))
        draws.append(np.concatenate([members[cluster] for cluster in clusters]))
    return draws


def _estimate(
    pairs: _Pairs, draws: Sequence[np.ndarray], statistic: Statistic
) -> Estimate:
    if not len(pairs.a):
        return Estimate()
    value = statistic(pairs.a, pairs.b)
    samples = np.array([statistic(pairs.a[i], pairs.b[i]) for i in draws])
    # A sample without spread has no correlation; the others still give an interval.
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return Estimate(value)
    low, high = np.percentile(samples, (2.5, 97.5))
    return Estimate(value, float(low), float(high))
