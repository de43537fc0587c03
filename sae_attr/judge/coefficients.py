"""Coefficients of agreement between judges: correlations, kappas and alpha.

They are written out here, where libraries have some of them, for these reasons. Quadratic
weights of scikit-learn's `cohen_kappa_score` count the ranks of the categories that occur
(0, 10 and 100 are as far apart as 0, 1 and 2), and it refuses scores that are means; on
verdicts and on whole scales it gives the numbers of `kappa` and `quadratic_kappa` (a
test), for 1.7 s of import. `krippendorff` would be a dependency for one formula, which
reproduces its author's example (a test).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def pearson(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Computes Pearson's correlation; NaN below 3 items or without spread."""
    if not _spread(a_n, b_n):
        return math.nan
    return float(np.corrcoef(a_n, b_n)[0, 1])


def spearman(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Computes Spearman's rank correlation; NaN below 3 items or without spread."""
    if not _spread(a_n, b_n):
        return math.nan
    return pearson(stats.rankdata(a_n), stats.rankdata(b_n))


def kappa(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Computes Cohen's kappa of nominal values; NaN where chance alone explains
    everything (both constant and equal).
    """
    if not len(a_n):
        return math.nan
    chance = 0.0
    for value in np.union1d(a_n, b_n):
        chance += float((a_n == value).mean() * (b_n == value).mean())
    if chance >= 1:
        return math.nan
    return float(((a_n == b_n).mean() - chance) / (1 - chance))


def quadratic_kappa(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Computes Cohen's kappa with weights (a − b)², also for scores that are no
    categories (Lin's concordance, 1989).
    """
    if not len(a_n):
        return math.nan
    chance = float(a_n.var() + b_n.var() + (a_n.mean() - b_n.mean()) ** 2)
    if chance <= 0:
        return math.nan
    return 1 - float(((a_n - b_n) ** 2).mean()) / chance


def mean_difference(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Computes the mean of a − b."""
    return float((a_n - b_n).mean())


def krippendorff_alpha(ratings_jn: np.ndarray, *, level: str = "interval") -> float:
    """Computes Krippendorff's alpha of judges [j] over items [n], NaN where missing;
    items with one rating are left out.

    1 − observed / expected disagreement over pairs of ratings (Krippendorff 2011,
    "Computing Krippendorff's Alpha").

    Args:
      level: "interval" (squared differences) or "nominal" (equal or not).

    Returns:
      NaN where no two ratings differ or no item has two.

    Raises:
      ValueError: another level.
    """
    if level not in ("interval", "nominal"):
        raise ValueError(f"level={level!r} is unknown; choose interval or nominal")
    is_rated_jn = np.isfinite(ratings_jn)
    is_paired_n = is_rated_jn.sum(axis=0) >= 2
    ratings_jn, is_rated_jn = ratings_jn[:, is_paired_n], is_rated_jn[:, is_paired_n]
    cells = [ratings_jn]
    if level == "nominal":
        # Squared differences of one-hot codes sum to 2 for unequal values: nominal
        # disagreement is the interval one over these columns.
        values = np.unique(ratings_jn[is_rated_jn])
        cells = [(ratings_jn == value).astype(float) for value in values]
    observed = sum([_observed(cell_jn, is_rated_jn) for cell_jn in cells])
    expected = sum([_expected(cell_jn[is_rated_jn]) for cell_jn in cells])
    return 1 - observed / expected if expected > 0 else math.nan


def _observed(cell_jn: np.ndarray, is_rated_jn: np.ndarray) -> float:
    """Returns the mean squared difference of ratings of one item."""
    ratings_jn = np.where(is_rated_jn, cell_jn, 0.0)
    size_n = is_rated_jn.sum(axis=0)
    centred_jn = np.where(is_rated_jn, ratings_jn - ratings_jn.sum(axis=0) / size_n, 0)
    # Σ over ordered pairs (x − y)² = 2 m Σ (x − mean)²
    squares_n = 2 * size_n * (centred_jn**2).sum(axis=0) / (size_n - 1)
    return float(squares_n.sum()) / max(int(size_n.sum()), 1)


def _expected(ratings_r: np.ndarray) -> float:
    """Returns the mean squared difference of any two ratings."""
    if len(ratings_r) < 2:
        return 0.0
    return 2 * float(((ratings_r - ratings_r.mean()) ** 2).sum()) / (len(ratings_r) - 1)


def _spread(a_n: np.ndarray, b_n: np.ndarray) -> bool:
    return len(a_n) > 2 and bool(np.ptp(a_n) > 0 and np.ptp(b_n) > 0)
