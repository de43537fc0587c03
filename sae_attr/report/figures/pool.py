"""The pool of selectors: what steers against what monitors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.output import GREY, INK, open_axes, styled
from sae_attr.report.pool_text import SELECTOR_NAMES

_COLORS: Mapping[str, str] = {
    "random": GREY,
    "gradient": "#2f7ebc",
    "frequency": "#3f9f6f",
    "attribution": "#e07b39",
    "model_difference": "#b25fa6",
}
_SIZE = (4.4, 3.6)  # inches of one panel


@styled
def pool_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws steering against the lowest monitoring AUC of all tasks, a point per latent
    in the colour of its first selector, random ones grey, and a ring around a planted
    one; a panel per behaviour.

    Args:
      numbers: `rows` of `pool_results.latent_rows`.
    """
    rows = numbers["rows"]
    behaviours = list(dict.fromkeys(row["behaviour"] for row in rows))
    width, height = _SIZE
    size = (width * max(len(behaviours), 1), height + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, max(len(behaviours), 1), squeeze=False)[0]
    for ax, behaviour in zip(axes, behaviours):
        _panel(ax, [row for row in rows if row["behaviour"] == behaviour])
        ax.set_title(behaviour, fontsize=8.5, loc="left")
    marks: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    figure.legend(
        marks.values(),
        marks.keys(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def _panel(ax: Axes, rows: list[Mapping[str, Any]]) -> None:
    for name, color in _COLORS.items():
        _points(
            ax,
            [row for row in rows if row["origins"][0] == name],
            s=14 if name == "random" else 26,
            color=color,
            lw=0,
            alpha=0.5 if name == "random" else 0.9,
            label=SELECTOR_NAMES[name],
        )
    planted = [row for row in rows if "planted" in row["origins"]]
    if planted:
        name = SELECTOR_NAMES["planted"]
        _points(
            ax, planted, s=70, facecolors="none", edgecolors=INK, lw=1.2, label=name
        )
    vector = [row for row in rows if row["origins"] == ["gradient_vector"]]
    name = "the gradient vector"
    _points(ax, vector, marker="*", s=90, color=INK, lw=0, label=name)
    ax.axhline(0, color=INK, lw=0.5)
    ax.axvline(0.5, color=INK, lw=0.5, ls="--")
    ax.set_xlabel("lowest monitoring AUC of all tasks", fontsize=8)
    ax.set_ylabel("rate at +s − rate at −s, points", fontsize=8)
    ax.tick_params(labelsize=7.5)
    open_axes(ax)


def _points(ax: Axes, rows: list[Mapping[str, Any]], **style: Any) -> None:
    lowest = [row["lowest"] for row in rows]
    ax.scatter(lowest, [100 * row["steering"] for row in rows], **style)
