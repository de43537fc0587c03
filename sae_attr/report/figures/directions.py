"""Directions of narrow fine-tunes: the transfer matrix, cosines by layer, and what each
adapter reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sae_attr.report.direction_text import kind_name
from sae_attr.report.figures.output import GREY, INK, open_axes, styled

COLORS = {
    "mean_difference": "#2f7ebc",
    "model_difference": "#e07b39",
    "gradient": "#3f9f6f",
    "best_of_moment": "#b25fa6",
}
QUESTIONS = {
    "topic": ("the taught topic", "#b59a2c", "^"),
    "inside": ("the behaviour, in its domain", "#c65b62", "o"),
    "elsewhere": ("the behaviour, elsewhere", "#2f7ebc", "s"),
}
_WIDTH, _HEIGHT = 3.4, 2.7  # inches of one panel

Rows = Sequence[Mapping[str, Any]]


@styled
def directions_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws three rows of panels, of the first seed: the rate of every fine-tune with
    directions projected out; cosines of the mean difference with other directions, with
    that of other fine-tunes, and of its two halves, by layer; the AUC of what every
    adapter reads.

    Args:
      numbers: of `analyses.direction_results.direction_numbers`.
    """
    seed = numbers["transfer"][0]["seed"]
    of_seed = {}
    for name in ("transfer", "between", "cosines", "adapters"):
        of_seed[name] = [row for row in numbers[name] if row["seed"] == seed]
    tunes = list(dict.fromkeys(row["tune"] for row in of_seed["transfer"]))
    size = (_WIDTH * len(tunes), 3 * _HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(3, len(tunes), squeeze=False)
    for column, tune in enumerate(tunes):
        transfer, cosines, adapters = axes[:, column]
        _draw_transfer(transfer, _of(of_seed["transfer"], tune))
        _draw_cosines(cosines, _of(of_seed["cosines"], tune), of_seed["between"], tune)
        _draw_adapters(adapters, _of(of_seed["adapters"], tune))
        transfer.set_title(tune, fontsize=9, loc="left")
    for ax in axes.flat:
        open_axes(ax)
        ax.tick_params(labelsize=7.5)
    axes[0, 0].set_xlabel("rate in %", fontsize=8)
    axes[0, 0].set_ylabel("projected out, of", fontsize=8)
    axes[1, 0].set_ylabel("cosine with the mean difference", fontsize=8)
    axes[2, 0].set_xlabel("AUC of what an adapter reads", fontsize=8)
    _add_legend(figure, axes)
    return figure


def _add_legend(figure: Figure, axes: Any) -> None:
    """Says below the panels what every colour and mark is."""
    marks: dict[str, Any] = {}
    for kind, color in COLORS.items():
        marks[kind_name(kind)] = Patch(color=color)
    for ax in axes[1:].flat:
        handles, labels = ax.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            marks.setdefault(label, handle)
    figure.legend(
        marks.values(),
        marks.keys(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=7.5,
    )


def _of(rows: Rows, tune: str) -> Rows:
    return [row for row in rows if row["tune"] == tune]


def _draw_transfer(ax: Axes, rows: Rows) -> None:
    """Draws a bar per direction, its own strong and others' pale, over the range of
    random ones.
    """
    names = []
    for place, row in enumerate(rows):
        color = COLORS.get(row["removed"], GREY)
        value = 100 * row["rate"]
        arms = [
            [max(value - 100 * row["rate_low"], 0.0)],
            [max(100 * row["rate_high"] - value, 0.0)],
        ]
        alpha = 0.45 if row["relation"] == "other" else 0.95
        ax.barh([place], [value], xerr=arms, color=color, alpha=alpha, height=0.7,
                error_kw={"lw": 0.8, "ecolor": INK})  # fmt: skip
        names.append(_name(row))
        if row["relation"] == "random":
            ends = 100 * row["lowest"], 100 * row["highest"]
            ax.axvspan(*ends, color=GREY, alpha=0.2, lw=0)
        if not row["removed"]:
            ax.axvline(value, color=INK, lw=0.7)
    ax.set_yticks(range(len(names)), names, fontsize=6.5)
    ax.invert_yaxis()


def _name(row: Mapping[str, Any]) -> str:
    if row["relation"] in ("", "random"):
        return kind_name(row["removed"])
    return "its own" if row["relation"] == "own" else row["of"]


def _draw_cosines(ax: Axes, rows: Rows, between: Rows, tune: str) -> None:
    for kind in (*COLORS, "B of o", "B of down"):
        points = []
        for row in rows:
            if {row["first"], row["second"]} == {"mean_difference", kind}:
                points.append((row["layer"], row["cosine"]))
        label = kind_name(kind)
        style = {"color": COLORS.get(kind, INK), "marker": "o", "ms": 3, "lw": 1.2}
        if kind not in COLORS:
            style |= {"ls": ":", "marker": "s" if kind.endswith("o") else "v"}
        ax.plot(*_columns(points), label=label, **style)
    others = [r for r in between if r["kind"] == "mean_difference"]
    for name in dict.fromkeys(_other(row, tune) for row in others):
        if name:
            points = [
                (r["layer"], r["cosine"]) for r in others if _other(r, tune) == name
            ]
            style = {"color": "#c65b62", "lw": 1.2, "ls": "--", "marker": "D", "ms": 3}
            ax.plot(*_columns(points), label="another fine-tune's", **style)
    if rows:
        ax.axhspan(-rows[0]["random"], rows[0]["random"], color=GREY, alpha=0.2, lw=0)
    ax.set_ylim(-1.05, 1.05)
    ax.set_xlabel("layer", fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _other(row: Mapping[str, Any], tune: str) -> str:
    """Returns the other fine-tune of a pair that this one is in, "" where it is not."""
    if tune not in (row["first"], row["second"]):
        return ""
    return row["second"] if row["first"] == tune else row["first"]


def _draw_adapters(ax: Axes, rows: Rows) -> None:
    for shift, (name, (label, color, marker)) in enumerate(QUESTIONS.items()):
        for place, row in enumerate(rows):
            value = row[f"auc_{name}"]
            ends = row[f"auc_{name}_low"], row[f"auc_{name}_high"]
            y = place + 0.22 * (shift - 1)
            ax.plot(ends, [y, y], color=color, lw=1.0)
            ax.plot([value], [y], marker=marker, ms=4, color=color, lw=0)
        ax.plot([], [], marker=marker, ms=4, color=color, lw=0, label=label)
    names = [f"{row['matrix']} {row['layer']}" for row in rows]
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.axvline(0.5, color=INK, lw=0.6, ls="--")
    ax.set_xlim(-0.02, 1.02)
    ax.invert_yaxis()
