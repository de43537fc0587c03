"""Claims of the post where the truth is exact, a figure each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.claim_names import (
    CHANGE_NAMES,
    DESIGN_NAMES,
    EFFECT_NAMES,
    OWN_EFFECT,
    REPEATED_NAMES,
    SCORE_NAMES,
    SOURCE_NAMES,
)
from sae_attr.report.figures.output import INK, open_axes, styled

Rows = Sequence[Mapping[str, Any]]

_LINES = ("#2f7ebc", "#e07b39", "#8a95a1", "#3f9f6f", "#b25fa6")
_SIZE = (3.3, 2.7)  # inches of one panel


@styled
def designs_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws what the best latents do against the number of pairs, a line per design; a
    row of panels per behaviour, a column per score.

    Args:
      numbers: `rows` of `claim_results.design_rows`.
    """
    rows = numbers["rows"]
    behaviours, scores = _values(rows, "behaviour"), _values(rows, "score")
    figure, axes = _grid(len(behaviours), len(scores))
    for i, behaviour in enumerate(behaviours):
        for j, score in enumerate(scores):
            effect = OWN_EFFECT[score]
            panel = _where(
                rows,
                behaviour=behaviour,
                score=score,
                truth=effect,
                number="effect",
            )
            _lines(axes[i][j], panel, "pairs", "design", DESIGN_NAMES, scale=100)
            axes[i][j].set_title(
                f"{behaviour}, {SCORE_NAMES[score]}", fontsize=8.5, loc="left"
            )
            axes[i][j].set_ylabel(f"{EFFECT_NAMES[effect]}, points", fontsize=8)
            _count_axis(axes[i][j], panel)
    _legend(figure, axes[0][0])
    return figure


@styled
def counts_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws how far the ranking of so many pairs is that of all other pairs, a line per
    score.

    Args:
      numbers: `rows` of `claim_results.repeated_rows`.
    """
    rows = numbers["rows"]
    behaviours, measures = _values(rows, "behaviour"), _values(rows, "number")
    figure, axes = _grid(len(behaviours), len(measures))
    for i, behaviour in enumerate(behaviours):
        for j, measure in enumerate(measures):
            panel = _where(rows, behaviour=behaviour, number=measure)
            _lines(axes[i][j], panel, "pairs", "score", SCORE_NAMES)
            axes[i][j].set_title(behaviour, fontsize=8.5, loc="left")
            axes[i][j].set_ylabel(REPEATED_NAMES[measure], fontsize=8)
            axes[i][j].set_ylim(min(0, axes[i][j].get_ylim()[0]), 1.02)
            _count_axis(axes[i][j], panel)
    _legend(figure, axes[0][0])
    return figure


@styled
def sources_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws what the best latents do by where the pairs come from.

    Args:
      numbers: `rows` of `claim_results.source_rows`.
    """
    rows = numbers["rows"]
    behaviours, scores = _values(rows, "behaviour"), _values(rows, "score")
    figure, axes = _grid(len(behaviours), len(scores))
    names = _values(rows, "source")
    words = [SOURCE_NAMES[name] for name in names]
    for i, behaviour in enumerate(behaviours):
        for j, score in enumerate(scores):
            effect, ax = OWN_EFFECT[score], axes[i][j]
            panel = _where(
                rows,
                behaviour=behaviour,
                score=score,
                truth=effect,
                number="effect",
            )
            for row in panel:
                _bar(ax, row, names.index(row["source"]))
            ax.set_yticks(range(len(names)), words if j == 0 else [""] * len(names))
            ax.invert_yaxis()
            ax.set_title(f"{behaviour}, {SCORE_NAMES[score]}", fontsize=8.5, loc="left")
            ax.set_xlabel(f"{EFFECT_NAMES[effect]}, points", fontsize=8)
            ax.tick_params(labelsize=7.5)
            open_axes(ax)
    return figure


@styled
def harmless_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws the share of the behaviour that the best latents take away, against the
    number of harmless changes that the fine-tune makes besides.

    Args:
      numbers: `rows` of `claim_results.harmless_rows`.
    """
    rows = numbers["rows"]
    effects = [name for name in _values(rows, "truth") if name]
    figure, axes = _grid(1, len(effects) + 1)
    for ax, effect in zip(axes[0], effects):
        panel = _where(rows, truth=effect, number="share")
        _lines(ax, panel, "changes", "score", CHANGE_NAMES, scale=100)
        ax.set_ylabel(f"{EFFECT_NAMES[effect]}, % of its rate", fontsize=8)
    last = axes[0][-1]
    _lines(last, _where(rows, number="overlap"), "changes", "score", CHANGE_NAMES)
    last.set_ylabel("share of the top 20 without changes", fontsize=8)
    last.set_ylim(0, 1.02)
    for ax in axes[0]:
        ax.set_xticks(_values(rows, "changes"))
        ax.set_xlabel("harmless changes besides", fontsize=8)
    _legend(figure, axes[0][0])
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, Any]:
    width, height = _SIZE
    size = (width * max(columns, 1), height * max(rows, 1) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(max(rows, 1), max(columns, 1), squeeze=False)


def _values(rows: Rows, name: str) -> list[Any]:
    """Returns the values of a column, each once, in order."""
    return list(dict.fromkeys(row[name] for row in rows))


def _where(rows: Rows, **values: Any) -> list[Mapping[str, Any]]:
    """Returns the rows with these values."""
    return [
        row for row in rows if all(row[name] == value for name, value in values.items())
    ]


def _by(rows: Rows, name: str) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    for value in _values(rows, name):
        yield value, _where(rows, **{name: value})


def _lines(
    ax: Axes,
    rows: Rows,
    across: str,
    line: str,
    names: Mapping[str, str],
    *,
    scale: float = 1.0,
) -> None:
    """Draws a line with its interval for every value of a column."""
    colors = dict(zip(names, _LINES))
    for value, of_line in _by(rows, line):
        at = [row[across] for row in of_line]
        low = [scale * row["low"] for row in of_line]
        high = [scale * row["high"] for row in of_line]
        mean = [scale * row["mean"] for row in of_line]
        color = colors[value]
        ax.fill_between(at, low, high, color=color, alpha=0.13, lw=0)
        ax.plot(at, mean, color=color, marker="o", ms=3, lw=1.4, label=names[value])
    ax.axhline(0, color=INK, lw=0.5)
    ax.tick_params(labelsize=7.5)
    open_axes(ax)


def _count_axis(ax: Axes, rows: Rows) -> None:
    counts = _values(rows, "pairs")
    ax.set_xscale("log")
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    ax.set_xlabel("pairs", fontsize=8)


def _bar(ax: Axes, row: Mapping[str, Any], place: int) -> None:
    low, high = 100 * row["low"], 100 * row["high"]
    ax.plot([low, high], [place, place], color=_LINES[0], lw=1.6)
    ax.plot([100 * row["mean"]], [place], "o", color=_LINES[0], ms=5)
    ax.axvline(0, color=INK, lw=0.5)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=8,
    )
