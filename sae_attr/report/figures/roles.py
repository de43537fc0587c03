"""Δ by the roles of tokens: a bar a latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sae_attr.comparison_records import LatentName
from sae_attr.report.figures.output import INK, PAPER, Mark, open_axes, styled
from sae_attr.report.method_style import first_name, method_name
from sae_attr.report.numbers import is_known, share

# In the order of a prompt; what a template writes is grey or brown, what people and
# models write has colours. Roles that often stand beside each other differ in how light
# they are too, for those who see no colours.
_COLORS = {
    "bos": "#4a5563",
    "special": "#8a95a1",
    "template": "#d3b48f",
    "system": "#a08520",
    "user": "#1f64a8",
    "assistant": "#3f9f6f",
    "last": "#f0a35e",
    "completion": "#8c3f82",
}
_NAMES = {
    "bos": "BOS",
    "special": "special tokens",
    "last": "last prompt token",
}
_BAR = 0.27  # inches of height


@styled
def roles_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draws which parts of each latent's Δ come from tokens of which role, a column per
    method; parts that speak against the latent lie left of 0. Bars have the ids that
    `role_marks` explains.

    Args:
      numbers: `methods`: each {method, latents (best first), shares: role -> signed
        shares of the sizes of a latent's parts}; NaN or None is not known.
    """
    methods = numbers["methods"]
    count = max([len(method["latents"]) for method in methods], default=1)
    size = (3.6 * max(len(methods), 1), 1.5 + _BAR * max(count, 1))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, max(len(methods), 1), squeeze=False)[0]
    used: list[str] = []
    for at, (ax, method) in enumerate(zip(axes, methods)):
        _draw_method(ax, method, at)
        used += _roles_of(method)
    axes[0].set_ylabel("latent", fontsize=9)
    handles = [
        Patch(color=_COLORS[r], label=_role_name(r)) for r in _COLORS if r in used
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(3 * max(len(methods), 1), len(handles) or 1),
        frameon=False,
        fontsize=8.5,
    )
    return figure


def _draw_method(ax: Axes, method: Mapping[str, Any], at: int) -> None:
    latents = method["latents"]
    places = np.arange(len(latents))
    ends = {1: np.zeros(len(latents)), -1: np.zeros(len(latents))}
    for role in _roles_of(method):
        parts = _parts(method, role)
        for sign, start in ends.items():
            part = np.where(np.sign(parts) == sign, parts, 0.0)
            for place in places[part != 0]:
                ax.barh(
                    [place],
                    [100 * part[place]],
                    left=[100 * start[place]],
                    height=0.72,
                    color=_COLORS[role],
                    edgecolor=PAPER,
                    linewidth=0.6,
                    gid=_part_id(at, latents[place], role),
                )[0].set_gid(_part_id(at, latents[place], role))
            ends[sign] = start + part
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(places, [str(latent) for latent in latents], fontsize=8.5)
    ax.set(xlim=(-103, 103) if (ends[-1] < -0.02).any() else (-3, 103))
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_title(first_name(method["method"]), fontsize=9.5, loc="left")
    ax.set_xlabel("part of Δ (% of the sum of sizes)", fontsize=9)
    open_axes(ax)


def _roles_of(method: Mapping[str, Any]) -> list[str]:
    """Returns the roles with a part that a reader can see."""
    return [role for role in _COLORS if (np.abs(_parts(method, role)) >= 0.005).any()]


def _parts(method: Mapping[str, Any], role: str) -> np.ndarray:
    shares = np.array(method["shares"].get(role) or [], np.float64)
    if not len(shares):
        shares = np.zeros(len(method["latents"]))
    return np.nan_to_num(shares)


def _role_name(role: str) -> str:
    return _NAMES.get(role, role)


def _part_id(at: int, latent: LatentName, role: str) -> str:
    return f"role-{at}-{latent}-{role}"


def role_marks(numbers: Mapping[str, Any]) -> dict[str, Mark]:
    """Returns id -> meaning of the parts that `roles_figure` draws."""
    marks = {}
    for at, method in enumerate(numbers["methods"]):
        for role in _roles_of(method):
            for latent, part in zip(method["latents"], _parts(method, role)):
                if part == 0 or not is_known(part):
                    continue
                label = (
                    f"latent {latent}, {method_name(method['method'])}: "
                    f"{share(part, 0)} from {_role_name(role)}"
                )
                marks[_part_id(at, latent, role)] = Mark(label, latent)
    return marks
