"""Strips of points: their numbers, limits, ticks, and places beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from sae_attr.comparison_records import LatentName
from sae_attr.report.safe_text import one_line

_LONGEST = 80  # characters of a name in a heading


@dataclass(frozen=True)
class Measured:
    """A latent's change in percentage points, with its interval; NaN where unknown."""

    latent: LatentName
    change: float
    low: float
    high: float


def points(value: float | None) -> float:
    """Returns a change as percentage points; NaN where it is not known."""
    return float("nan") if value is None else 100.0 * float(value)


def measured(strip: Mapping[str, Any]) -> Iterator[Measured]:
    """Yields the latents of a strip whose change is known."""
    unknown = [None] * len(strip["latents"])
    rows = zip(
        strip["latents"],
        strip["change"],
        strip.get("low") or unknown,
        strip.get("high") or unknown,
        strict=True,
    )
    for latent, change, low, high in rows:
        if not np.isnan(points(change)):
            yield Measured(latent, points(change), points(low), points(high))


def swarm(y: np.ndarray, *, half_width: float) -> np.ndarray:
    """Returns sideways offsets that keep points apart; no chance is involved.

    Each point, from the lowest up, goes as near to the middle as it can without
    touching those before it. Where the strip is full it goes where its nearest
    neighbour is farthest. NaN stays NaN.

    Args:
      y: positions in units of a point's diameter.
      half_width: of the strip, in the same units.
    """
    steps = np.arange(0, int(2 * half_width) + 1) / 2
    # 0, then left and right by half a diameter more each time. The second 0 is left out.
    offers = np.zeros(1)
    if len(steps):
        offers = np.stack([steps, -steps], 1).ravel()[1:]
    x = np.full(len(y), np.nan)
    placed: list[int] = []
    for i in np.argsort(y, kind="stable"):
        if np.isnan(y[i]):
            continue
        # From the lowest up: only those less than a diameter below can touch.
        near = [j for j in placed if y[i] - y[j] < 1]
        if near:
            gaps = np.hypot(offers[:, None] - x[near], y[i] - y[near]).min(1)
            # Neighbours half a diameter apart touch exactly, but for rounding.
            free = np.flatnonzero(gaps >= 1 - 1e-9)
            x[i] = offers[free[0] if len(free) else gaps.argmax()]
        else:
            x[i] = 0.0
        placed.append(int(i))
    return x


def limits(panel: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the lowest and highest percentage point to show: all points, means'
    intervals, the band and zero, with some room.
    """
    values = [0.0]
    for strip in panel["strips"]:
        values += map(points, strip["change"])
        values += [points(strip.get("mean_low")), points(strip.get("mean_high"))]
    values += map(points, panel.get("band") or ())
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(
        0.07 * (high - low), 0.5
    )  # a height of 0, where nothing changed, is none
    return low - room, high + room


def ticks(low: float, high: float, *, count: int = 6) -> list[float]:
    """Returns round numbers within the limits."""
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    values = np.asarray(locator.tick_values(low, high))
    # The locator gives ticks beyond the ends too, and may give −0.
    within = values[(low <= values) & (values <= high)]
    return (within + 0.0).tolist()


def direction_name(direction: str) -> str:
    """Returns a direction as headings of figures write it."""
    sides = {"away": "against", "toward": "along"}
    return f"Steering {direction}, {sides[direction]} each latent"


def heading(numbers: Mapping[str, Any], panel: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a panel's title lines: the model and direction, and the base rate."""
    model = one_line(panel["model"], _LONGEST)
    behaviour = one_line(numbers["behaviour"], _LONGEST)
    ablated = bool(numbers.get("ablated"))
    lines = [f"{direction_name(panel['direction'])}: {model}"]
    if ablated:
        lines = [f"Each latent alone set to its mean: {model}"]
    if numbers.get("signed"):
        lines = [
            f"Steering {panel['direction']}: {model}",
            "each latent by the sign of its own gradient",
        ]
    rate = points(panel["base_rate"])
    nothing = "without ablation" if ablated else "without steering"
    lines.append(f"rate of {behaviour} {nothing}: {rate:.1f} %")
    return tuple(lines)
