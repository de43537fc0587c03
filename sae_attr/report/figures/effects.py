"""What steering did, latent by latent (Figures 1 and 2 of the method)."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sae_attr.report.figures.output import GREY, INK
from sae_attr.report.figures.strips import (
    heading,
    limits,
    measured,
    method_colors,
    method_name,
    swarm,
    ticks,
)

_HEIGHT, _STRIP, _DIAMETER = 4.9, 1.15, 4.6  # inches, inches, points
_PLOT = 0.72  # share of the height that the axes get


def _strip(ax: Any, at: int, strip: Mapping[str, Any], color: str, span: float) -> None:
    """The points of one method around x = at, and the × of their mean."""
    values = np.array([change for _, change in measured(strip)])
    if not len(values):
        return
    diameters = 72 * _HEIGHT * _PLOT / _DIAMETER
    offsets = (
        swarm(values / span * diameters, half_width=0.4 * 72 * _STRIP / _DIAMETER)
        * _DIAMETER
        / (72 * _STRIP)
    )
    ax.scatter(
        at + offsets,
        values,
        s=(0.9 * _DIAMETER) ** 2,
        color=color,
        alpha=0.8,
        linewidths=0,
        zorder=2,
    )
    ax.scatter(
        [at], [values.mean()], marker="x", s=70, color=INK, linewidths=2, zorder=3
    )


def _panel(
    ax: Any, numbers: Mapping[str, Any], panel: Mapping[str, Any], width: float
) -> None:
    low, high = limits(panel)
    if panel.get("band"):
        ax.axhspan(
            *(100 * edge for edge in panel["band"]),
            color=GREY,
            alpha=0.25,
            lw=0,
            zorder=0,
        )
    ax.axhline(0, color=INK, lw=0.7, zorder=1)
    strips = panel["strips"]
    colors = method_colors([s["method"] for s in strips])
    for at, strip in enumerate(strips):
        _strip(ax, at, strip, colors[strip["method"]], high - low)
    labels = [
        f"{method_name(s['method'])}\nn = {len(list(measured(s)))}" for s in strips
    ]
    ax.set(xlim=(-0.6, len(strips) - 0.4), ylim=(low, high), yticks=ticks(low, high))
    ax.set_xticks(range(len(strips)), labels, fontsize=9)
    ax.tick_params(axis="x", length=0)
    lines = [
        part for line in heading(numbers, panel) for part in wrap(line, int(13 * width))
    ]
    ax.set_title("\n".join(lines), fontsize=9.5, loc="left")
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def effects_figure(numbers: Mapping[str, Any]) -> Figure:
    """One strip of points per method, a point a latent: change in the rate of the
    behaviour under steering.

    × is the mean, the grey band the typical range of random latents, n the latents with
    at least one graded pair.

    Args:
      numbers: `behaviour`: what is counted, in words; `signed`: true where each latent
        was steered by the sign of its own gradient, random ones too (may be absent);
        `panels`: one per direction, away first, each {direction (away | toward), model
        (the steered one's name), base_rate, band ([low, high] or None), prompts,
        samples, strips}; a strip is {method, latents, change, low, high}, lists of
        equal length. Rates, changes and edges are shares; NaN or None is not measured.
        `steering.compare.panel_numbers` makes a panel.
    """
    panels = numbers["panels"]
    widths = [max(4.2, 0.9 + _STRIP * len(p["strips"])) for p in panels]
    figure = Figure(figsize=(sum(widths), _HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, panel, width in zip(axes, panels, widths):
        _panel(ax, numbers, panel, width)
    axes[0].set_ylabel(
        f"change in the rate of\n{numbers['behaviour']} (percentage points)", fontsize=9
    )
    mean = Line2D([], [], color=INK, marker="x", ls="", mew=2, label="mean")
    band = Patch(
        color=GREY,
        alpha=0.25,
        lw=0,
        label="range of random latents (5th to 95th percentile)",
    )
    figure.legend(
        handles=[mean, band],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8.5,
    )
    return figure
