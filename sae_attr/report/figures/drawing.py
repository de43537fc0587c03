"""A figure before it is drawn: so that what was drawn before need not be drawn again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sae_attr.report.figures.output import save


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure before it is drawn.

    Args:
      figure: draws it: a function of `report.figures`, of the numbers and the panels.
      numbers: that it shows; plain values, as they become JSON.
      panels: names of those to draw; None for all.
    """

    figure: Callable[..., Figure]
    numbers: Mapping[str, Any]
    panels: tuple[str, ...] | None = None

    def draw(self) -> Figure:
        """Returns the figure."""
        if self.panels is None:
            return self.figure(self.numbers)
        return self.figure(self.numbers, self.panels)

    @property
    def name(self) -> str:
        """Names the picture by what it depends on: numbers, panels, the code that
        draws, and the settings of matplotlib; 32 hex digits.
        """
        # In the order of the numbers, which is that of what is drawn.
        parts = [self.figure.__qualname__, self.panels, self.numbers, _code_digest()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


Draw: TypeAlias = Callable[[Drawing, Sequence[str]], Mapping[str, bytes]]
"""(drawing, file suffixes) -> suffix -> contents."""


def draw_anew(drawing: Drawing, suffixes: Sequence[str]) -> dict[str, bytes]:
    """Draws a figure once, and returns it as the files of some suffixes (svg, png)."""
    figure = drawing.draw()
    return {suffix: save(figure, suffix) for suffix in suffixes}


def render(drawing: Drawing, draw: Draw = draw_anew) -> dict[str, bytes]:
    """Returns file suffix -> contents: svg, png, and the numbers as json.

    The same numbers give the same bytes.
    """
    # JSON has no NaN: what is not known becomes null.
    text = json.dumps(drawing.numbers)
    finite = json.loads(text, parse_constant=lambda _: None)
    contents = {"json": json.dumps(finite, indent=1).encode()}
    return contents | dict(draw(drawing, ("svg", "png")))


@cache
def _code_digest() -> str:
    """Returns a digest of all that draws: the sources of `sae_attr.report`, the versions
    of the libraries, and the settings of matplotlib that a user may have changed.
    """
    state = hashlib.sha256(f"{matplotlib.__version__} {np.__version__}".encode())
    for source in _sources(files("sae_attr.report")):
        state.update(source.encode())
    for key in sorted(matplotlib.rcParams):
        # A backend is looked for when it is asked for, and these files need none.
        if not key.startswith("backend"):
            state.update(f"{key}: {matplotlib.rcParams[key]}\n".encode())
    return state.hexdigest()


def _sources(folder: Traversable) -> list[str]:
    """Returns the Python sources of a package and of those below it, by name."""
    texts = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            texts += _sources(item)
        elif item.name.endswith(".py"):
            texts.append(f"{item.name}\n{item.read_text('utf-8')}")
    return texts
