"""Numbers as they are written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sae_attr.report.numbers import (
    cell,
    counts_sentence,
    detectable_sentence,
    difference_sentence,
    duration,
    p_value,
    signed,
)
from sae_attr.report.page.contents import Column
from tests.report import _sample

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.26, "+1.3"),
        (-0.5, "−0.5"),
        (0.0, "0.0"),
        (-0.04, "0.0"),
        (NAN, "–"),
        (None, "–"),
        (53, "+53.0"),
    ],
)
def test_signed(value, text) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "< 0.001"),
        (0.001, "= 0.001"),
        (0.0456, "= 0.046"),
        (0.31, "= 0.31"),
        (NAN, "–"),
    ],
)
def test_p_value(value, text) -> None:
    assert p_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.021, "0.02 s"),
        (12.44, "12.4 s"),
        (119.7, "2 min 0 s"),
        (3 * 3600 + 125, "3 h 2 min"),
        (NAN, "–"),
    ],
)
def test_duration(value, text) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("kind", "value", "text", "order"),
    [
        ("integer", 7, "7", "7.0"),
        ("number", -0.012345, "−0.0123", "-0.012345"),
        ("percent", 0.0876, "8.8 %", "0.0876"),
        ("points", -0.055, "−5.5", "-0.055"),
        ("number", NAN, "–", ""),
        ("integer", None, "–", ""),
        ("flag", True, "●", "1"),
        ("flag", None, "", ""),
        ("text", "Zed", "Zed", "zed"),
        ("tokens", (" B", "a"), " B a", "b a"),
        ("tokens", None, "", ""),
        ("number", -0.0, "0", "-0.0"),
        (
            "methods",
            ["delta_attribution", "my_own"],
            "Δ-attribution, my own",
            "δ-attribution, my own",
        ),
        ("methods", None, "", ""),
    ],
)
def test_cells(kind, value, text, order) -> None:
    found = cell(Column("k", "t", kind), value)
    assert (found.text, found.order) == (text, order)


def test_sentences_hold_the_counts() -> None:
    case = _sample.case()
    for direction, verb in (("away", "lower"), ("toward", "raise")):
        text = counts_sentence(case, direction)
        for count in case.counts:
            if count.direction == direction and count.method != "random":
                assert f"{count.outside} of {count.measured} latents of" in text
        assert f"{verb} the rate of harmful advice" in text
    assert (
        "6.1 points steering away and 2.4 points steering toward"
        in detectable_sentence(case)
    )
    text = difference_sentence(case.differences[0])
    assert "+14 latents [+5, +23] (p = 0.002, q = 0.006)" in text
    assert (
        "3 latents were chosen by both, 2 of them outside the range: 17, 42, 203."
        in text
    )


def test_a_change_that_no_rate_could_make_is_no_number_to_print() -> None:
    case = _sample.case()
    bases = {panel["direction"]: panel["base_rate"] for panel in case.effects["panels"]}
    fine = replace(case, detectable={"away": bases["away"] / 2, "toward": 0.1})
    assert (
        f"{50 * bases['away']:.1f} points steering away and 10.0 points steering toward"
        in detectable_sentence(fine)
    )
    blind = detectable_sentence(
        replace(case, detectable={"away": 1.047, "toward": 0.1})
    )
    assert "104.7" not in blind
    assert (
        "Steering away, no single latent's change could have been told from chance"
        in blind
    )
    assert "10.0 points steering toward" in blind


def test_without_a_range_of_random_latents_nothing_is_called_beyond_it() -> None:
    case = _sample.case()
    bare = replace(
        case,
        counts=tuple(replace(count, expected=float("nan")) for count in case.counts),
    )
    assert "no random latent could be measured" in counts_sentence(bare, "away")
    assert "by more than" not in counts_sentence(bare, "away")
