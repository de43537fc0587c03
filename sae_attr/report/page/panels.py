"""The figures of a case as the page shows them: one SVG per panel, so that a narrow
screen has them below each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from sae_attr.report.figures.ablation import (
    PANELS,
    ablation_figure,
    ablation_marks,
)
from sae_attr.report.figures.drawing import Draw, Drawing, draw_anew
from sae_attr.report.figures.effects import effect_marks, effects_figure
from sae_attr.report.figures.output import Mark
from sae_attr.report.figures.plane import plane_figure, plane_marks
from sae_attr.report.figures.roles import role_marks, roles_figure
from sae_attr.report.figures.sampled import sampled_figure, sampled_marks
from sae_attr.report.figures.screen import screen_figure, screen_marks
from sae_attr.report.figures.specificity import (
    specificity_figure,
    specificity_marks,
)
from sae_attr.report.method_style import method_name
from sae_attr.report.page.probe_records import Specificity
from sae_attr.report.page.svg import inline_svg

_MANY = 5  # strips that need more room than a phone has


@dataclass(frozen=True)
class Panel:
    """A panel of a figure. shape: its class in the style sheet."""

    svg: Markup
    shape: str


def _svg(draw: Draw, drawing: Drawing) -> bytes:
    return draw(drawing, ("svg",))["svg"]


def effect_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel per direction.

    Args:
      numbers: of `effects_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    name = "signed" if numbers.get("signed") else "effects"
    if numbers.get("ablated"):
        name = "ablated"
    for panel in numbers["panels"]:
        direction = panel["direction"]
        alone = {**numbers, "panels": [panel]}
        done = (
            "each latent set to its mean"
            if name == "ablated"
            else f"steering {direction}"
        )
        svg = inline_svg(
            _svg(draw, Drawing(effects_figure, alone)),
            effect_marks(alone),
            case=case,
            name=f"{case}-{name}-{direction}",
            alt=(
                "A point per latent and a strip per method: change in the rate of "
                f"{numbers['behaviour']}, {done}, in percentage points."
            ),
        )
        many = len(panel["strips"]) >= _MANY
        yield Panel(svg, "many strips" if many else "strips")


def ablation_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields the panels of latents and of positions.

    Args:
      numbers: of `ablation_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    alts = {
        "joint": "all positions of the scope together, a point per latent",
        "single": "single positions, a point each",
    }
    for panel in PANELS:
        svg = inline_svg(
            _svg(draw, Drawing(ablation_figure, numbers, (panel,))),
            ablation_marks(numbers),
            case=case,
            name=f"{case}-ablation-{panel}",
            alt=f"First-order attribution against exact mean ablation: {alts[panel]}.",
        )
        yield Panel(svg, "square")


def plane_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel of the plane of cause and lever per measured effect.

    Args:
      numbers: of `plane_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    for effect in numbers["effects"]:
        svg = inline_svg(
            _svg(draw, Drawing(plane_figure, numbers, (effect,))),
            plane_marks(numbers),
            case=case,
            name=f"{case}-plane-{effect}",
            alt=(
                "A point per latent: its Δ from left to right, its −Δg·d upward, "
                f"coloured by the effect of {effect} on the rate of "
                f"{numbers['behaviour']}."
            ),
        )
        yield Panel(svg, "plane")


def role_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel per method.

    Args:
      numbers: of `roles_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    for at, method in enumerate(numbers["methods"]):
        alone = {**numbers, "methods": [method]}
        svg = inline_svg(
            _svg(draw, Drawing(roles_figure, alone)),
            role_marks(alone),
            case=case,
            name=f"{case}-roles-{at}",
            alt=(
                "A bar per latent: the parts of its Δ that come from tokens of each "
                f"role, of {method_name(method['method'])}."
            ),
        )
        yield Panel(svg, "roles")


def specificity_panels(
    specificity: Specificity, case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel per direction.

    Args:
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    for numbers in specificity.figures:
        direction = numbers["direction"]
        svg = inline_svg(
            _svg(draw, Drawing(specificity_figure, numbers)),
            specificity_marks(numbers),
            case=case,
            name=f"{case}-specificity-{direction}",
            alt=(
                "A row per latent and a column per set of prompts: change in the rate "
                f"of {numbers['behaviour']}, steering {direction}, in percentage "
                "points; the last column is the cost on ordinary text."
            ),
        )
        yield Panel(svg, "many strips")


def sampled_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel per direction.

    Args:
      numbers: of `sampled_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    what = "sampled against exact change, steering {}, in percentage points"
    yield from _point_panels(
        numbers, sampled_figure, sampled_marks, what, f"{case}-sampled", case, draw
    )


def screen_panels(
    numbers: Mapping[str, Any], case: str, draw: Draw = draw_anew
) -> Iterator[Panel]:
    """Yields a panel per direction.

    Args:
      numbers: of `screen_figure`.
      case: id of the case study.
      draw: draws a panel, unless that was done before.
    """
    what = (
        "measured change of the rate against the change of held-out pairs, steering {}"
    )
    yield from _point_panels(
        numbers, screen_figure, screen_marks, what, f"{case}-screen", case, draw
    )


def _point_panels(
    numbers: Mapping[str, Any],
    figure: Callable[..., Figure],
    marks: Callable[[Mapping[str, Any]], Mapping[str, Mark]],
    what: str,
    name: str,
    case: str,
    draw: Draw,
) -> Iterator[Panel]:
    """Yields a square panel per direction, a point per latent.

    Args:
      what: its axes in words, with {} for the direction.
      name: that the panels' names begin with.
    """
    for panel in numbers["panels"]:
        alone, direction = {"panels": [panel]}, panel["direction"]
        svg = inline_svg(
            _svg(draw, Drawing(figure, alone)),
            marks(alone),
            case=case,
            name=f"{name}-{direction}",
            alt=f"A point per latent: {what.format(direction)}.",
        )
        yield Panel(svg, "square")
