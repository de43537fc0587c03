"""The paragraph that says what a reader may conclude."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sae_attr.comparison_records import Direction, MethodCount, MethodDifference
from sae_attr.report.conclusion import conclusion, strongest
from sae_attr.report.page import CaseReport, Table

NAN = float("nan")


def _count(
    method: str, direction: Direction, mean: float, gap: float = NAN, p: float = NAN
) -> MethodCount:
    ends = (mean - 0.01, mean + 0.01)
    gaps = {"gap": gap, "gap_low": gap - 0.02, "gap_high": gap + 0.02, "gap_p": p}
    return MethodCount(method, direction, 20, 20, 9, 0, 1.2, mean, *ends, **gaps)


def _difference(first: str, mean: float, p: float) -> MethodDifference:
    count = (1.0, 0.0, 2.0, 0.5, 0.5)
    means = (mean, mean - 0.03, mean + 0.03, p, p)
    shared: Any = ((), 0, 3, 1, ("prompts", "latents"))
    return MethodDifference("away", first, "delta_activation", *count, *means, *shared)


def _strip(method: str, latents: list[int], change: list[float]) -> dict[str, Any]:
    low, high = [c - 0.02 for c in change], [c + 0.02 for c in change]
    return {
        "method": method,
        "latents": latents,
        "change": change,
        "low": low,
        "high": high,
    }


def _case(**changes: Any) -> CaseReport:
    # Latent 3 ranks first and moves nothing; 5 is random and moves most.
    strips = [
        _strip("delta_attribution", [3, 7], [0.0, -0.25]),
        _strip("recommended", [7, 8], [-0.25, -0.3]),
        _strip("random", [5], [-0.4]),
    ]
    away = {"direction": "away", "base_rate": 0.6, "band": [-0.1, 0.1]}
    toward = {"direction": "toward", "base_rate": 0.02, "band": [-0.1, 0.1]}
    # Of the two that steer, 8 did not act: without it the rate is higher.
    acted = {"latent": 7, "tokens": (" harm", "bad"), "ablated": -0.04}
    rows = (acted | {"ablated_q": 0.01}, {"latent": 8, "ablated": 0.1})
    case = CaseReport(
        "c",
        "Case",
        "bad answers",
        {"panels": [away | {"strips": strips}, toward | {"strips": strips}]},
        Table((), rows),
        counts=(
            _count("random", "away", -0.004),
            _count("delta_attribution", "away", -0.03, -0.026, 0.2),
            _count("recommended", "away", -0.1, -0.096, 0.001),
            _count("delta_attribution", "toward", 0.011, 0.002, 0.6),
            _count("random", "toward", 0.009),
        ),
        differences=(
            _difference("delta_attribution", -0.014, 0.45),
            _difference("recommended", -0.061, 0.0005),
        ),
    )
    return replace(case, **changes)


def concluded(case: CaseReport) -> str:
    """All paragraphs of a case."""
    return " ".join(conclusion(case))


def test_the_first_paragraph_names_the_latent_and_the_second_tells_what_acted() -> None:
    first, second = conclusion(_case())
    assert first.startswith("Case: without steering")
    assert "The single latent that does most" in first
    assert "The post's claim" in first
    assert second.startswith("Steering toward it, from 2 %")


def test_it_says_what_moves_the_rate_and_what_does_not() -> None:
    text = concluded(_case())
    assert "the rate of bad answers is 60 %" in text
    assert "one of the best 20 latents of a ranking" in text
    assert "−10.0 points [−11.0, −9.0] (recommended)" in text
    assert "latents of recommended lower it further than random ones do." in text
    assert "average of Δ-attribution cannot be told from that of random" in text
    assert "of single ones 9 of 20 lie beyond their range" in text
    assert "Steering toward it, from 2 %, adds +1.1 points" in text


def test_the_posts_claim_is_judged_by_the_numbers() -> None:
    text = concluded(_case())
    assert (
        "Δ-attribution (as published) cannot be told from Δ-activation (−1.4 points "
        "[−4.4, +1.6]) and recommended goes beyond Δ-activation" in text
    )
    behind = _difference("recommended", 0.061, 0.0005)
    assert "recommended falls behind Δ-activation" in concluded(
        _case(differences=(behind,))
    )
    swapped = replace(
        behind, first="delta_activation", second="recommended", mean=0.061
    )
    assert "recommended goes beyond Δ-activation (−6.1 points [−9.1, −3.1])" in (
        concluded(_case(differences=(swapped,)))
    )


def test_the_latent_that_it_names_does_something() -> None:
    latent = strongest(_case())
    assert latent is not None
    assert latent.latent == 7
    assert latent.methods == ("delta_attribution", "recommended")
    text = concluded(_case())
    assert "latent 7 (nearest tokens 'harm', 'bad')" in text
    assert "from 60 % to 35 % (−25.0 points [−27.0, −23.0])" in text
    assert "ablated alone it changes it by −4.0" in text
    rows = ({"latent": 8, "ablated": 0.1},)
    only_steers = strongest(_case(latents=Table((), rows)))
    assert only_steers is not None
    assert only_steers.latent == 8
    idle = [_strip("delta_attribution", [3], [-0.01]), _strip("random", [5], [-0.4])]
    panel = {"direction": "away", "base_rate": 0.6, "band": [-0.1, 0.1]}
    case = _case(effects={"panels": [panel | {"strips": idle}]})
    assert strongest(case) is None
    assert "No selected latent lowers the rate of bad answers" in concluded(case)


def test_a_case_without_numbers_says_so() -> None:
    text = concluded(_case(counts=(), differences=()))
    assert "No latent could be measured when steered away" in text
    assert "post's claim" not in text
