"""Figures: the same bytes for the same numbers, in files that other programs open."""

from __future__ import annotations

import copy
import io
import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from sae_attr.report.figures import (
    Drawing,
    ablation_figure,
    effects_figure,
    plane_figure,
    render,
)
from sae_attr.report.figures.labels import name_points
from sae_attr.report.figures.output import INK, save
from sae_attr.report.figures.strips import limits, swarm, ticks
from sae_attr.report.method_style import method_colors
from tests.report._sample import effects_numbers, plane_numbers

XLINK = "{http://www.w3.org/1999/xlink}href"


def made(candidates: int = 4, randoms: int = 3, pearson: float = 0.5) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    groups = ["candidate"] * candidates + ["random"] * randoms
    values = rng.normal(size=(len(groups), 2)).tolist()
    latents = [
        {"latent": 900 + i, "group": group, "first_order": x, "exact": y}
        for i, (group, (x, y)) in enumerate(zip(groups, values, strict=True))
    ]
    single = {
        "first_order": rng.normal(size=9).tolist(),
        "exact": rng.normal(size=9).tolist(),
    }
    c = {"pearson": pearson, "spearman": pearson}
    return {
        "latents": latents,
        "single": single,
        "correlations": {"joint": c, "single": c},
    }


def test_the_same_numbers_give_the_same_bytes() -> None:
    once, again = (render(Drawing(ablation_figure, made())) for _ in range(2))
    assert once == again
    other = made()
    other["latents"][0]["exact"] += 0.5
    changed = render(Drawing(ablation_figure, other))
    assert all(changed[suffix] != once[suffix] for suffix in once)


def test_every_file_opens() -> None:
    numbers = made()
    files = render(Drawing(ablation_figure, numbers))
    assert set(files) == {"json", "svg", "png"}
    assert json.loads(files["json"]) == numbers
    pixels = image.imread(io.BytesIO(files["png"]))
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.01  # not a blank page
    root = ElementTree.fromstring(files["svg"])
    text = " ".join(t for t in root.itertext() if t.strip())
    assert root.tag.endswith("svg")
    for said in ("exact mean ablation", "candidate latents", "Pearson 0.50"):
        assert said in text
    assert (
        sum(
            str(p["latent"]) in text
            for p in numbers["latents"]
            if p["group"] == "candidate"
        )
        >= 1
    )


