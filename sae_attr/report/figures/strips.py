"""Strips of points: what the drawn figures and the page's have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

NAMES = {
    "delta_attribution": "Δ-attribution",
    "delta_activation": "Δ-activation",
    "delta_code": "Δ-code",
    "delta_projection": "Δ-projection",
}
# Colours that are told apart by most people with a colour deficiency, on white and on
# black.
COLORS = {
    "delta_attribution": "#2f7ebc",
    "delta_activation": "#e07b39",
    "random": "#8a95a1",
}
MORE = ("#3f9f6f", "#b25fa6", "#b59a2c", "#4fb3c4", "#c65b62", "#7a6cc9")


def method_name(method: str) -> str:
    """A method's name as figures write it."""
    return NAMES.get(method, method.replace("_", " "))


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """A colour per method, the same for the same list of methods."""
    unnamed = [m for m in methods if m not in COLORS]
    return {
        m: COLORS[m] if m in COLORS else MORE[unnamed.index(m) % len(MORE)]
        for m in methods
    }


def points(value: float | None) -> float:
    """A change as percentage points; NaN where it is not known."""
    return float("nan") if value is None else 100.0 * float(value)


def swarm(y: np.ndarray, *, half_width: float) -> np.ndarray:
    """Sideways offsets that keep points apart; no chance is involved.

    Each point, from the lowest up, goes as near to the middle as it can without
    touching those before it. Where the strip is full it goes where its nearest
    neighbour is farthest. NaN stays NaN.

    Args:
      y: positions in units of a point's diameter.
      half_width: of the strip, in the same units.
    """
    steps = np.arange(0, int(2 * half_width) + 1) / 2
    offers = np.stack([steps, -steps], 1).ravel()[1:] if len(steps) else np.zeros(1)
    x = np.full(len(y), np.nan)
    placed: list[int] = []
    for i in np.argsort(y, kind="stable"):
        if np.isnan(y[i]):
            continue
        near = [j for j in placed if y[i] - y[j] < 1]
        if near:
            gaps = np.hypot(offers[:, None] - x[near], y[i] - y[near]).min(1)
            free = np.flatnonzero(gaps >= 1 - 1e-9)
            x[i] = offers[free[0] if len(free) else gaps.argmax()]
        else:
            x[i] = 0.0
        placed.append(int(i))
    return x


def limits(panel: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest percentage point to show: all points, the band, and zero, with
    some room.
    """
    values = [points(c) for strip in panel["strips"] for c in strip["change"]]
    values = [0.0, *values, *(points(edge) for edge in panel.get("band") or ())]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(0.07 * (high - low), 0.5)
    return low - room, high + room


def ticks(low: float, high: float, *, count: int = 6) -> list[float]:
    """Round numbers within the limits."""
    found = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(t) + 0.0 for t in found if low <= t <= high]


def heading(numbers: Mapping[str, Any], panel: Mapping[str, Any]) -> tuple[str, ...]:
    """A panel's title lines: what was steered how, and the base rate."""
    sign = (
        ("each latent by the sign of its own gradient",)
        if numbers.get("signed")
        else ()
    )
    base = (
        f"{numbers['behaviour']} without steering: {points(panel['base_rate']):.1f} %"
    )
    return f"Steering {panel['direction']}: {panel['model']}", *sign, base


def measured(strip: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Latent and percentage points of the points that a strip shows."""
    for latent, change in zip(strip["latents"], strip["change"], strict=True):
        if not np.isnan(points(change)):
            yield int(latent), points(change)
