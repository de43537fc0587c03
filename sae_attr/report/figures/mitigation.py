"""Latents suppressed together: the behaviour's rate against their number, and against
what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.output import GREY, INK, PAPER, open_axes, styled
from sae_attr.report.method_style import COLORS
from sae_attr.report.safe_text import one_line

METHODS = {
    "cause": ("by cause", COLORS["delta_attribution"], "o"),
    "lever": ("by lever", COLORS["gradient"], "s"),
    "random": ("random latents", COLORS["random"], "o"),
}
DIRECTIONS = {
    "site": ("direction out, the SAE's layer", "#b59a2c", "D"),
    "layers": ("direction out, every layer", "#c65b62", "D"),
}
WAYS = {
    "mean": "set to the mean",
    "zero": "removed",
    "steer": "steered against",
}
_LONGEST = 70  # characters of a name


@styled
def mitigation_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws a row per way to suppress: the rate against the number of latents, against
    perplexity on ordinary text, and against the accuracy on each benign set of prompts.
    Hollow: too little coherence is left.

    Args:
      numbers: `behaviour`, in words; `benign`: names of the sets of prompts; `rows`: of
        `analyses.mitigation_results.mitigation_rows`. Rates are shares.
    """
    rows = numbers["rows"]
    ways = [way for way in WAYS if any(row["block"] == way for row in rows)]
    costs = ["perplexity", *(f"accuracy_{name}" for name in numbers["benign"])]
    size = (3.1 * (1 + len(costs)), 2.6 * len(ways) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(ways), 1 + len(costs), sharey=True, squeeze=False)
    for way, of_way in zip(ways, axes, strict=True):
        _draw_counts(of_way[0], way, rows)
        of_way[0].set_ylabel(f"latents {WAYS[way]}\nrate in %", fontsize=8.5)
        for ax, cost in zip(of_way[1:], costs, strict=True):
            _draw_cost(ax, way, rows, cost)
    for ax in axes.flat:
        open_axes(ax)
        ax.tick_params(labelsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=len(labels),
        fontsize=8,
        frameon=False,
    )
    behaviour = one_line(numbers["behaviour"], _LONGEST)
    figure.suptitle(f"Rate of {behaviour}", fontsize=9.5, x=0.01, ha="left")
    return figure


def _of(rows: Sequence[Mapping[str, Any]], block: str, method: str) -> list[Any]:
    return [row for row in rows if (row["block"], row["method"]) == (block, method)]


def _percent(row: Mapping[str, Any], name: str) -> tuple[float, tuple[Any, Any]]:
    """Returns a value in per cent and the lengths of its interval's arms."""
    value, low, high = (row[name], row[f"{name}_low"], row[f"{name}_high"])
    # A percentile interval may leave out the value itself.
    arms = max(value - low, 0.0), max(high - value, 0.0)
    return 100 * value, ([100 * arms[0]], [100 * arms[1]])


def _draw_counts(ax: Axes, way: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for block, (label, color, _) in DIRECTIONS.items():
        for row in _of(rows, block, "direction"):
            value, _ = _percent(row, "rate")
            ax.axhline(value, color=color, lw=1.2, ls="--", label=label)
            ends = [100 * row["rate_low"], 100 * row["rate_high"]]
            ax.axhspan(*ends, color=color, alpha=0.12, lw=0)
    for method, style in METHODS.items():
        of_method = _of(rows, way, method)
        _draw_method(ax, of_method, *style)
        if method == "random":
            _draw_draws(ax, of_method, style[1])
    for row in _of(rows, "", "unedited"):
        ax.axhline(100 * row["rate"], color=INK, lw=0.8, label="the model as it is")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("latents suppressed together", fontsize=8.5)
    counts = sorted({row["count"] for row in _of(rows, way, "cause")})
    ax.set_xticks(counts, [str(count) for count in counts])


def _draw_method(
    ax: Axes, rows: Sequence[Mapping[str, Any]], label: str, color: str, marker: str
) -> None:
    """Draws a rate against the number of latents; hollow where the model is not
    coherent.
    """
    counts = [row["count"] for row in rows]
    values = [100 * row["rate"] for row in rows]
    lows = [100 * row["rate_low"] for row in rows]
    highs = [100 * row["rate_high"] for row in rows]
    ax.fill_between(counts, lows, highs, color=color, alpha=0.18, lw=0)
    ax.plot(counts, values, color=color, lw=1.4)
    ax.plot([], [], color=color, marker=marker, ms=4, lw=1.4, label=label)
    for row, count, value in zip(rows, counts, values, strict=True):
        face = color if row["coherent"] else PAPER
        style = {"marker": marker, "ms": 4.5, "color": color, "mfc": face}
        ax.plot([count], [value], **style)


def _draw_draws(ax: Axes, rows: Sequence[Mapping[str, Any]], color: str) -> None:
    """Marks the range over draws at each count."""
    for row in rows:
        ends = [100 * row["lowest"], 100 * row["highest"]]
        ax.plot([row["count"]] * 2, ends, color=color, lw=0.9)


def _draw_cost(
    ax: Axes, way: str, rows: Sequence[Mapping[str, Any]], cost: str
) -> None:
    for method, (_, color, marker) in METHODS.items():
        of_method = _of(rows, way, method)
        xs = [100 * row[cost] for row in of_method]
        ys = [100 * row["rate"] for row in of_method]
        ax.plot(xs, ys, color=color, lw=0.8, alpha=0.7)
        for row in of_method:
            _draw_point(ax, row, cost, color, marker)
    for block, (_, color, marker) in DIRECTIONS.items():
        for row in _of(rows, block, "direction"):
            _draw_point(ax, row, cost, color, marker)
        for row in _of(rows, block, "random_direction"):
            _draw_point(ax, row, cost, GREY, marker)
    for row in _of(rows, "", "unedited"):
        _draw_point(ax, row, cost, INK, "*")
    label = f"right answers in %, {one_line(cost.removeprefix('accuracy_'), 30)}"
    if cost == "perplexity":
        label = "perplexity, % of the unedited"
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_formatter("{x:.0f}")
    ax.set_xlabel(label.replace("_", " "), fontsize=8.5)
    ax.tick_params(which="both", labelsize=8)


def _draw_point(
    ax: Axes, row: Mapping[str, Any], cost: str, color: str, marker: str
) -> None:
    x, x_arms = _percent(row, cost)
    y, y_arms = _percent(row, "rate")
    # The more latents, the larger the point; sites of a direction have no size.
    size = 5.5
    if row["method"] in METHODS:
        size = 3.0 + 0.8 * int(row["count"]).bit_length()
    style = {"marker": marker, "ms": size, "lw": 0.6, "color": color, "alpha": 0.85}
    if not row["coherent"]:
        style["mfc"] = PAPER
    ax.errorbar([x], [y], xerr=x_arms, yerr=y_arms, **style)
