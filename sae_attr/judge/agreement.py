"""How far judges agree: correlations and kappas with intervals, counts of verdicts,
alpha over several judges.

A missing grade is NaN; every statistic of two judges is over the items that both
graded, and says how many those are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval; NaN where it is not defined (too few items, no
    spread).
    """

    value: float
    low: float
    high: float


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


def wilson(count: int, n: int, confidence: float = 0.95) -> Estimate:
    """A share with Wilson's score interval; NaN for n = 0."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    interval = stats.binomtest(int(count), int(n)).proportion_ci(
        confidence, method="wilson"
    )
    return Estimate(count / n, float(interval.low), float(interval.high))


def rate(verdicts_n: np.ndarray) -> Estimate:
    """Share of 1.0 among verdicts that are not missing, with Wilson's interval."""
    told = verdicts_n[np.isfinite(verdicts_n)]
    return wilson(int(told.sum()), len(told))


def score_agreement(
    a_n: np.ndarray,
    b_n: np.ndarray,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreAgreement:
    """Agreement of two judges' scores, with percentile intervals of a bootstrap over
    items or clusters.

    Args:
      a_n, b_n: scores [n], NaN where missing.
      clusters_n: what each item belongs to (a question): whole clusters are drawn; None
        draws items.
      resamples: of the bootstrap; 0 leaves the intervals NaN.

    Raises:
      ValueError: the lengths differ.
    """
    a, b, groups, missing = _paired(a_n, b_n, clusters_n)
    draws = _draws(groups, resamples, seed)
    names = {
        "pearson": pearson,
        "spearman": spearman,
        "weighted_kappa": quadratic_kappa,
        "mean_difference": _difference,
    }
    estimates = {
        name: _estimate(a, b, draws, statistic) for name, statistic in names.items()
    }
    return ScoreAgreement(len(a), missing, **estimates)


def verdict_agreement(
    a_n: np.ndarray,
    b_n: np.ndarray,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> VerdictAgreement:
    """Agreement of two judges' verdicts; shares with Wilson's interval, kappa with a
    bootstrap's.

    Args: as `score_agreement`, with verdicts of 1.0, 0.0 and NaN.
    """
    a, b, groups, missing = _paired(a_n, b_n, clusters_n)
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError(
            "verdicts must be 1.0, 0.0 or NaN; compare scores with score_agreement"
        )
    counts = [
        int(((a == x) & (b == y)).sum()) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))
    ]
    kappa_estimate = _estimate(a, b, _draws(groups, resamples, seed), kappa)
    agree = wilson(counts[0] + counts[3], len(a))
    both, first, second, neither = counts
    return VerdictAgreement(
        len(a),
        missing,
        both,
        first,
        second,
        neither,
        agree,
        kappa_estimate,
        first_rate=rate(a),
        second_rate=rate(b),
    )


