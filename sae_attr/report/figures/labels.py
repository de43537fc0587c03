"""Numbers of latents written beside their points, none on another or on a point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from sae_attr.comparison_records import LatentName

Place = tuple[float, float]

_SIZE = 8  # points
_DIGIT, _HEIGHT = 0.64 * _SIZE, 1.0 * _SIZE  # of the text, points
_GAP = 4  # from a point's middle, points
_RADIUS = 3.0  # of a point, points
_INCH = 72  # points
# Where a number may stand, the best first: right or left of its point, above or below.
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True)
class _Box:
    """A rectangle in points (1/72 inch) from the lower left corner of the axes."""

    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: _Box) -> bool:
        """Returns whether two boxes have a point in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high

    def holds_any(self, places: np.ndarray) -> bool:
        """Returns whether a point of some lies on it, even with its edge."""
        x, y = places.T
        across = (self.left - _RADIUS < x) & (x < self.right + _RADIUS)
        return bool(
            (across & (self.low - _RADIUS < y) & (y < self.high + _RADIUS)).any()
        )


def name_points(
    ax: Axes,
    latents: Iterable[tuple[LatentName, Place]],
    *,
    points: Sequence[Place] = (),
    reserved: Sequence[tuple[float, float, float, float]] = (),
    count: int = 5,
) -> None:
    """Writes the numbers of the first `count` latents beside their points, except where
    one would lie on another's, or on a point.

    Args:
      latents: number and place (in the axes' data) of each, the most important first.
      points: places of all that is drawn.
      reserved: left, low, right, high of what else is written, in shares of the axes.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    size = np.array([ax.bbox.width, ax.bbox.height]) * _INCH / figure.dpi
    frame = _Box(0, 0, *size)
    taken = [_Box(*np.multiply(box, (*size, *size))) for box in reserved]
    drawn = _in_points(ax, points, size)
    named: list[np.ndarray] = []
    for latent, at in latents:
        place = _in_points(ax, [at], size)[0]
        # Of points on each other nobody could tell which one a number belongs to.
        is_apart = all(np.hypot(*(place - other)) > 2 * _RADIUS for other in named)
        side = _free_side(place, str(latent), frame, taken, drawn)
        if len(named) == count or not is_apart or side is None:
            continue
        named.append(place)
        taken.append(_box(place, str(latent), side))
        ax.annotate(
            str(latent),
            at,
            xytext=(_GAP * side[0], _GAP * side[1]),
            textcoords="offset points",
            ha="left" if side[0] > 0 else "right",
            va="bottom" if side[1] > 0 else "top",
            fontsize=_SIZE,
            zorder=5,
        )


def _in_points(ax: Axes, places: Sequence[Place], size: np.ndarray) -> np.ndarray:
    """Returns places of the axes' data in points from the lower left corner."""
    if not len(places):
        return np.zeros((0, 2))
    # In the axes' own shares first, whatever their scale.
    pixels = ax.transData.transform(np.asarray(places, np.float64))
    return ax.transAxes.inverted().transform(pixels) * size


def _box(place: np.ndarray, text: str, side: tuple[int, int]) -> _Box:
    """Returns what a number covers that stands on one side of a point."""
    (x, y), width = place, _DIGIT * len(text)
    left = x + _GAP if side[0] > 0 else x - _GAP - width
    low = y + _GAP if side[1] > 0 else y - _GAP - _HEIGHT
    return _Box(left, low, left + width, low + _HEIGHT)


def _free_side(
    place: np.ndarray,
    text: str,
    frame: _Box,
    taken: Sequence[_Box],
    drawn: np.ndarray,
) -> tuple[int, int] | None:
    """Returns the first side of a point on which its number covers nothing; None where
    there is none.
    """
    for side in _SIDES:
        box = _box(place, text, side)
        is_within = box.left >= frame.left and box.right <= frame.right
        is_within = is_within and box.low >= frame.low and box.high <= frame.high
        is_free = not any(map(box.overlaps, taken)) and not box.holds_any(drawn)
        if is_within and is_free:
            return side
    return None
