"""The path of a rank-1 adapter over its fine-tune: where it turns, where the gradient's
norm peaks, where the behaviour rises, and how far these lie apart
(Turner et al. 2025, arXiv:2506.11613).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class PrincipalPath(NamedTuple):
    """A path along its principal components.

    Args:
      along_sm: float64 `[steps, m]`, of the path minus its mean.
      share_m: of the variance of all steps that each explains.
    """

    along_sm: np.ndarray
    share_m: np.ndarray


class MeanDistance(NamedTuple):
    """States how many steps later one event comes than another, over runs.

    Args:
      runs: that have both events.
      mean, low, high: with its 95 % bootstrap interval over runs; NaN without any, an
        interval of NaN with fewer than three.
      sd: over runs.
    """

    runs: int
    mean: float
    low: float
    high: float
    sd: float


# ---- geometry ------------------------------------------------------------------------


def local_cosine(
    b_so: np.ndarray, lag: int, *, least_norm: float = 0.0, least_share: float = 0.0
) -> np.ndarray:
    """Computes cos(B_{s−k} − B_s, B_{s+k} − B_s) for every checkpoint s: −1 on a straight
    path, 0 where it turns by a right angle.

    Args:
      b_so: B of every checkpoint, `[steps, out]`.
      lag: k, in checkpoints.
      least_norm: the cosine is undefined where the longer of the two differences is not
        so long.
      least_share: nor where it is not such a share of the longest on the path: a path
        that has arrived wanders, and turns at every step.

    Returns:
      float64 `[steps]`, NaN where it is undefined: also at the k first and last ones.

    Raises:
      ValueError: fewer than 2 k + 1 checkpoints, a path of other than vectors, or one
        that never moves so far.
    """
    b_so = np.asarray(b_so, np.float64)
    if b_so.ndim != 2:
        raise ValueError(
            f"B has shape {list(b_so.shape)}: the path of a rank-1 adapter is one vector "
            "per checkpoint, [steps, out]; take an adapter of rank 1"
        )
    if lag < 1 or len(b_so) < 2 * lag + 1:
        raise ValueError(
            f"the path has {len(b_so)} checkpoints, and a lag of {lag} needs at least "
            f"{2 * max(lag, 1) + 1}; keep more of them, or choose a lag from 1 to "
            f"{max((len(b_so) - 1) // 2, 0)}"
        )
    back_so = b_so[: -2 * lag] - b_so[lag:-lag]
    on_so = b_so[2 * lag :] - b_so[lag:-lag]
    back_s, on_s = np.linalg.norm(back_so, axis=1), np.linalg.norm(on_so, axis=1)
    longer_s = np.maximum(back_s, on_s)
    if longer_s.max() <= least_norm:
        raise ValueError(
            f"B moves by {longer_s.max():.3g} at most within {lag} checkpoints, and "
            f"least_norm is {least_norm:g}: the path does not move; lower least_norm, or "
            "raise the learning rate"
        )
    moves_s = (longer_s > least_norm) & (longer_s >= least_share * longer_s.max())
    length_s = np.where(moves_s & (back_s * on_s > 0), back_s * on_s, np.nan)
    cosine_s = np.full(len(b_so), np.nan)
    cosine_s[lag:-lag] = (back_so * on_so).sum(1) / length_s
    return cosine_s


def sharpest_turn(cosine_s: np.ndarray, below: float = 1.0) -> int | None:
    """Returns the checkpoint of the smallest |local cosine|; None where it is nowhere
    below a bound: a straight path has no turn.
    """
    size_s = np.abs(cosine_s)
    if not np.any(size_s < below):
        return None
    return int(np.nanargmin(size_s))


def principal_path(b_so: np.ndarray, components: int = 2) -> PrincipalPath:
    """Computes the principal components of a path.

    Raises:
      ValueError: a path that does not move.
    """
    centred_so = np.asarray(b_so, np.float64) - np.mean(b_so, axis=0, dtype=np.float64)
    left_sm, size_m, _ = np.linalg.svd(centred_so, full_matrices=False)
    total = np.sum(size_m**2)
    if not total > 0:
        raise ValueError("B is the same at every checkpoint: the path does not move")
    along_sm = (left_sm * size_m)[:, :components]
    # The sign of a component is free: the path ends on the positive side.
    sign_m = np.where(along_sm[-1] < 0, -1.0, 1.0)
    return PrincipalPath(along_sm * sign_m, size_m[:components] ** 2 / total)


def similarity_to(path_sd: np.ndarray, direction_d: np.ndarray) -> np.ndarray:
    """Returns the cosine of every checkpoint with a direction, NaN where either is 0."""
    path_sd = np.asarray(path_sd, np.float64)
    direction_d = np.asarray(direction_d, np.float64)
    length_s = np.linalg.norm(path_sd, axis=1) * np.linalg.norm(direction_d)
    return path_sd @ direction_d / np.where(length_s > 0, length_s, np.nan)


# ---- events of curves ----------------------------------------------------------------


def running_mean(values_s: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over a window about every checkpoint, NaN where the window does
    not fit or holds NaN.

    Raises:
      ValueError: an even window, which has no middle.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a window of {window} has no middle; choose an odd number")
    half = window // 2
    smooth_s = np.full(len(values_s), np.nan)
    for s in range(half, len(values_s) - half):
        smooth_s[s] = np.mean(values_s[s - half : s + half + 1])
    return smooth_s


def peak(values_s: np.ndarray, window: int = 1) -> int | None:
    """Returns the checkpoint at which a curve's running mean is highest; None where that
    is the first or the last one: the curve falls or rises throughout.
    """
    smooth_s = running_mean(np.asarray(values_s, np.float64), window)
    inside = np.flatnonzero(np.isfinite(smooth_s))
    if not len(inside):
        return None
    highest = int(np.nanargmax(smooth_s))
    return None if highest in (inside[0], inside[-1]) else highest


def largest_rise(values_s: np.ndarray, lag: int, least: float = 0.0) -> int | None:
    """Returns the checkpoint about which a curve rises most, from `lag` before it to
    `lag` behind it; of equals the first. None where it rises by no more than `least`.

    Raises:
      ValueError: fewer than 2 lag + 1 checkpoints.
    """
    values_s = np.asarray(values_s, np.float64)
    if lag < 1 or len(values_s) < 2 * lag + 1:
        raise ValueError(
            f"the curve has {len(values_s)} points, and a rise over {lag} to either side "
            f"needs at least {2 * max(lag, 1) + 1}"
        )
    rise_s = values_s[2 * lag :] - values_s[: -2 * lag]
    if not np.any(rise_s > least):
        return None
    return int(np.nanargmax(rise_s)) + lag


def mean_distance(
    first_r: Sequence[int | None], second_r: Sequence[int | None], seed: int = 0
) -> MeanDistance:
    """Returns how many steps later the first event comes than the second, over the runs
    that have both.
    """
    distances = []
    for first, second in zip(first_r, second_r, strict=True):
        if first is not None and second is not None:
            distances.append(first - second)
    nan = float("nan")
    if not distances:
        return MeanDistance(0, nan, nan, nan, nan)
    distance_r = np.array(distances, np.float64)
    runs, mean = len(distance_r), float(distance_r.mean())
    if runs < 3:
        return MeanDistance(runs, mean, nan, nan, nan)
    picks = np.random.default_rng(seed).integers(0, runs, (RESAMPLES, runs))
    low, high = np.quantile(distance_r[picks].mean(1), [0.025, 0.975])
    sd = float(distance_r.std(ddof=1))
    return MeanDistance(runs, mean, float(low), float(high), sd)
