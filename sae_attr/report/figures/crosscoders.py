"""Latents of crosscoders: relative norms, and what Latent Scaling says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from sae_attr.report.crosscoder_text import NAMES
from sae_attr.report.figures.output import INK, open_axes, styled

_COLORS: Mapping[str, str] = {"crosscoder": "#2f7ebc", "crosscoder_l1": "#e07b39"}
_SIZE = (7.6, 3.4)  # inches
_BINS = np.linspace(0, 1, 41)
_FARTHEST = 1.5  # of ν; what is beyond stands at the edge


@styled
def crosscoder_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws the histogram of Δ_norm, and the scatter of ν_r and ν_ε with the thresholds;
    latents of large Δ_norm are ringed.

    Args:
      numbers: `rows` of `crosscoder_results`' latents; `ft_only`, `error` and
        `reconstruction`: thresholds.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color in _COLORS.items():
        rows = [row for row in numbers["rows"] if row["dictionary"] == name]
        norms = [row["norm"] for row in rows]
        style: dict[str, Any] = {"color": color, "histtype": "step", "lw": 1.4}
        left.hist(norms, bins=_BINS.tolist(), label=NAMES[name], **style)
        _scatter(right, rows, color, numbers["ft_only"])
    left.set_yscale("symlog")
    left.yaxis.set_major_formatter(FormatStrFormatter("%d"))
    left.set_xlabel("Δ_norm: 0 before alone, 1 fine-tuned alone", fontsize=8)
    left.set_ylabel("latents", fontsize=8)
    left.legend(frameon=False, fontsize=7)
    right.axhline(numbers["error"], color=INK, lw=0.5, ls="--")
    right.axvline(numbers["reconstruction"], color=INK, lw=0.5, ls="--")
    right.set_xlabel("ν_r: high is decoupling", fontsize=8)
    right.set_ylabel("ν_ε: high is shrinkage", fontsize=8)
    title = f"ringed: Δ_norm above {numbers['ft_only']:g}"
    right.set_title(title, fontsize=8.5, loc="left")
    for ax in (left, right):
        open_axes(ax)
    return figure


def _scatter(ax: Axes, rows: list[Mapping[str, Any]], color: str, above: float) -> None:
    points = [(row["nu_reconstruction"], row["nu_error"]) for row in rows]
    places = np.clip(np.array(points, float).reshape(-1, 2), -0.5, _FARTHEST)
    ax.scatter(places[:, 0], places[:, 1], s=8, color=color, lw=0, alpha=0.4)
    above_k2 = places[np.array([row["norm"] > above for row in rows], bool)]
    ax.scatter(
        above_k2[:, 0], above_k2[:, 1], s=24, facecolor="none", edgecolor=color, lw=1
    )
