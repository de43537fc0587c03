"""The plane of cause and lever: each latent's Δ, which says what acted, and its −Δg·d,
which says what steers, both in standard deviations over the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACTED_STEERS = "acted and steers"
ACTED = "acted, does not steer"
STEERS = "steers, did not act"
NEITHER = "neither"
CORNERS = (ACTED_STEERS, ACTED, STEERS, NEITHER)


@dataclass(frozen=True)
class PlaneSettings:
    """Sets where the corners of the plane of cause and lever begin.

    Args:
      cause: least Δ of a latent that acted, in standard deviations above the
        dictionary's mean.
      lever: least −Δg·d of a latent that steers, in the same unit.
    """

    cause: float = 1.0
    lever: float = 1.0

    def __post_init__(self) -> None:
        for name in ("cause", "lever"):
            # At 0 or below, half of a dictionary would have acted.
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(
                    f"plane.{name} is {getattr(self, name)}; give standard deviations "
                    "above 0"
                )


def z_scores(values_k: np.ndarray, of_n: np.ndarray | None = None) -> np.ndarray:
    """Returns scores in standard deviations from the mean of those that are known,
    float64 `[k]`; NaN where a score is not known, and 0 where all are equal.

    Args:
      of_n: scores whose mean and deviation are taken; None for the same.
    """
    values_k = np.asarray(values_k, np.float64)
    all_n = values_k if of_n is None else np.asarray(of_n, np.float64)
    all_n = all_n[np.isfinite(all_n)]
    z_k = np.full(values_k.shape, np.nan)
    if len(all_n):
        is_finite_k = np.isfinite(values_k)
        mean = all_n.mean()
        spread = (all_n - mean).std()
        z_k[is_finite_k] = (
            (values_k[is_finite_k] - mean) / spread if spread > 0 else 0.0
        )
    return z_k


def corner(
    cause: float, lever: float, settings: PlaneSettings = PlaneSettings()
) -> str | None:
    """Returns the name of a latent's corner; None where a coordinate is not known.

    Args:
      cause, lever: in standard deviations, from `z_scores`.
    """
    if not np.isfinite([cause, lever]).all():
        return None
    acted = cause >= settings.cause
    if lever >= settings.lever:
        return ACTED_STEERS if acted else STEERS
    return ACTED if acted else NEITHER