def test_names_do_not_lie_on_each_other() -> None:
    numbers = made(candidates=6, randoms=0)
    for p in numbers["latents"][1:]:
        p.update(first_order=0.1, exact=0.1)
    numbers["latents"][0].update(first_order=3.0, exact=3.0)
    text = render(Drawing(ablation_figure, numbers))["svg"].decode()
    assert ">900<" in text
    assert sum(f">{900 + i}<" in text for i in range(1, 6)) == 1


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 2)])
def test_few_points_and_unknown_correlations_still_give_strict_json(
    counts: tuple[int, int],
) -> None:
    numbers = made(*counts, pearson=float("nan"))
    files = render(Drawing(ablation_figure, numbers))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(files["json"], parse_constant=refuse)
    assert found["correlations"]["joint"]["pearson"] is None
    assert files["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("signed", [False, True])
def test_effects_show_methods_base_rates_and_numbers_of_points(signed: bool) -> None:
    numbers = effects_numbers(n=12, signed=signed)
    files = render(Drawing(effects_figure, numbers))
    if not signed:
        assert files == render(Drawing(effects_figure, numbers))
    text = "\n".join(
        t for t in ElementTree.fromstring(files["svg"]).itertext() if t.strip()
    )
    for said in (
        "Δ-attribution",
        "random",
        "Steering away",
        "without steering: 42.0 %",
        "without steering: 3.1 %",
    ):
        assert said in text
    assert ("sign of its own gradient" in text) == signed
    counts = [
        np.isfinite(s["change"]).sum() for p in numbers["panels"] for s in p["strips"]
    ]
    assert text.count("n = ") == len(counts)
    assert all(f"n = {n}" in text for n in counts)


def test_effects_of_which_nothing_is_known_still_draw() -> None:
    numbers = effects_numbers(n=3)
    for panel in numbers["panels"]:
        panel["band"] = None
        for strip in panel["strips"]:
            strip["change"] = [None, float("nan"), None]
    assert render(Drawing(effects_figure, numbers))["png"].startswith(b"\x89PNG")


def test_a_strip_shows_its_means_interval_and_how_many_lie_beyond_the_band() -> None:
    numbers = effects_numbers(n=6)
    bare = render(Drawing(effects_figure, numbers))["svg"].decode()
    strip = numbers["panels"][0]["strips"][0]
    strip |= {"mean": -0.1, "mean_low": -0.3, "mean_high": -0.05}
    known = int(np.isfinite(strip["change"]).sum())
    strip |= {"outside": 3, "expected": 0.4, "q": 0.012}
    drawn = render(Drawing(effects_figure, numbers))["svg"].decode()
    for words in (f"3 of {known} below", "(0.4 by chance)", "q = 0.012"):
        assert words in drawn
        assert words not in bare
    # The interval alone reaches so far down: it is within the axes.
    far = copy.deepcopy(numbers["panels"][0])
    far["strips"][0]["mean_low"] = -2.0
    assert limits(far)[0] < -200 < limits(numbers["panels"][0])[0]


def test_the_plane_names_its_corners_and_marks_random_latents() -> None:
    numbers = plane_numbers()
    files = render(Drawing(plane_figure, numbers))
    assert files == render(Drawing(plane_figure, numbers))
    root = ElementTree.fromstring(files["svg"])
    text = " ".join(t for t in root.itertext() if t.strip())
    for counts in numbers["corners"]:
        assert counts["corner"] in text
        assert f"{counts['selected']} selected, {counts['random']} random" in text
    for words in ("steering away", "exact ablation", "cause +0.10, lever –"):
        assert words in text
    # The two groups have a shape each.
    shapes: dict[str, set[str]] = {"random": set(), "selected": set()}
    for element in root.iter():
        name = element.get("id", "")
        if name.startswith("steering-"):
            use = element.find(".//{*}use")
            assert use is not None
            shapes[name.split("-")[1]].add(use.attrib[XLINK])
    assert shapes["random"]
    assert shapes["selected"]
    assert not shapes["random"] & shapes["selected"]


def test_a_plane_without_a_known_effect_or_point_still_draws() -> None:
    numbers = plane_numbers()
    numbers["effects"] = ["steering"]
    for point in numbers["points"]:
        point["steering"] = None
    assert render(Drawing(plane_figure, numbers))["png"].startswith(b"\x89PNG")
    numbers["points"] = []
    assert render(Drawing(plane_figure, numbers))["png"].startswith(b"\x89PNG")


def test_points_of_a_strip_keep_apart_and_keep_to_it() -> None:
    y = np.round(np.random.default_rng(0).normal(0, 4, 60))
    x = swarm(y, half_width=12)
    gaps = np.hypot(x[:, None] - x, y[:, None] - y)
    assert gaps[~np.eye(60, dtype=bool)].min() >= 1 - 1e-9
    assert np.abs(x).max() <= 12
    assert np.isnan(swarm(np.array([0.0, np.nan]), half_width=3)).tolist() == [
        False,
        True,
    ]
    full = swarm(np.zeros(50), half_width=2)
    assert np.abs(full).max() <= 2


def test_ticks_are_round_and_within() -> None:
    assert ticks(-43, 9) == [-40, -30, -20, -10, 0]
    assert ticks(-0.5, 0.5, count=4) == [-0.5, -0.25, 0, 0.25, 0.5]


def test_methods_have_a_colour_each() -> None:
    colors = method_colors(["delta_attribution", "x", "y", "random"])
    assert len(set(colors.values())) == 4


def test_numbers_lie_on_no_point_and_on_no_words() -> None:
    figure = Figure(figsize=(4, 4))
    ax = figure.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    places = [(0.5, 0.5), (0.55, 0.53), (0.98, 0.5), (0.2, 0.2)]
    named = list(zip((11111, 22222, 33333, 44444), places, strict=True))
    name_points(ax, named, points=places, reserved=[(0.15, 0.1, 0.6, 0.4)])
    sides = {text.get_text(): text.get_ha() + text.get_va() for text in ax.texts}
    # Right of the first lies the second; right of the third the frame ends; the last has
    # words on every side but one.
    assert sides["11111"] == "rightbottom"
    assert sides["22222"] == "leftbottom"
    assert sides["33333"] == "rightbottom"
    assert "44444" not in sides


def test_a_position_far_from_the_others_does_not_press_them_together() -> None:
    numbers = made()
    numbers["single"] = {
        "first_order": [0.001, 0.002, 2.0],
        "exact": [0.001, 0.002, 2.0],
    }
    ax = ablation_figure(numbers, ("single",)).axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("asinh", "asinh")
    labels = [ax.xaxis.get_major_formatter()(tick) for tick in ax.get_xticks()]
    assert labels == ["−0.01", "0", "0.01", "0.1", "1"]
    assert ablation_figure(made(), ("single",)).axes[0].get_xscale() == "linear"


def test_a_point_of_the_plane_whose_rate_rises_has_an_edge() -> None:
    numbers = plane_numbers()
    ax = plane_figure(numbers, ("steering",)).axes[0]
    edges = {line.get_gid(): line.get_markeredgecolor() for line in ax.lines}
    for point in numbers["points"]:
        edge = edges[f"steering-{point['group']}-{point['latent']}"]
        if point["steering"] is not None and point["steering"] == point["steering"]:
            assert (edge == INK) == (point["steering"] > 0)


@pytest.mark.parametrize("panels", [1, 2])
def test_the_legend_of_effects_is_not_cut_off(panels: int) -> None:
    numbers = effects_numbers(n=3)
    numbers["panels"] = numbers["panels"][:panels]
    figure = effects_figure(numbers)
    assert save(figure, "svg")
    figure.set_dpi(72)
    legend = figure.legends[0].get_tightbbox()
    assert legend is not None
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width
