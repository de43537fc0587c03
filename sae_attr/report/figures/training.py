"""How training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_attr.report.figures.output import BLUE, GREY, INK


def sae_training_figure(numbers: Mapping[str, Any]) -> Figure:
    """Explained variance, L0 and dead latents while an SAE was trained, and how often
    its latents fire.

    Args:
      numbers: `train`: {step, explained_variance, l0, dead} lists; `held_out`: {step,
        explained_variance, l0, dead_share, ce_recovered} lists; `density`: {edges,
        counts, dead}, as `sae.metrics.density` gives them.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    (top, middle), (bottom, last) = figure.subplots(2, 2)
    train, held, histogram = numbers["train"], numbers["held_out"], numbers["density"]
    for ax, name, label in (
        (top, "explained_variance", "explained variance"),
        (middle, "l0", "L0"),
    ):
        ax.plot(
            train["step"], train[name], color=GREY, lw=0.9, label="training batches"
        )
        ax.plot(
            held["step"],
            held[name],
            color=BLUE,
            lw=1.4,
            marker="o",
            ms=3,
            label="held-out text",
        )
        ax.set(xlabel="step", ylabel=label)
    top.plot(
        held["step"],
        held["ce_recovered"],
        color=INK,
        lw=1.2,
        ls="--",
        marker="s",
        ms=3,
        label="CE recovered",
    )
    low = min([0.5, *(v for v in held["explained_variance"] if v > 0)])
    top.set(ylim=(low, 1.0))
    top.legend(frameon=False, loc="lower right")
    bottom.plot(
        train["step"],
        train["dead"],
        color=GREY,
        lw=1.2,
        label="dead, by the tokens since they fired",
    )
    bottom.plot(
        held["step"],
        held["dead_share"],
        color=BLUE,
        lw=1.4,
        marker="o",
        ms=3,
        label="never fired on held-out text",
    )
    highest = max(0.02, *train["dead"], *held["dead_share"])
    bottom.set(
        xlabel="step", ylabel="share of latents", ylim=(-0.03 * highest, 1.1 * highest)
    )
    bottom.legend(frameon=False)
    middle.set(ylim=(0, 1.15 * max([*train["l0"], *held["l0"]])))
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    last.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE)
    last.set(xlabel="log10 of the firing rate", ylabel="latents")
    last.set_title(f"{histogram['dead']} never fired on held-out text", fontsize=10)
    for ax in (top, middle, bottom, last):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def loss_figure(numbers: Mapping[str, Any]) -> Figure:
    """Training and held-out loss over steps.

    Args:
      numbers: `train` and `held_out`: each {step, loss} lists; the second may be empty.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    train, held = numbers["train"], numbers["held_out"]
    ax.plot(train["step"], train["loss"], color=GREY, lw=0.8, label="training batches")
    if held["step"]:
        ax.plot(
            held["step"],
            held["loss"],
            color=BLUE,
            lw=1.6,
            marker="o",
            ms=3,
            label="held-out rows",
        )
    ax.set(xlabel="step", ylabel="loss (nats per target)")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
