"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.output import BLUE, GREY, INK, open_axes, styled

_BATCHES = {"color": GREY, "lw": 0.9}
_HELD_OUT = {"color": BLUE, "lw": 1.4, "marker": "o", "ms": 3}


@styled
def sae_training_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws explained variance, L0 and dead latents over an SAE's training, and how
    often its latents fire at the end.

    Args:
      numbers: `train`: {step, explained_variance, l0, dead} lists; `held_out`: {step,
        explained_variance, l0, dead_share, ce_recovered} lists; `density`: {edges,
        counts, dead}, as `sae.metrics.density` gives them.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    (upper_left, upper_right), (lower_left, lower_right) = figure.subplots(2, 2)
    train, held_out = numbers["train"], numbers["held_out"]
    _draw_quality(upper_left, train, held_out)
    _draw_l0(upper_right, train, held_out)
    _draw_dead(lower_left, train, held_out)
    _draw_density(lower_right, numbers["density"])
    for ax in figure.axes:
        open_axes(ax)
    return figure


def _draw_quality(
    ax: Axes, train: Mapping[str, Any], held_out: Mapping[str, Any]
) -> None:
    name = "explained_variance"
    ax.plot(train["step"], train[name], label="training batches", **_BATCHES)
    ax.plot(held_out["step"], held_out[name], label="held-out text", **_HELD_OUT)
    ax.plot(
        held_out["step"],
        held_out["ce_recovered"],
        color=INK,
        lw=1.2,
        ls="--",
        marker="s",
        ms=3,
        label="CE recovered",
    )
    # Explained variance may begin far below 0: such steps would press the rest flat.
    shares = np.asarray(held_out[name], np.float64)
    lowest = float(np.min(shares[shares > 0], initial=0.5))
    ax.set(xlabel="step", ylabel="explained variance", ylim=(lowest, 1))
    ax.legend(frameon=False, loc="lower right")


def _draw_l0(ax: Axes, train: Mapping[str, Any], held_out: Mapping[str, Any]) -> None:
    ax.plot(train["step"], train["l0"], **_BATCHES)
    ax.plot(held_out["step"], held_out["l0"], **_HELD_OUT)
    highest = max([*train["l0"], *held_out["l0"]])
    ax.set(xlabel="step", ylabel="L0", ylim=(0, 1.15 * highest))


def _draw_dead(ax: Axes, train: Mapping[str, Any], held_out: Mapping[str, Any]) -> None:
    ax.plot(
        train["step"],
        train["dead"],
        color=GREY,
        lw=1.2,
        label="dead, by the tokens since they fired",
    )
    ax.plot(
        held_out["step"],
        held_out["dead_share"],
        label="never fired on held-out text",
        **_HELD_OUT,
    )
    highest = max(0.02, *train["dead"], *held_out["dead_share"])
    room = (-0.03 * highest, 1.1 * highest)
    ax.set(xlabel="step", ylabel="share of latents", ylim=room)
    ax.legend(frameon=False)


def _draw_density(ax: Axes, density: Mapping[str, Any]) -> None:
    edges, counts = np.asarray(density["edges"]), np.asarray(density["counts"])
    ax.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE)
    ax.set(xlabel="log10 of the firing rate", ylabel="latents")
    ax.set_title(f"{density['dead']} never fired on held-out text", fontsize=10)


@styled
def loss_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws training and held-out loss over steps.

    Args:
      numbers: `train` and `held_out`: each {step, loss} lists; the second may be empty.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    train, held_out = numbers["train"], numbers["held_out"]
    ax.plot(train["step"], train["loss"], label="training batches", **_BATCHES)
    if held_out["step"]:
        ax.plot(held_out["step"], held_out["loss"], label="held-out rows", **_HELD_OUT)
    ax.set(xlabel="step", ylabel="loss (nats per target)")
    ax.legend(frameon=False)
    open_axes(ax)
    return figure
