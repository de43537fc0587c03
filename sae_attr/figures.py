"""Figures from arrays; each is saved as SVG and PNG with its numbers beside it as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

INK, BLUE, GREY = "#22303c", "#1f77b4", "#9aa5b1"


def _scatter(ax: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    ax.scatter(x, y, s=style.pop("s", 26), linewidths=0, **style)


def _diagonal(ax: Any) -> None:
    """Equal limits, the line of equality and the axes through zero."""
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([low, high], [low, high], color=INK, lw=0.8, ls="--", zorder=0)
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=GREY, lw=0.5, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _name_best(ax: Any, points: Sequence[Mapping[str, Any]], *, count: int = 5, gap: float = 0.06) -> None:
    """Writes the latent beside the points of largest effect, leaving out those whose names would lie on another's."""
    named: list[np.ndarray] = []
    low, high = ax.get_xlim()
    for p in sorted(points, key=lambda p: -abs(p["exact"])):
        at = (np.array([p["first_order"], p["exact"]]) - low) / (high - low)
        if len(named) < count and all(abs(at[0] - x) > 2 * gap or abs(at[1] - y) > gap for x, y in named):
            named.append(at)
            ax.annotate(
                str(p["latent"]), (p["first_order"], p["exact"]), xytext=(4, 4), textcoords="offset points", fontsize=8
            )


def ablation_figure(numbers: Mapping[str, Any]) -> Figure:
    """First-order attribution against exact mean ablation.

    Args:
      numbers: `latents`: list of {latent, group (candidate | random), first_order, exact}, the paired means in nats;
        `single`: {first_order, exact} lists, one entry per sampled position; `correlations`: the two panels' Pearson and
        Spearman.
    """
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group, color in (("random", GREY), ("candidate", BLUE)):
        points = [p for p in numbers["latents"] if p["group"] == group]
        x, y = ([p[k] for p in points] for k in ("first_order", "exact"))
        _scatter(
            left, np.array(x), np.array(y), color=color, label=f"{group} latents", zorder=2 + (group == "candidate")
        )
    _diagonal(left)
    _name_best(left, [p for p in numbers["latents"] if p["group"] == "candidate"])
    left.legend(frameon=False, loc="upper left")
    single = numbers["single"]
    _scatter(right, np.array(single["first_order"]), np.array(single["exact"]), color=BLUE, s=14, alpha=0.7)
    _diagonal(right)
    titles = {"joint": "all positions of the scope together", "single": "single positions"}
    for ax, name in ((left, "joint"), (right, "single")):
        c = numbers["correlations"][name]
        ax.set_title(f"{titles[name]}\nPearson {c['pearson']:.2f}, Spearman {c['spearman']:.2f}", fontsize=10)
        ax.set_xlabel("first order: Σ δ (nats)")
        ax.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("exact mean ablation: ΔL, positive − negative (nats)", fontsize=9)
    right.set_ylabel("exact mean ablation: ΔL (nats)", fontsize=9)
    return figure


def sae_training_figure(numbers: Mapping[str, Any]) -> Figure:
    """Explained variance, L0 and dead latents while an SAE was trained, and how often its latents fire.

    Args:
      numbers: `train`: {step, explained_variance, l0, dead} lists; `held_out`: {step, explained_variance, l0, dead_share,
        ce_recovered} lists; `density`: {edges, counts, dead}, as `sae.metrics.density` gives them.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    (top, middle), (bottom, last) = figure.subplots(2, 2)
    train, held, histogram = numbers["train"], numbers["held_out"], numbers["density"]
    for ax, name, label in ((top, "explained_variance", "explained variance"), (middle, "l0", "L0")):
        ax.plot(train["step"], train[name], color=GREY, lw=0.9, label="training batches")
        ax.plot(held["step"], held[name], color=BLUE, lw=1.4, marker="o", ms=3, label="held-out text")
        ax.set(xlabel="step", ylabel=label)
    top.plot(held["step"], held["ce_recovered"], color=INK, lw=1.2, ls="--", marker="s", ms=3, label="CE recovered")
    low = min([0.5, *(v for v in held["explained_variance"] if v > 0)])
    top.set(ylim=(low, 1.0))
    top.legend(frameon=False, loc="lower right")
    bottom.plot(train["step"], train["dead"], color=GREY, lw=1.2, label="dead, by the tokens since they fired")
    bottom.plot(
        held["step"], held["dead_share"], color=BLUE, lw=1.4, marker="o", ms=3, label="never fired on held-out text"
    )
    highest = max(0.02, *train["dead"], *held["dead_share"])
    bottom.set(xlabel="step", ylabel="share of latents", ylim=(-0.03 * highest, 1.1 * highest))
    bottom.legend(frameon=False)
    middle.set(ylim=(0, 1.15 * max([*train["l0"], *held["l0"]])))
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    last.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE)
    last.set(xlabel="log10 of the firing rate", ylabel="latents")
    last.set_title(f"{histogram['dead']} never fired on held-out text", fontsize=10)
    for ax in (top, middle, bottom, last):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def render(figure: Figure, numbers: Mapping[str, Any]) -> dict[str, bytes]:
    """File suffix -> contents: svg, png and the numbers as json; the same bytes for the same numbers."""
    finite = json.loads(json.dumps(numbers), parse_constant=lambda _: None)  # JSON knows no NaN
    out = {"json": json.dumps(finite, indent=1).encode()}
    with matplotlib.rc_context({"svg.hashsalt": "sae_attr", "svg.fonttype": "none"}):
        for suffix in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            out[suffix] = buffer.getvalue()
    return out


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
        ax.plot(held["step"], held["loss"], color=BLUE, lw=1.6, marker="o", ms=3, label="held-out rows")
    ax.set(xlabel="step", ylabel="loss (nats per target)")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
