"""Dense latents: density against antipodality, by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sae_attr.report.dense_text import CLASS_NAMES
from sae_attr.report.figures.output import GREY, INK, open_axes, styled, write_plainly
from sae_attr.report.safe_text import one_line

COLORS = {
    "position": "#2f7ebc",
    "null_space": "#b25fa6",
    "alphabet": "#b59a2c",
    "principal": "#e07b39",
    "word": "#3f9f6f",
    "none": INK,
    "": GREY,
}
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LONGEST = 70  # characters of a title


@styled
def dense_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws each of the densest latents by its firing rate and its antipodality s, dense
    ones in the colour of their class.

    Args:
      numbers: of `analyses.dense_results.dense_numbers`.
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    ax = figure.subplots()
    for name, color in COLORS.items():
        _draw_class(ax, numbers, name, color)
    settings = numbers["settings"]
    ax.axvline(settings["dense"], color=GREY, lw=0.8, ls="--")
    ax.axhline(settings["antipodal"], color=GREY, lw=0.8, ls="--")
    ax.set_xscale("log")
    write_plainly(ax, "x")
    rates = [row["firing_rate"] for row in numbers["rows"]]
    least = min(rates, default=TICKS[0])
    ax.set_xticks([tick for tick in TICKS if tick >= least])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(labelsize=8)
    ax.set_xlabel("share of tokens on which it fires", fontsize=8.5)
    ax.set_ylabel("s, likeness to its antipode", fontsize=8.5)
    open_axes(ax)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    title = one_line(f"{numbers['title']}, {numbers['site']}", _LONGEST)
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    return figure


def _draw_class(ax: Axes, numbers: Mapping[str, Any], name: str, color: str) -> None:
    rows = [row for row in numbers["rows"] if row["density_class"] == name]
    if not rows:
        return
    label = CLASS_NAMES.get(name, "not dense")
    ax.scatter(
        [row["firing_rate"] for row in rows],
        [row["antipodality"] for row in rows],
        s=9 if not name else 18,
        color=color,
        alpha=0.4 if not name else 0.9,
        lw=0,
        label=f"{label} ({len(rows)})",
    )
