"""Changes under steering, latent by latent (Figures 1 and 2 of the method)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sae_attr.report.figures.output import (
    GREY,
    INK,
    PAPER,
    Mark,
    open_axes,
    styled,
)
from sae_attr.report.figures.strips import (
    Measured,
    heading,
    limits,
    measured,
    points,
    swarm,
    ticks,
)
from sae_attr.report.method_style import (
    RANDOM,
    first_name,
    method_colors,
    method_name,
)
from sae_attr.report.numbers import is_known, p_value, signed, span

_HEIGHT, _STRIP, _DIAMETER = 4.9, 1.15, 5.6  # inches, inches, points
_WIDE, _LINES = 8.4, 0.4  # inches that the legend needs as one line; of two lines more
_PLOT = 0.72  # share of the height that the axes get
_INCH = 72  # points
# Strips are 1 apart: half the width of one, and from its leftmost point to its mean.
_HALF, _MEAN = 0.36, 0.12
_TICK = 16  # characters of a line below a strip


@styled
def effects_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws a strip of points per method, a point a latent: the change in the rate of
    the behaviour under steering.

    × is the mean, with its bootstrap interval as a line, left of the strip, where it
    hides no point; the grey band is the typical range of random latents. Below a strip
    stand the number of its latents beyond the band on the side that matters, of those
    with at least one graded pair, and the q-value of that count. Points and means have
    the ids that `effect_marks` explains.

    Args:
      numbers: `behaviour`: what is counted, in words; `signed`: true where each latent
        was steered by the sign of its own gradient, random ones too; `ablated`: true
        where each latent was set to its mean instead (either may be absent);
        `panels`: one per direction, away first, each {direction (away | toward), model
        (the steered one's name), base_rate, band ([low, high] or None), prompts,
        samples, strips}; a strip is {method, latents, change, low, high}, lists of
        equal length, and of the method (may be absent) mean, mean_low, mean_high,
        outside, expected (by chance), q. Rates, changes and edges are shares; NaN or
        None is not measured. `steering.compare.panel_numbers` makes a panel.
    """
    panels = numbers["panels"]
    widths = [_panel_width(panel) for panel in panels]
    is_wide = sum(widths) >= _WIDE
    height = _HEIGHT if is_wide else _HEIGHT + _LINES
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, panel, width in zip(axes, panels, widths, strict=True):
        _draw_panel(ax, panel)
        lines: list[str] = []
        for line in heading(numbers, panel):
            lines += wrap(line, int(13 * width))
        ax.set_title("\n".join(lines), fontsize=9.5, loc="left")
    axes[0].set_ylabel("change in rate (percentage points)", fontsize=9)
    _explain(figure, columns=3 if is_wide else 1)
    return figure


def _panel_width(panel: Mapping[str, Any]) -> float:
    """Returns a panel's width in inches: of its strips, and of its title at least."""
    return max(4.2, 0.9 + _STRIP * len(panel["strips"]))


def _draw_panel(ax: Axes, panel: Mapping[str, Any]) -> None:
    low, high = limits(panel)
    if panel.get("band"):
        edges = [100 * edge for edge in panel["band"]]
        ax.axhspan(*edges, color=GREY, alpha=0.25, lw=0, zorder=0)
    ax.axhline(0, color=INK, lw=0.7, zorder=1)
    strips = panel["strips"]
    ax.set(xlim=(-0.6, len(strips) - 0.4), ylim=(low, high), yticks=ticks(low, high))
    methods = [strip["method"] for strip in strips]
    colors = method_colors(methods)
    for at, strip in enumerate(strips):
        rows = list(measured(strip))
        prefix = _strip_id(panel, at)
        if rows:
            color = colors[strip["method"]]
            left = _draw_strip(ax, at, rows, color, high - low, prefix)
            _draw_mean(ax, left - _MEAN, strip, rows, prefix)
        ax.annotate(
            _count_text(strip, len(rows), panel["direction"]),
            (at, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -33),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            linespacing=1.35,
        )
    names = ["\n".join(wrap(first_name(method), _TICK)) for method in methods]
    ax.set_xticks(range(len(strips)), names, fontsize=9)
    ax.tick_params(axis="x", length=0)
    open_axes(ax)
    ax.spines["bottom"].set_visible(False)


