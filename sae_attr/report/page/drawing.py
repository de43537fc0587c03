"""Figures of the page as shapes that the template writes as SVG: the same numbers and
layout as the drawn figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.report.figures.strips import (
    heading,
    limits,
    measured,
    method_colors,
    method_name,
    points,
    swarm,
    ticks,
)
from sae_attr.report.numbers import signed

_STRIP, _LEFT, _TOP, _PLOT, _RADIUS = 92.0, 44.0, 10.0, 300.0, 3.6
_SQUARE, _MARGIN = 320.0, 58.0


@dataclass(frozen=True)
class Dot:
    """A latent's point. label: what is said of it on hover and to screen readers;
    latent: None for an unnamed point.
    """

    x: float
    y: float
    color: str
    label: str
    latent: int | None = None
    method: str = ""


@dataclass(frozen=True)
class Text:
    """anchor: start, middle or end; name: a class of the style sheet."""

    x: float
    y: float
    text: str
    anchor: str = "middle"
    name: str = "label"


@dataclass(frozen=True)
class Drawing:
    """Shapes in pixels of a box of `width` × `height`, drawn in this order.

    name: its classes of the style sheet ("strips", "many strips" or "square"). title:
      lines above it. alt: what it shows, in a
    sentence. boxes: x, y, width, height. lines: x1, y1, x2, y2, class. crosses: x, y,
      what is said of it.
    """

    name: str
    width: float
    height: float
    title: tuple[str, ...]
    alt: str
    boxes: tuple[tuple[float, float, float, float], ...]
    lines: tuple[tuple[float, float, float, float, str], ...]
    texts: tuple[Text, ...]
    dots: tuple[Dot, ...]
    crosses: tuple[tuple[float, float, str], ...]


def _interval(strip: Mapping[str, Any], at: int) -> str:
    low, high = (
        points(strip[k][at]) if strip.get(k) else float("nan") for k in ("low", "high")
    )
    return "" if np.isnan([low, high]).any() else f" [{signed(low)}, {signed(high)}]"


def _strip(strip: Mapping[str, Any], middle: float, color: str, at: Any) -> list[Dot]:
    """The points of one method; `at` maps percentage points to pixels."""
    intervals = {int(i): _interval(strip, k) for k, i in enumerate(strip["latents"])}
    shown = list(measured(strip))
    ys = np.array([at(change) for _, change in shown])
    offsets = (
        swarm(-ys / (2 * _RADIUS), half_width=0.44 * _STRIP / (2 * _RADIUS))
        * 2
        * _RADIUS
    )
    name = method_name(strip["method"])
    return [
        Dot(
            round(middle + dx, 2),
            round(y, 2),
            color,
            f"latent {latent}, {name}: {signed(change)} points{intervals[latent]}",
            latent,
            strip["method"],
        )
        for (latent, change), y, dx in zip(shown, ys.tolist(), offsets.tolist())
    ]


def strip_drawings(numbers: Mapping[str, Any]) -> list[Drawing]:
    """One drawing per panel of what `figures.effects_figure` takes."""
    return [_panel(numbers, panel) for panel in numbers["panels"]]


def _panel(numbers: Mapping[str, Any], panel: Mapping[str, Any]) -> Drawing:
    low, high = limits(panel)
    at = lambda value: _TOP + (high - value) / (high - low) * _PLOT
    strips, right = panel["strips"], _LEFT + _STRIP * len(panel["strips"])
    colors = method_colors([s["method"] for s in strips])
    dots: list[Dot] = []
    texts = [
        Text(_LEFT - 8, round(at(t) + 4, 2), f"{t:g}".replace("-", "−"), "end")
        for t in ticks(low, high)
    ]
    crosses = []
    for k, strip in enumerate(strips):
        middle = _LEFT + (k + 0.5) * _STRIP
        values = [change for _, change in measured(strip)]
        dots += _strip(strip, middle, colors[strip["method"]], at)
        name = method_name(strip["method"])
        texts += [
            Text(middle, _TOP + _PLOT + 20, name),
            Text(middle, _TOP + _PLOT + 36, f"n = {len(values)}", name="n"),
        ]
        if values:
            mean = float(np.mean(values))
            crosses.append(
                (middle, round(at(mean), 2), f"mean of {name}: {signed(mean)} points")
            )
    band = panel.get("band")
    edges = [at(points(edge)) for edge in band] if band else []
    return Drawing(
        name="strips" if len(strips) < 5 else "many strips",
        width=right + 4,
        height=_TOP + _PLOT + 44,
        title=heading(numbers, panel),
        alt=f"A point per latent and a strip per method: change in the rate of {numbers['behaviour']}, steering "
        f"{panel['direction']}, in percentage points.",
        boxes=(
            (_LEFT, round(edges[1], 2), right - _LEFT, round(edges[0] - edges[1], 2)),
        )
        if band
        else (),
        lines=(
            *(
                (_LEFT, round(at(t), 2), right, round(at(t), 2), "grid")
                for t in ticks(low, high)
                if t
            ),
            (_LEFT, round(at(0), 2), right, round(at(0), 2), "zero"),
        ),
        texts=tuple(texts),
        dots=tuple(dots),
        crosses=tuple(crosses),
    )


def scatter_drawings(numbers: Mapping[str, Any]) -> list[Drawing]:
    """The two panels of what `figures.ablation_figure` takes."""
    colors = method_colors(["delta_attribution", "random"])
    named = [
        (
            p["first_order"],
            p["exact"],
            colors["random" if p["group"] == "random" else "delta_attribution"],
            p,
        )
        for p in sorted(numbers["latents"], key=lambda p: p["group"] != "random")
    ]
    single = zip(numbers["single"]["first_order"], numbers["single"]["exact"])
    unnamed = [(x, y, colors["delta_attribution"], None) for x, y in single]
    titles = {
        "joint": "all positions of the scope together",
        "single": "single positions",
    }
    return [
        _square(titles[name], numbers["correlations"][name], rows)
        for name, rows in (("joint", named), ("single", unnamed))
    ]


def _square(
    title: str,
    correlation: Mapping[str, Any],
    rows: Sequence[tuple[Any, Any, str, Any]],
) -> Drawing:
    """First order against exact, with equal axes and the line of equality."""
    known = [
        r
        for r in rows
        if r[0] is not None and r[1] is not None and np.isfinite([r[0], r[1]]).all()
    ]
    values = [0.0, *(v for r in known for v in r[:2])]
    room = max(0.06 * (max(values) - min(values)), 1e-9)
    low, high = min(values) - room, max(values) + room
    across = lambda v: round(_MARGIN + (v - low) / (high - low) * _SQUARE, 2)
    up = lambda v: round(_TOP + (high - v) / (high - low) * _SQUARE, 2)
    dots = tuple(
        Dot(
            across(x),
            up(y),
            color,
            f"latent {p['latent']}, {p['group']}: first order {x:.3g}, exact {y:.3g}",
            p["latent"],
        )
        if p
        else Dot(across(x), up(y), color, f"first order {x:.3g}, exact {y:.3g}")
        for x, y, color, p in known
    )
    bottom = _TOP + _SQUARE
    right = _MARGIN + _SQUARE
    round_ones = ticks(low, high, count=5)
    number = lambda t: f"{t:.3g}".replace("-", "−")
    known_r = {k: correlation.get(k) for k in ("pearson", "spearman")}
    r = ", ".join(
        f"{k.title()} {v:.2f}"
        for k, v in known_r.items()
        if v is not None and np.isfinite(v)
    )
    return Drawing(
        name="square",
        width=right + 10,
        height=bottom + 42,
        title=tuple(line for line in (title, r) if line),
        alt=f"First-order attribution against exact mean ablation, {title}. {r}",
        boxes=(),
        lines=(
            *((across(t), _TOP, across(t), bottom, "grid") for t in round_ones),
            *((_MARGIN, up(t), right, up(t), "grid") for t in round_ones),
            (across(low), up(low), across(high), up(high), "equal"),
        ),
        texts=(
            *(Text(across(t), bottom + 18, number(t)) for t in round_ones),
            *(Text(_MARGIN - 8, up(t) + 4, number(t), "end") for t in round_ones),
            Text((_MARGIN + right) / 2, bottom + 37, "first order (nats)"),
            Text(_MARGIN + 6, _TOP + 12, "exact (nats)", "start"),
        ),
        dots=dots,
        crosses=(),
    )
