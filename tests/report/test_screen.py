"""The section on screening: the figure holds what was measured, the page its sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sae_attr.comparison_records import Estimate
from sae_attr.report.figures import Drawing, render
from sae_attr.report.figures.screen import screen_figure, screen_marks
from sae_attr.report.page.probe_records import Screen, ScreenAgreement
from sae_attr.report.page.render import render_page
from tests.report import _sample

NAN = float("nan")


def numbers() -> dict[str, Any]:
    points = [
        {"latent": 3, "method": "screened", "screen": -0.8, "change": -0.2},
        {"latent": 8, "method": "random", "screen": 0.1, "change": 0.01},
        {"latent": 9, "method": "random", "screen": 0.1, "change": NAN},
    ]
    return {"panels": [{"direction": "away", "spearman": 0.7, "points": points}]}


def test_a_point_is_a_latent_of_which_both_numbers_are_known() -> None:
    marks = screen_marks(numbers())
    assert set(marks) == {"screen-away-3", "screen-away-8"}
    label = marks["screen-away-3"].label
    assert label == "latent 3, screened: screen −0.80 nats, measured −20.0 points"
    svg = render(Drawing(screen_figure, numbers()))["svg"].decode()
    assert all(f'id="{name}"' in svg for name in marks)
    assert "screen-away-9" not in svg
    assert "Spearman +0.70" in svg


def test_the_page_has_the_section_where_a_study_screened() -> None:
    page = _sample.report()
    assert "Screening by held-out pairs" not in render_page(page)
    away = ScreenAgreement("away", 1000, 12, 90, Estimate(0.7), Estimate(0.6))
    screen = Screen(numbers(), (away,), ("12 of 1,000 <b>latents</b>",))
    cases = (replace(page.cases[0], screen=screen), *page.cases[1:])
    html = render_page(replace(page, cases=cases))
    assert html.count("Screening by held-out pairs") == 1
    assert "12 of 1,000 &lt;b&gt;latents&lt;/b&gt;" in html