def _draw_strip(
    ax: Axes, at: int, rows: list[Measured], color: str, height: float, prefix: str
) -> float:
    """Draws the points of one method around x = `at`; returns where the leftmost is.

    Args:
      height: of the axes, in percentage points.
      prefix: of the ids.
    """
    changes = np.array([row.change for row in rows])
    # In diameters of a point, so that a distance is the same in both directions. The
    # layout is fixed only when the figure is drawn: the axes' height is an estimate.
    diameters = _INCH * _HEIGHT * _PLOT / _DIAMETER
    half_width = _HALF * _INCH * _STRIP / _DIAMETER
    offsets = swarm(changes / height * diameters, half_width=half_width)
    x = at + offsets * _DIAMETER / (_INCH * _STRIP)
    point = {
        "marker": "o",
        "ls": "",
        "clip_on": False,  # the limits hold all points; the SVG needs no clip path a point
        "ms": 0.9 * _DIAMETER,
        "mew": 0,
        "color": color,
        "alpha": 0.8,
        "zorder": 2,
    }
    # An artist a point, so that each has an id of its own.
    for row, place in zip(rows, x, strict=True):
        ax.plot([place], [row.change], gid=f"{prefix}-{row.latent}", **point)
    return float(x.min())


def _draw_mean(
    ax: Axes, at: float, strip: Mapping[str, Any], rows: list[Measured], prefix: str
) -> None:
    """Draws the × of a strip's mean at x = `at`, and its bootstrap interval as a line."""
    mean = float(np.mean([row.change for row in rows]))
    interval = _mean_interval(strip)
    if interval:
        # Wide and pale beneath: the line is seen beside a full strip too.
        for width, color in ((4.0, PAPER), (2.0, INK)):
            line = {"color": color, "lw": width, "solid_capstyle": "butt"}
            ax.plot([at, at], interval, zorder=3, **line)
    cross = {"marker": "x", "ls": "", "ms": 7, "zorder": 4}
    ax.plot([at], [mean], mew=4, color=PAPER, **cross)
    ax.plot([at], [mean], mew=2, color=INK, gid=f"{prefix}-mean", **cross)


def _mean_interval(strip: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns the interval of a strip's mean in percentage points, where it is known."""
    low, high = points(strip.get("mean_low")), points(strip.get("mean_high"))
    return (low, high) if is_known(low) and is_known(high) else None


def _count_text(strip: Mapping[str, Any], measured_here: int, direction: str) -> str:
    """Returns the count of latents beyond the band with its q-value, as it stands below
    a strip; the number of points where there is none.
    """
    if strip["method"] == RANDOM or not is_known(strip.get("expected")):
        return f"n = {measured_here}"
    side = "below" if direction == "away" else "above"
    lines = [
        f"{strip['outside']} of {measured_here} {side}",
        f"({strip['expected']:.1f} by chance)",
        f"q {p_value(strip['q'])}",
    ]
    return "\n".join(lines)


def _explain(figure: Figure, columns: int) -> None:
    """Adds the legend of the cross, the band and q below the panels."""
    mean = Line2D(
        [], [], color=INK, marker="x", ls="", mew=2, label="mean, 95 % interval"
    )
    band = Patch(
        color=GREY,
        alpha=0.25,
        lw=0,
        label="band: random latents (5th to 95th percentile)",
    )
    rate = Line2D(
        [], [], ls="", label="counts: latents beyond the band; q: false discovery rate"
    )
    figure.legend(
        handles=[mean, band, rate],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
    )


def effect_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the points and means that `effects_figure` draws."""
    marks: dict[str, Mark] = {}
    for panel in numbers["panels"]:
        for at, strip in enumerate(panel["strips"]):
            marks |= _strip_marks(strip, _strip_id(panel, at))
    return marks


def _strip_id(panel: Mapping[str, Any], at: int) -> str:
    """Returns the beginning of a strip's ids: a method's name may hold anything, so that
    its number stands for it.
    """
    return f"{panel['direction']}-{at}"


def _strip_marks(strip: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mark]]:
    """Yields id and meaning of one strip's points and mean."""
    name = method_name(strip["method"])
    rows = list(measured(strip))
    for row in rows:
        change = f"{signed(row.change)} points {span(row.low, row.high, scale=1)}"
        label = f"latent {row.latent}, {name}: {change.rstrip()}"
        yield f"{prefix}-{row.latent}", Mark(label, row.latent)
    if rows:
        mean = np.mean([row.change for row in rows])
        interval = span(strip.get("mean_low"), strip.get("mean_high"))
        label = f"mean of {name}: {signed(mean)} points {interval}"
        yield f"{prefix}-mean", Mark(label.rstrip())