def pearson(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Pearson's correlation; NaN below 3 items or without spread."""
    return float(np.corrcoef(a_n, b_n)[0, 1]) if _spread(a_n, b_n) else float("nan")


def spearman(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Spearman's rank correlation; NaN below 3 items or without spread."""
    return (
        pearson(stats.rankdata(a_n), stats.rankdata(b_n))
        if _spread(a_n, b_n)
        else float("nan")
    )


def kappa(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Cohen's kappa of nominal values; NaN where chance alone explains everything (both
    constant and equal).
    """
    if not len(a_n):
        return float("nan")
    chance = sum(
        float((a_n == c).mean() * (b_n == c).mean()) for c in np.union1d(a_n, b_n)
    )
    return (
        float(((a_n == b_n).mean() - chance) / (1 - chance))
        if chance < 1
        else float("nan")
    )


def quadratic_kappa(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Cohen's kappa with weights (a − b)²; also for scores that are no categories
    (Lin's concordance, 1989).
    """
    if not len(a_n):
        return float("nan")
    chance = float(a_n.var() + b_n.var() + (a_n.mean() - b_n.mean()) ** 2)
    return 1 - float(((a_n - b_n) ** 2).mean()) / chance if chance > 0 else float("nan")


def _difference(a_n: np.ndarray, b_n: np.ndarray) -> float:
    return float((a_n - b_n).mean())


def krippendorff_alpha(ratings_jn: np.ndarray, *, level: str = "interval") -> float:
    """Krippendorff's alpha of judges [j] over items [n], NaN where missing; items with
    one rating are left out.

    1 − observed / expected disagreement over pairs of ratings (Krippendorff 2011,
    "Computing Krippendorff's Alpha").

    Args:
      level: "interval" (squared differences) or "nominal" (equal or not).

    Returns:
      NaN where no two ratings differ or no item has two.
    """
    if level not in ("interval", "nominal"):
        raise ValueError(f"level={level!r} is unknown; choose interval or nominal")
    told = np.isfinite(ratings_jn)
    keep = told.sum(axis=0) >= 2
    ratings, told = ratings_jn[:, keep], told[:, keep]
    # Differences of one-hot codes, squared and summed, are 2 for unequal values:
    # nominal is interval over these columns.
    cells = (
        [(ratings == c).astype(float) for c in np.unique(ratings[told])]
        if level == "nominal"
        else [ratings]
    )
    observed = expected = 0.0
    total = told.sum()
    for cell in cells:
        values = np.where(told, cell, 0.0)
        sizes = told.sum(axis=0)
        within = np.where(told, values - values.sum(axis=0) / sizes, 0.0) ** 2
        # Σ over ordered pairs (x − y)² = 2 m Σ (x − mean)²
        observed += float((2 * sizes * within.sum(axis=0) / (sizes - 1)).sum()) / max(
            total, 1
        )
        expected += (
            2 * float(((cell[told] - cell[told].mean()) ** 2).sum()) / (total - 1)
            if total > 1
            else 0.0
        )
    return 1 - observed / expected if expected > 0 else float("nan")


def all_pairs(
    scores: Mapping[str, np.ndarray],
    verdicts: Mapping[str, np.ndarray] | None = None,
    *,
    clusters_n: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], tuple[ScoreAgreement, VerdictAgreement | None]]:
    """Agreement of every two judges; verdicts are compared where both judges have some."""
    verdicts = verdicts or {}
    out = {}
    for a, b in combinations(scores, 2):
        compare = partial(
            verdict_agreement, clusters_n=clusters_n, resamples=resamples, seed=seed
        )
        found = (
            compare(verdicts[a], verdicts[b])
            if a in verdicts and b in verdicts
            else None
        )
        of_scores = score_agreement(
            scores[a], scores[b], clusters_n=clusters_n, resamples=resamples, seed=seed
        )
        out[a, b] = (of_scores, found)
    return out


def _spread(a_n: np.ndarray, b_n: np.ndarray) -> bool:
    return len(a_n) > 2 and bool(np.ptp(a_n) > 0 and np.ptp(b_n) > 0)


def _paired(
    a_n: np.ndarray, b_n: np.ndarray, clusters_n: Sequence[object] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Items that both graded, their clusters as integers, and the share of items left
    out.
    """
    a, b = np.asarray(a_n, np.float64), np.asarray(b_n, np.float64)
    groups = (
        np.arange(len(a))
        if clusters_n is None
        else np.unique([str(c) for c in clusters_n], return_inverse=True)[1]
    )
    if not len(a) == len(b) == len(groups):
        raise ValueError(
            f"the judges have {len(a)} and {len(b)} grades in {len(groups)} clusters; "
            "give one per item"
        )
    both = np.isfinite(a) & np.isfinite(b)
    return (
        a[both],
        b[both],
        groups[both],
        float(1 - both.mean()) if len(both) else float("nan"),
    )


def _draws(groups_n: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Indices of bootstrap samples: as many clusters as there are, drawn with
    replacement, with all their items.
    """
    members = [np.flatnonzero(groups_n == g) for g in np.unique(groups_n)]
    rng = np.random.default_rng(seed)
    if not members:
        return []
    if len(members) == len(groups_n):
        return list(rng.integers(len(groups_n), size=(resamples, len(groups_n))))
    return [
        np.concatenate(
            [members[g] for g in rng.integers(len(members), size=len(members))]
        )
        for _ in range(resamples)
    ]


def _estimate(
    a_n: np.ndarray, b_n: np.ndarray, draws: Sequence[np.ndarray], statistic: Statistic
) -> Estimate:
    if not len(a_n):
        return Estimate(float("nan"), float("nan"), float("nan"))
    found = np.array([statistic(a_n[i], b_n[i]) for i in draws])
    found = found[np.isfinite(found)]
    low, high = (
        np.percentile(found, (2.5, 97.5))
        if len(found)
        else (float("nan"), float("nan"))
    )
    return Estimate(statistic(a_n, b_n), float(low), float(high))
