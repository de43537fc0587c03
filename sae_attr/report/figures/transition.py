"""The transition of a rank-1 adapter: five curves over steps, and the steps of its
events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_attr.report.figures.output import BLUE, GREY, INK, open_axes, styled

_COLORS = ("#2f7ebc", "#e07b39", "#b25fa6", "#3f9f6f")
_EVENTS: Mapping[str, Mapping[str, Any]] = {
    "turn": {"color": INK, "lw": 1.0, "ls": "-"},
    "gradient's peak": {"color": INK, "lw": 1.0, "ls": "--"},
    "largest rise": {"color": INK, "lw": 1.0, "ls": ":"},
}
_PANELS = ("cosine", "grad_norm", "rate", "delta", "steering")
_SIZE = (4.6, 7.6)  # inches of one behaviour
_LEGENDS = 1.1  # inches beside the last one

Row = Mapping[str, Any]


@styled
def transition_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws local cosine, gradient norm, exact rates, Δ and steering over the steps of a
    fine-tune: thin lines are runs, thick ones their mean; vertical lines the mean steps
    of turn, peak and rise. A column per behaviour.

    Args:
      numbers: of `transition_results.transition_numbers`.
    """
    behaviours = list(dict.fromkeys(row["behaviour"] for row in numbers["runs"]))
    width, height = _SIZE
    size = (width * len(behaviours) + _LEGENDS, height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(_PANELS), len(behaviours), sharex="col", squeeze=False)
    for column, behaviour in enumerate(behaviours):
        runs = [row for row in numbers["runs"] if row["behaviour"] == behaviour]
        events = [row for row in numbers["events"] if row["behaviour"] == behaviour]
        _column(list(axes[:, column]), runs, events)
        axes[0, column].set_title(behaviour, fontsize=8.5, loc="left")
    for ax in axes[:, -1]:
        # Beside the panels, which curves and events fill.
        if ax.get_legend_handles_labels()[1]:
            place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            ax.legend(frameon=False, fontsize=7, **place)
    lines = []
    for name, style in _EVENTS.items():
        lines.append(Line2D([], [], label=name, **style))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def _column(axes: Sequence[Axes], runs: Sequence[Row], events: Sequence[Row]) -> None:
    """One behaviour's panels, from above."""
    cosine, grad_norm, rate, delta, steering = axes
    steps, measured = runs[0]["step"], runs[0]["measured_step"]
    lags = [n for n in runs[0]["curves"] if n.startswith("cosine_")]
    for name, color in zip(lags, _COLORS):
        label = f"k = {name.removeprefix('cosine_')}"
        _curve(cosine, steps, _curves(runs, name), color, label)
    _curve(grad_norm, steps, _curves(runs, "grad_norm_mean"), BLUE, "")
    scales = [n for n in runs[0]["curves"] if n.startswith("rate_x")]
    for name, color in zip(scales, _COLORS):
        label = f"adapter × {name.removeprefix('rate_x')}"
        _curve(rate, steps, 100 * _curves(runs, name), color, label)
    _curve(delta, measured, _measured(runs, "delta"), BLUE, "")
    for name, color, label in (
        ("steering_top", BLUE, "top latents"),
        ("steering_gradient", _COLORS[1], "gradient"),
        ("steering_mean_difference", _COLORS[2], "mean difference"),
        ("steering_random", GREY, "random latents"),
    ):
        if name in runs[0]["measured"]:
            _curve(steering, measured, 100 * _measured(runs, name), color, label)
    for ax, label in zip(
        axes,
        (
            "local cosine",
            "gradient norm",
            "rate, %",
            "Δ, top latents",
            "steering, points",
        ),
    ):
        ax.set_ylabel(label, fontsize=8)
        ax.tick_params(labelsize=7.5)
        open_axes(ax)
        _events(ax, events)
    axes[-1].set_xlabel("step", fontsize=8)


def _curves(runs: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row["curves"][name] for row in runs], np.float64)


def _measured(runs: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row["measured"][name] for row in runs], np.float64)


def _curve(
    ax: Axes, steps: Sequence[int], values_rs: np.ndarray, color: str, label: str
) -> None:
    for values_s in values_rs:
        ax.plot(steps, values_s, color=color, lw=0.5, alpha=0.35)
    # Where no run is defined there is no mean, and where some are it would jump.
    mean_s = values_rs.mean(0)
    ax.plot(steps, mean_s, color=color, lw=1.8, label=label)


def _events(ax: Axes, events: Sequence[Row]) -> None:
    """Vertical lines at the mean step of every event that a run has."""
    ax.axhline(0, color=INK, lw=0.3, zorder=0)
    for row in events:
        if "mean" in row:
            ax.axvline(row["mean"], alpha=0.7, zorder=0, **_EVENTS[_kind(row)])


def _kind(row: Row) -> str:
    """Which of `_EVENTS` a row is."""
    if row["event"].startswith("turn_"):
        return "turn"
    return "gradient's peak" if row["event"] == "peak" else "largest rise"
