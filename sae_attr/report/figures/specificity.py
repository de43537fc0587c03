"""Changes under steering on several sets of prompts, latent by latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.output import GREY, INK, Mark, open_axes, styled
from sae_attr.report.figures.strips import direction_name, points
from sae_attr.report.method_style import RANDOM, method_colors, method_name
from sae_attr.report.numbers import is_known, signed, span
from sae_attr.report.safe_text import one_line
from sae_attr.report.specificity_sentences import set_name

NATS = "ordinary text"
_ROW, _COLUMN = 0.17, 2.0  # inches
_LONGEST, _TITLE = 80, 24  # characters of a name in a heading, of a column's line


@dataclass(frozen=True)
class _Dot:
    """One value of one row, with the ends of its interval."""

    value: float
    low: float
    high: float


@styled
def specificity_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws a row per latent and a column per set of prompts, with the cost on ordinary
    text as the last one; below the latents, Gaussian directions on one row.

    Dots have the ids that `specificity_marks` explains.

    Args:
      numbers: `behaviour`, in words; `direction` (away | toward); `model`: the steered
        one's name; `sets`: names of the sets of prompts, the effects' first; `base`:
        the rate on each without steering; `rows`: {method, latent, change, low, high}
        with a value a set, and `nats`; `directions`: their changes on the first set,
        and `directions_strength`. Rates and changes are shares; NaN or None is not
        known.
    """
    rows = list(_shown_rows(numbers))
    columns = [*numbers["sets"], NATS]
    height = 1.2 + _ROW * (len(rows) + bool(numbers["directions"]))
    size = (1.3 + _COLUMN * len(columns), max(2.4, height))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    colors = method_colors([row["method"] for row in rows])
    for at, ax in enumerate(axes):
        _draw_column(ax, at, rows, colors, numbers)
        _title(ax, at, numbers)
    _share_limits(axes[:-1])
    _name_rows(axes[0], rows, bool(numbers["directions"]))
    model = one_line(numbers["model"], _LONGEST)
    figure.suptitle(
        f"{direction_name(numbers['direction'])}: {model}",
        fontsize=9.5,
        x=0.01,
        ha="left",
    )
    return figure


def _shown_rows(numbers: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows in the order of the figure, from the top: methods, then random
    latents; those that were steered.
    """
    for is_random in (False, True):
        for row in numbers["rows"]:
            if (row["method"] == RANDOM) == is_random and is_known(row["change"][0]):
                yield row


def _dot(row: Mapping[str, Any], at: int, columns: int) -> _Dot:
    """Returns the value of a row in a column."""
    if at == columns:
        nats = row["nats"]
        value = float("nan") if nats is None else float(nats)
        return _Dot(value, float("nan"), float("nan"))
    return _Dot(*[points(row[name][at]) for name in ("change", "low", "high")])


def _draw_column(
    ax: Axes,
    at: int,
    rows: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
    numbers: Mapping[str, Any],
) -> None:
    ax.axvline(0, color=INK, lw=0.7, zorder=1)
    columns = len(numbers["sets"])
    for place, row in enumerate(rows):
        dot = _dot(row, at, columns)
        if np.isnan(dot.value):
            continue
        color = colors[row["method"]]
        if not np.isnan(dot.low + dot.high):
            ax.plot([dot.low, dot.high], [-place] * 2, color=color, lw=1, alpha=0.6)
        style = {"marker": "o", "ls": "", "ms": 4.5, "mew": 0, "color": color}
        ax.plot([dot.value], [-place], gid=_id(numbers, place, at), zorder=2, **style)
    if at == 0:
        changes = [points(change) for change in numbers["directions"]]
        style = {"marker": "|", "ls": "", "ms": 7, "color": GREY}
        ax.plot(changes, [-len(rows)] * len(changes), zorder=2, **style)
    ax.tick_params(labelsize=8)
    ax.tick_params(axis="y", length=0)
    open_axes(ax)


def _title(ax: Axes, at: int, numbers: Mapping[str, Any]) -> None:
    """Writes what a column is, with the rate without steering."""
    if at == len(numbers["sets"]):
        ax.set_title(f"cost on {NATS}", fontsize=8.5, loc="left")
        ax.set_xlabel("more loss (nats per token)", fontsize=8)
        return
    base = numbers["base"][at]
    lines = wrap(set_name(numbers["sets"][at]), _TITLE)
    if is_known(base):
        lines.append(f"{100 * base:.1f} % unsteered")
    ax.set_title("\n".join(lines), fontsize=8.5, loc="left")
    ax.set_xlabel("percentage points", fontsize=8)


def _share_limits(axes: Sequence[Axes]) -> None:
    """Gives all sets one scale: a smaller change there must look smaller."""
    ends = [end for ax in axes for end in ax.get_xlim()]
    for ax in axes:
        ax.set_xlim(min(ends), max(ends))


def _name_rows(ax: Axes, rows: Sequence[Mapping[str, Any]], directions: bool) -> None:
    """Writes the latents' numbers, and each method's name at its first."""
    labels, named = [], set()
    for row in rows:
        label = str(row["latent"])
        if row["method"] not in named:
            label = f"{method_name(row['method'])}  {label}"
        named.add(row["method"])
        labels.append(label)
    if directions:
        labels.append("Gaussian directions")
    ax.set_yticks([-place for place in range(len(labels))], labels, fontsize=7.5)
    ax.set_ylim(-len(labels) + 0.4, 0.6)


def _id(numbers: Mapping[str, Any], place: int, at: int) -> str:
    """Returns the id of a dot: names may hold anything, so that numbers stand for
    them.
    """
    return f"specificity-{numbers['direction']}-{place}-{at}"


def specificity_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the dots that `specificity_figure` draws."""
    marks, columns = {}, len(numbers["sets"])
    for place, row in enumerate(_shown_rows(numbers)):
        who = f"latent {row['latent']}, {method_name(row['method'])}"
        for at in range(columns + 1):
            dot = _dot(row, at, columns)
            if np.isnan(dot.value):
                continue
            if at == columns:
                text = f"{signed(dot.value, 3)} nats per token of {NATS}"
            else:
                ends = span(dot.low, dot.high, scale=1)
                text = f"{signed(dot.value)} points {ends}".rstrip()
                text += f" on {set_name(numbers['sets'][at])}"
            marks[_id(numbers, place, at)] = Mark(f"{who}: {text}", row["latent"])
    return marks
