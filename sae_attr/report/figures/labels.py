"""Numbers of latents written beside their points, none on another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes


def name_points(
    ax: Axes,
    latents: Iterable[tuple[int, tuple[float, float]]],
    *,
    count: int = 5,
    gap: float = 0.06,
) -> None:
    """Writes the numbers of the first `count` latents beside their points, except where
    one would lie on another's.

    Args:
      latents: number and place (in the axes' data) of each, the most important first.
      gap: height of a number, as a share of the axes.
    """
    named: list[np.ndarray] = []
    for latent, at in latents:
        # In the axes' own shares, whatever their scale.
        pixels = ax.transData.transform(at)
        place = np.asarray(ax.transAxes.inverted().transform(pixels))
        if len(named) < count and not _is_taken(place, named, gap):
            named.append(place)
            ax.annotate(
                str(latent),
                at,
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )


def _is_taken(place: np.ndarray, named: Sequence[np.ndarray], gap: float) -> bool:
    """Returns whether a number written at a place would lie on another one."""
    if not named:
        return False
    across, up = np.abs(place - np.stack(named)).T
    # Numbers are wider than they are high.
    return bool(((across <= 2 * gap) & (up <= gap)).any())
