"""Attribution against exact ablation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_attr.report.figures.labels import name_points
from sae_attr.report.figures.output import (
    BLUE,
    GREY,
    Mark,
    draw_equality,
    open_axes,
    styled,
    use_asinh,
)

PANELS = ("joint", "single")
_TITLES = {
    "joint": "all positions of the scope together",
    "single": "single positions",
}
_UP = {
    "joint": "exact mean ablation: ΔL, positive − negative (nats)",
    "single": "exact mean ablation: ΔL (nats)",
}
_COLORS = {"random": GREY, "candidate": BLUE}
_MARKERS = {"random": "^", "candidate": "o"}
_FAR = 20  # medians from 0 beyond which a position would press the others together


@styled
def ablation_figure(
    numbers: Mapping[str, Any], panels: Sequence[str] | None = None
) -> Figure:
    """Draws first-order attribution against exact mean ablation.

    The points of latents have the ids that `ablation_marks` explains.

    Args:
      numbers: `latents`: list of {latent, group (candidate | random), first_order,
        exact}, the paired means in nats; `single`: {first_order, exact} lists, one
        entry per sampled position; `correlations`: the two panels' Pearson and
        Spearman.
      panels: "joint" (a point per latent), "single" (a point per position); None for both.
    """
    names = panels or PANELS
    size = (4.8 * len(names), 4.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        if name == "joint":
            _draw_latents(ax, numbers["latents"])
        else:
            _draw_positions(ax, numbers["single"])
        agreement = numbers["correlations"][name]
        pearson, spearman = agreement["pearson"], agreement["spearman"]
        lines = (
            _TITLES[name],
            f"Pearson {_unsigned(pearson)}, Spearman {_unsigned(spearman)}",
        )
        ax.set_title("\n".join(lines), fontsize=10, loc="left")
        ax.set_xlabel("first-order estimate: Σ δ (nats)", fontsize=9)
        ax.set_ylabel(_UP[name], fontsize=9)
        open_axes(ax)
    return figure


def _unsigned(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"


def _draw_latents(ax: Axes, latents: Sequence[Mapping[str, Any]]) -> None:
    for group, color in _COLORS.items():
        # An artist a point, so that each has an id of its own; the legend needs one more.
        style = {"marker": _MARKERS[group], "ls": "", "ms": 5.4}
        style |= {"mew": 0, "color": color}
        ax.plot([], [], label=f"{group} latents", **style)
        for point in _measured_points(latents, group):
            ax.plot(
                [point["first_order"]],
                [point["exact"]],
                gid=_point_id(point),
                zorder=2 + (group == "candidate"),  # never below a random one
                **style,
            )
    draw_equality(ax)
    best = sorted(
        _measured_points(latents, "candidate"), key=lambda p: -abs(p["exact"])
    )
    named = [(p["latent"], (p["first_order"], p["exact"])) for p in best]
    others = _measured_points(latents, "random")
    places = [place for _, place in named]
    places += [(p["first_order"], p["exact"]) for p in others]
    # Below the line of equality: what matters lies along it.
    reserved = ((0.55, 0.0, 1.0, 0.16),)
    name_points(ax, named, points=places, reserved=reserved)
    ax.legend(frameon=False, loc="lower right", fontsize=8.5)


def _draw_positions(ax: Axes, single: Mapping[str, Sequence[float]]) -> None:
    x, y = np.array(single["first_order"]), np.array(single["exact"])
    ax.scatter(x, y, s=14, color=BLUE, alpha=0.7, linewidths=0)
    sizes = np.abs([*x, *y])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    draw_equality(ax)
    if len(sizes) and sizes.max() > _FAR * np.median(sizes):
        _spread_out(ax, float(np.median(sizes)))


def _spread_out(ax: Axes, middle: float) -> None:
    """Gives both axes a scale that is the logarithm's beyond a size, with powers of ten
    as ticks.
    """
    low, high = ax.get_xlim()
    first = np.ceil(np.log10(middle))
    powers = 10.0 ** np.arange(first, np.ceil(np.log10(max(-low, high))))
    ticks = [tick for tick in (*-powers[::-1], 0.0, *powers) if low <= tick <= high]
    for axis in ("x", "y"):
        use_asinh(ax, axis, ticks, linear_width=middle)
    ax.set(xlim=(low, high), ylim=(low, high))


def _measured_points(
    latents: Sequence[Mapping[str, Any]], group: str
) -> Iterator[Mapping[str, Any]]:
    """Yields the latents of a group of which both numbers are known."""
    for point in latents:
        pair = (point["first_order"], point["exact"])
        if point["group"] == group and None not in pair and np.isfinite(pair).all():
            yield point


def _point_id(point: Mapping[str, Any]) -> str:
    return f"{point['group']}-{int(point['latent'])}"


def ablation_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the latents that `ablation_figure` draws."""
    marks = {}
    for group in _COLORS:
        for point in _measured_points(numbers["latents"], group):
            latent = int(point["latent"])
            label = (
                f"latent {latent}, {group}: first order {point['first_order']:.3g}, "
                f"exact {point['exact']:.3g}"
            )
            marks[_point_id(point)] = Mark(label, latent)
    return marks
