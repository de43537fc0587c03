"""Attribution against exact ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_attr.report.figures.output import BLUE, GREY, INK


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


def _name_best(
    ax: Any, points: Sequence[Mapping[str, Any]], *, count: int = 5, gap: float = 0.06
) -> None:
    """Writes the latent beside the points of largest effect, leaving out those whose
    names would lie on another's.
    """
    named: list[np.ndarray] = []
    low, high = ax.get_xlim()
    for p in sorted(points, key=lambda p: -abs(p["exact"])):
        at = (np.array([p["first_order"], p["exact"]]) - low) / (high - low)
        if len(named) < count and all(
            abs(at[0] - x) > 2 * gap or abs(at[1] - y) > gap for x, y in named
        ):
            named.append(at)
            ax.annotate(
                str(p["latent"]),
                (p["first_order"], p["exact"]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )


def ablation_figure(numbers: Mapping[str, Any]) -> Figure:
    """First-order attribution against exact mean ablation.

    Args:
      numbers: `latents`: list of {latent, group (candidate | random), first_order,
        exact}, the paired means in nats; `single`: {first_order, exact} lists, one
        entry per sampled position; `correlations`: the two panels' Pearson and
        Spearman.
    """
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for group, color in (("random", GREY), ("candidate", BLUE)):
        points = [p for p in numbers["latents"] if p["group"] == group]
        x, y = ([p[k] for p in points] for k in ("first_order", "exact"))
        _scatter(
            left,
            np.array(x),
            np.array(y),
            color=color,
            label=f"{group} latents",
            zorder=2 + (group == "candidate"),
        )
    _diagonal(left)
    _name_best(left, [p for p in numbers["latents"] if p["group"] == "candidate"])
    left.legend(frameon=False, loc="upper left")
    single = numbers["single"]
    _scatter(
        right,
        np.array(single["first_order"]),
        np.array(single["exact"]),
        color=BLUE,
        s=14,
        alpha=0.7,
    )
    _diagonal(right)
    titles = {
        "joint": "all positions of the scope together",
        "single": "single positions",
    }
    for ax, name in ((left, "joint"), (right, "single")):
        c = numbers["correlations"][name]
        ax.set_title(
            f"{titles[name]}\nPearson {c['pearson']:.2f}, Spearman {c['spearman']:.2f}",
            fontsize=10,
        )
        ax.set_xlabel("first order: Σ δ (nats)")
        ax.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("exact mean ablation: ΔL, positive − negative (nats)", fontsize=9)
    right.set_ylabel("exact mean ablation: ΔL (nats)", fontsize=9)
    return figure
