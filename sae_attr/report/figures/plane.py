"""The plane of cause and lever: what acted, what steers, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sae_attr.comparison_records import LatentName
from sae_attr.report.figures.labels import name_points
from sae_attr.report.figures.output import (
    GREY,
    INK,
    Mark,
    open_axes,
    styled,
    use_asinh,
    write_plainly,
)
from sae_attr.report.figures.strips import points as percentage_points
from sae_attr.report.numbers import is_known, signed
from sae_attr.report.safe_text import one_line

# The middle is grey, which shows on white and on black; blue lowers the rate.
_COLORS = LinearSegmentedColormap.from_list("change", ["#1663b0", "#b9c0c8", "#c2401f"])
_STEPS = 12  # colours: few enough that the SVG has one shape each
_MARKERS = {"selected": "o", "random": "^"}
_LONGEST = 60  # characters of the behaviour
_NAMED = 6  # latents whose numbers are written
_TICKS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)  # of an axis in asinh
_TITLES = {
    "steering": "colour: effect of steering away",
    "ablation": "colour: effect of exact ablation",
}
# Corner -> where its words stand, in shares of the axes.
_PLACES = {
    "acted and steers": (0.985, 0.985),
    "acted, does not steer": (0.985, 0.02),
    "steers, did not act": (0.015, 0.985),
    "neither": (0.015, 0.02),
}
# Left, low, right, high of these words, in shares of the axes.
_RESERVED = (
    (0.0, 0.9, 0.4, 1.0),
    (0.6, 0.9, 1.0, 1.0),
    (0.0, 0.0, 0.4, 0.1),
    (0.6, 0.0, 1.0, 0.1),
)


@styled
def plane_figure(
    numbers: Mapping[str, Any], panels: Sequence[str] | None = None
) -> Figure:
    """Draws every steered latent by its Δ and its −Δg·d, a panel per measured effect,
    which gives the colours. Points have the ids that `plane_marks` explains.

    Args:
      numbers: `behaviour`: what is counted, in words; `effects`: steering, and ablation
        where it was measured; `points`: each {latent, group (selected | random),
        cause_z, lever_z (standard deviations), corner, and its change by effect (a
        share; NaN or None is not measured)}; `corners`: each {corner, selected, random};
        `thresholds`: {cause, lever}; `agreement`: effect -> Spearman correlation of
        cause_z and lever_z with how far the rate falls.
      panels: some of the effects; None for all.
    """
    effects: Sequence[str] = panels or numbers["effects"]
    figure = Figure(figsize=(5.7 * len(effects), 5.2), layout="constrained")
    axes = figure.subplots(1, len(effects), squeeze=False)[0]
    for ax, effect in zip(axes, effects, strict=True):
        _draw_panel(ax, numbers, effect)
    return figure


def _draw_panel(ax: Axes, numbers: Mapping[str, Any], effect: str) -> None:
    reach = _reach(numbers["points"], effect)
    norm = BoundaryNorm(np.linspace(-reach, reach, _STEPS + 1), _COLORS.N)
    _scale_axes(ax, numbers)
    _draw_corners(ax, numbers)
    for point in _drawn(numbers["points"]):
        change = percentage_points(point[effect])
        measured = is_known(change)
        # Both ends of the colours are equally dark: without colours the edge tells.
        rises = measured and change > 0
        ax.plot(
            [point["cause_z"]],
            [point["lever_z"]],
            marker=_MARKERS[point["group"]],
            ls="",
            ms=5.2 if point["group"] == "random" else 6.2,
            mew=0.9 if rises or not measured else 0,
            mec=INK if rises else GREY,
            mfc=_COLORS(norm(change)) if measured else "none",
            gid=_point_id(point, effect),
            zorder=2 + (point["group"] == "selected"),
        )
    places = [(point["cause_z"], point["lever_z"]) for point in numbers["points"]]
    name_points(
        ax,
        _most_affected(numbers["points"], effect),
        points=places,
        reserved=_RESERVED,
        count=_NAMED,
    )
    _explain(ax)
    _draw_scale(ax, norm)
    ax.set_title(_title(numbers, effect), fontsize=9.5, loc="left")
    ax.set_xlabel("cause: Δ (standard deviations over the dictionary)", fontsize=9)
    ax.set_ylabel("lever: −Δg·d (standard deviations)", fontsize=9)
    open_axes(ax)


def _explain(ax: Axes) -> None:
    """Adds the legend of markers and edges below the axes."""
    style: dict[str, Any] = {}
    for group, marker in _MARKERS.items():
        style = {"marker": marker, "ls": "", "ms": 6, "mew": 0, "color": GREY}
        ax.plot([], [], label=f"{group} latents", **style)
    style |= {"marker": "o", "mew": 0.9, "mec": INK, "mfc": "none"}
    ax.plot([], [], label="edge: the rate rises", **style)
    ax.legend(
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=3,
        columnspacing=1.2,
        handletextpad=0.3,
        fontsize=8,
    )


def _title(numbers: Mapping[str, Any], effect: str) -> str:
    behaviour = one_line(numbers["behaviour"], _LONGEST)
    agreement = numbers["agreement"][effect]
    parts = []
    for name, axis in (("cause_z", "cause"), ("lever_z", "lever")):
        parts.append(f"{axis} {signed(agreement[name], 2)}")
    return (
        f"{_TITLES[effect]} on the rate of {behaviour}\n"
        f"Spearman with how far it falls: {', '.join(parts)}"
    )


def _scale_axes(ax: Axes, numbers: Mapping[str, Any]) -> None:
    """Makes distant latents fit: beyond some standard deviations the scale is that of
    the logarithm.
    """
    axes = (("x", "cause_z", "cause"), ("y", "lever_z", "lever"))
    for axis, name, threshold in axes:
        values = [point[name] for point in _drawn(numbers["points"])]
        values += [0.0, numbers["thresholds"][threshold]]
        low, high = min(values), max(values)
        room = 0.14 * (high - low)
        if max(-low, high) > 8:
            low, high = low * 1.3, high * 1.3
            ticks = [place for place in _TICKS if low <= place <= high]
            use_asinh(ax, axis, ticks)
        else:
            low, high = low - room, high + room
        getattr(ax, f"set_{axis}lim")(low, high)
        write_plainly(ax, axis)


def _draw_corners(ax: Axes, numbers: Mapping[str, Any]) -> None:
    """Draws the lines at which the corners begin, and their names with counts."""
    line = {"color": INK, "lw": 0.7, "ls": "--", "zorder": 0}
    ax.axvline(numbers["thresholds"]["cause"], **line)
    ax.axhline(numbers["thresholds"]["lever"], **line)
    for counts in numbers["corners"]:
        x, y = _PLACES[counts["corner"]]
        ax.text(
            x,
            y,
            f"{counts['corner']}\n{counts['selected']} selected, {counts['random']} random",
            transform=ax.transAxes,
            ha="left" if x < 0.5 else "right",
            va="bottom" if y < 0.5 else "top",
            fontsize=8.5,
            zorder=4,
        )


def _draw_scale(ax: Axes, norm: BoundaryNorm) -> None:
    """Draws the colours with their meaning beside the axes."""
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(norm, _COLORS), ax=ax, shrink=0.75, aspect=28, pad=0.02
    )
    bar.set_label("change in rate (percentage points)", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v, 0)))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _reach(points: Sequence[Mapping[str, Any]], effect: str) -> float:
    """Returns the largest change either way, in percentage points; the colours go from
    it to its negative.
    """
    changes = [abs(percentage_points(point[effect])) for point in points]
    return max([change for change in changes if is_known(change)], default=1.0) or 1.0


def _drawn(points: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the points, random ones first: those of methods lie above them."""
    for group in ("random", "selected"):
        for point in points:
            if point["group"] == group:
                yield point


def _most_affected(
    points: Sequence[Mapping[str, Any]], effect: str
) -> list[tuple[LatentName, tuple[float, float]]]:
    """Returns the selected latents whose effect is known, the largest first."""
    measured = []
    for point in points:
        if point["group"] == "selected" and is_known(point[effect]):
            measured.append(point)
    measured.sort(key=lambda point: -abs(point[effect]))
    return [(p["latent"], (p["cause_z"], p["lever_z"])) for p in measured]


def _point_id(point: Mapping[str, Any], effect: str) -> str:
    return f"{effect}-{point['group']}-{point['latent']}"


def plane_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the points that `plane_figure` draws."""
    marks = {}
    for effect in numbers["effects"]:
        for point in _drawn(numbers["points"]):
            latent = point["latent"]
            parts = [
                f"cause {signed(point['cause_z'])}",
                f"lever {signed(point['lever_z'])}",
            ]
            for name in numbers["effects"]:
                change = signed(percentage_points(point[name]))
                parts.append(f"{name} {change} points")
            label = (
                f"latent {latent}, {point['group']}: {point['corner']}; "
                f"{', '.join(parts)}"
            )
            marks[_point_id(point, effect)] = Mark(label, latent)
    return marks
