"""Figures on the page: matplotlib's SVG with ids, words and nothing that could act."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from sae_attr.report.figures import ablation_figure, effects_figure, plane_figure
from sae_attr.report.figures.ablation import ablation_marks
from sae_attr.report.figures.effects import effect_marks
from sae_attr.report.figures.output import save
from sae_attr.report.figures.plane import plane_marks
from sae_attr.report.page.panels import (
    ablation_panels,
    effect_panels,
    plane_panels,
)
from tests.report._sample import (
    HOSTILE,
    ablation_numbers,
    effects_numbers,
    plane_numbers,
)

XLINK = "{http://www.w3.org/1999/xlink}href"
ALLOWED = {"svg", "g", "defs", "clipPath", "path", "use", "text", "rect", "title"}


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return effects_numbers(n=8)


@pytest.fixture(scope="module")
def panels(numbers: dict[str, Any]) -> list[ElementTree.Element]:
    return [parsed(panel.svg) for panel in effect_panels(numbers, "case")]


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def dots(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("class") == "dot"]


def test_the_file_has_an_id_for_every_latent_and_mean(numbers: dict[str, Any]) -> None:
    svg = save(effects_figure(numbers), "svg")
    ids = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    marks = effect_marks(numbers)
    assert set(marks) <= ids
    assert {"away-0-mean", "toward-4-mean"} <= set(marks)
    ablation = ablation_numbers()
    svg = save(ablation_figure(ablation), "svg")
    ids = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    assert set(ablation_marks(ablation)) <= ids
    plane = plane_numbers()
    svg = save(plane_figure(plane), "svg")
    ids = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    assert set(plane_marks(plane)) <= ids
    assert len(plane_marks(plane)) == 2 * len(plane["points"])


def test_points_stand_for_the_latents_of_the_figures_own_numbers(
    numbers: dict[str, Any], panels: list[ElementTree.Element]
) -> None:
    for panel, root in zip(numbers["panels"], panels, strict=True):
        shown = [(dot.get("data-latent"), dot.get("aria-label")) for dot in dots(root)]
        expected = []
        for strip in panel["strips"]:
            for latent, change in zip(strip["latents"], strip["change"], strict=True):
                if change == change:
                    points = f"{100 * change:+.1f}".replace("-", "−")
                    expected.append((str(latent), points.replace("+0.0", "0.0")))
        assert [latent for latent, _ in shown] == [latent for latent, _ in expected]
        for (_, label), (_, points) in zip(shown, expected, strict=True):
            assert f": {points.replace('−0.0', '0.0')} points" in str(label)


def test_a_point_is_where_its_change_is(
    numbers: dict[str, Any], panels: list[ElementTree.Element]
) -> None:
    panel, root = numbers["panels"][0], panels[0]
    places = {}
    for dot in dots(root):
        use = dot.find(".//use")
        assert use is not None
        places[str(dot.get("aria-label"))] = float(use.attrib["y"])
    change = {
        label: float(re.findall(r": (\S+) points", label)[0].replace("−", "-"))
        for label in places
    }
    assert panel["direction"] == "away"
    ordered = sorted(places, key=lambda label: -places[label])
    assert [change[label] for label in ordered] == sorted(change.values())


def test_ids_are_unique_on_the_page_and_every_reference_has_its_target(
    numbers: dict[str, Any],
) -> None:
    signed = {**numbers, "signed": True}
    svgs = [
        *effect_panels(numbers, "one"),
        *effect_panels(numbers, "two"),
        *effect_panels(signed, "one"),
        *ablation_panels(ablation_numbers(), "one"),
        *plane_panels(plane_numbers(), "one"),
    ]
    ids: list[str] = []
    for panel in svgs:
        root = parsed(panel.svg)
        own = [
            element.attrib["id"] for element in root.iter() if "id" in element.attrib
        ]
        targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', panel.svg))
        assert {a or b for a, b in targets} <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_the_same_numbers_give_the_same_svg(numbers: dict[str, Any]) -> None:
    once = list(effect_panels(numbers, "case"))
    assert once == list(effect_panels(copy.deepcopy(numbers), "case"))


def test_hostile_names_are_text_in_figures() -> None:
    numbers = effects_numbers(n=3, behaviour=HOSTILE[1])
    texts = iter([*HOSTILE, "costs $5 and $x^$", r"\frac{$", "x" * 4000])
    for panel in numbers["panels"]:
        panel["model"] = HOSTILE[3]
        for strip in panel["strips"]:
            strip["method"] = next(texts)
    words = ""
    for panel in effect_panels(numbers, "case"):
        root = parsed(panel.svg)
        words += " ".join(root.itertext())
        assert {element.tag for element in root.iter()} <= ALLOWED
        for element in root.iter():
            assert not {name for name in element.attrib if name.startswith("on")}
            assert "style" not in element.attrib
            assert element.get("href", "#").startswith("#")
    for text in ("<script>window", "<img src=x", "⟨U+202E⟩right", "zero⟨U+0000⟩byte"):
        assert text in words
    assert "costs $5 and $x^$" in words
    assert "x" * 41 not in words
    assert save(effects_figure(numbers), "png").startswith(b"\x89PNG")
