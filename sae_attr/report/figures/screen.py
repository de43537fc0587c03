"""The screen against measured effects, a point per steered latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.output import GREY, Mark, open_axes, styled
from sae_attr.report.figures.strips import points
from sae_attr.report.method_style import method_colors, method_name
from sae_attr.report.numbers import is_known, signed


@styled
def screen_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws the change of log p(C) − log p(C′) on held-out pairs against the measured
    change of the rate, a panel per direction. Points have the ids that `screen_marks`
    explains.

    Args:
      numbers: `panels`: one per direction, each {direction, spearman, points}; a point
        is {latent, method, screen (nats), change (a share)}; NaN or None is not known.
    """
    panels = numbers["panels"]
    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel)
    return figure


def _draw_panel(ax: Axes, panel: Mapping[str, Any]) -> None:
    colors = method_colors([row["method"] for row in panel["points"]])
    shown: dict[str, None] = {}
    for row in _known(panel):
        style = {"marker": "o", "ls": "", "ms": 5, "mew": 0, "alpha": 0.8}
        style["color"] = colors[row["method"]]
        y = points(row["change"])
        ax.plot([row["screen"]], [y], gid=_id(panel, row), zorder=2, **style)
        shown[row["method"]] = None
    for method in shown:
        style = {"marker": "o", "ls": "", "ms": 5, "mew": 0, "color": colors[method]}
        ax.plot([], [], label=method_name(method), **style)
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=GREY, lw=0.5, zorder=0)
    agreement = "–"
    if is_known(panel["spearman"]):
        agreement = signed(panel["spearman"], 2)
    title = f"Steering {panel['direction']}\nSpearman {agreement}"
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.set_xlabel("screen: change of log p(C) − log p(C′), nats", fontsize=9)
    ax.set_ylabel("measured change (percentage points)", fontsize=9)
    open_axes(ax)
    if shown:
        ax.legend(frameon=False, fontsize=8)


def _known(panel: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the points of which both changes are known."""
    for row in panel["points"]:
        if is_known(row["screen"]) and is_known(row["change"]):
            yield row


def _id(panel: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"screen-{panel['direction']}-{int(row['latent'])}"


def screen_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the points that `screen_figure` draws."""
    marks = {}
    for panel in numbers["panels"]:
        for row in _known(panel):
            label = (
                f"latent {row['latent']}, {method_name(row['method'])}: screen "
                f"{signed(row['screen'], 2)} nats, measured "
                f"{signed(points(row['change']))} points"
            )
            marks[_id(panel, row)] = Mark(label, int(row["latent"]))
    return marks
