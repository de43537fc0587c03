"""Effects by exact probabilities against those of sampled answers, a point a latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.labels import name_points
from sae_attr.report.figures.output import GREY, Mark, draw_equality, open_axes, styled
from sae_attr.report.figures.strips import direction_name, points
from sae_attr.report.method_style import method_colors, method_name
from sae_attr.report.numbers import is_known, signed

_MARKERS = ("o", "s", "D", "v", "P")  # of methods: told apart without colours too
_NAMED = 12  # latents whose numbers are written
_ERRORS = 1.96  # standard errors that a line reaches to either side


@styled
def sampled_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws sampled against exact changes, a panel per direction; a line reaches 1.96
    binomial standard errors.

    Points have the ids that `sampled_marks` explains.

    Args:
      numbers: `panels`: one per direction, each {direction, pearson, spearman, points};
        a point is {latent, method, exact, sampled, error}. Changes are shares; NaN or
        None is not known.
    """
    panels = numbers["panels"]
    size = (4.6 * len(panels), 4.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel)
    return figure


def _draw_panel(ax: Axes, panel: Mapping[str, Any]) -> None:
    rows = list(_known(panel["points"]))
    styles = _styles([row["method"] for row in panel["points"]])
    named = []
    for row in rows:
        x, y = points(row["exact"]), points(row["sampled"])
        style = styles[row["method"]]
        reach = _ERRORS * points(row["error"])
        if not np.isnan(reach):
            line = {"color": style["color"], "lw": 1, "alpha": 0.4}
            ax.plot([x, x], [y - reach, y + reach], **line)
        ax.plot([x], [y], gid=_id(panel, row), zorder=2, **style)
        named.append((row["latent"], (x, y)))
    draw_equality(ax)
    name_points(ax, named, points=[place for _, place in named], count=_NAMED)
    lines = (
        direction_name(panel["direction"]),
        f"{len(rows)} latents: Pearson {_unsigned(panel['pearson'])}, "
        f"Spearman {_unsigned(panel['spearman'])}",
    )
    ax.set_title("\n".join(lines), fontsize=9.5, loc="left")
    ax.set_xlabel("exact change (percentage points)", fontsize=9)
    ax.set_ylabel("sampled change (percentage points)", fontsize=9)
    open_axes(ax)
    if rows:
        shown = {row["method"] for row in rows}
        _explain(ax, {name: styles[name] for name in styles if name in shown})


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns how the points of each method are drawn."""
    markers, styles = cycle(_MARKERS), {}
    for method, color in method_colors(methods).items():
        style = {"marker": next(markers), "ls": "", "ms": 6, "mew": 0}
        styles[method] = style | {"color": color}
    return styles


def _explain(ax: Axes, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the legend of methods and of the intervals."""
    for method, style in styles.items():
        ax.plot([], [], label=method_name(method), **style)
    ax.plot([], [], color=GREY, lw=1, label="95 % interval of the sampled change")
    ax.legend(frameon=False, fontsize=8)


def _unsigned(value: float | None) -> str:
    return f"{value:.2f}" if is_known(value) else "–"


def _known(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the points of which both changes are known."""
    for row in rows:
        if is_known(row["exact"]) and is_known(row["sampled"]):
            yield row


def _id(panel: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"sampled-{panel['direction']}-{row['latent']}"


def sampled_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the points that `sampled_figure` draws."""
    marks = {}
    for panel in numbers["panels"]:
        for row in _known(panel["points"]):
            label = (
                f"latent {row['latent']}, {method_name(row['method'])}: exact "
                f"{signed(points(row['exact']))}, sampled "
                f"{signed(points(row['sampled']))} points"
            )
            marks[_id(panel, row)] = Mark(label, row["latent"])
    return marks
