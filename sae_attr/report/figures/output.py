"""A figure as files; the style and the colours that all figures share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from sae_attr.comparison_records import LatentName

_DPI = {"svg": 72, "png": 150}  # the first is what matplotlib takes
INK, BLUE, GREY, PAPER = "#22303c", "#1f77b4", "#9aa5b1", "#ffffff"

STYLE = {
    "svg.hashsalt": "sae_attr",  # ids in the SVG are the same in every run
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}
styled = matplotlib.rc_context(STYLE)  # pyright: ignore[reportArgumentType]
"""Decorates a function that draws: what it makes has the style of all figures."""


@dataclass(frozen=True)
class Mark:
    """Names what an artist of a figure shows, by the id (`gid`) that it has in the SVG.

    Args:
      label: in words, for those who point at it and for screen readers.
      latent: the latent that it stands for, if it stands for one.
    """

    label: str
    latent: LatentName | None = None


def open_axes(axes: Axes) -> None:
    """Takes away the frame's upper and right lines."""
    axes.spines[["top", "right"]].set_visible(False)


def write_plainly(ax: Axes, axis: str) -> None:
    """Writes an axis' ticks ("x" or "y") without the powers of a scale's formulas."""
    plain = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))
    getattr(ax, f"{axis}axis").set_major_formatter(plain)


def use_asinh(
    ax: Axes, axis: str, ticks: Sequence[float], *, linear_width: float = 1.0
) -> None:
    """Gives an axis a scale that is the logarithm's beyond a size on either side of 0.

    Args:
      axis: "x" or "y".
      ticks: the scale's own crowd about 0, where it is nearly straight.
      linear_width: the size.
    """
    getattr(ax, f"set_{axis}scale")("asinh", linear_width=linear_width)
    getattr(ax, f"set_{axis}ticks")(ticks)
    getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
    write_plainly(ax, axis)


def draw_equality(ax: Axes) -> None:
    """Gives both axes the same limits; draws the line of equality and the zeros."""
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([low, high], [low, high], color=INK, lw=0.8, ls="--", zorder=0)
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=GREY, lw=0.5, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")


@styled
def save(figure: Figure, suffix: str) -> bytes:
    """Returns a figure as the contents of an SVG or PNG file, without date or version."""
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    file, engine = io.BytesIO(), figure.get_layout_engine()
    if engine is not None:
        # At the file's own resolution, on which the width of a text depends. `savefig`
        # would draw once in vain to find the layout.
        figure.set_dpi(_DPI[suffix])
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(file, format=suffix, dpi=_DPI["png"], metadata=metadata)
    if engine is not None:
        figure.set_layout_engine(engine)
    return file.getvalue()
