"""Results in sentences."""

from __future__ import annotations

from dataclasses import replace

from sae_attr.report.sentences import (
    counts_sentence,
    detectable_sentence,
    difference_sentence,
    largest_effects_sentence,
    listed,
    overlap_sentence,
)
from tests.report import _sample

NAN = float("nan")


def test_parts_are_listed_with_an_and() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_the_largest_effects_name_their_latents() -> None:
    largest = {"away": (77, -0.25, 0.67), "toward": (180, 0.04, 0.02)}
    text = largest_effects_sentence("delta_attribution", "harm", largest)
    assert "−25 points from 67 % when steering against latent 77" in text
    assert "+4 points from 2 % when steering along latent 180" in text
    assert "could be measured" in largest_effects_sentence("gradient", "harm", {})


def test_the_overlap_is_compared_with_chance() -> None:
    text = overlap_sentence(_sample.report().convergence[0])
    assert "selected 3 latents in common; 14.1 would be expected by chance" in text


def test_sentences_hold_the_counts() -> None:
    case = _sample.case()
    for direction, verb in (("away", "lower"), ("toward", "raise")):
        text = counts_sentence(case, direction)
        for count in case.counts:
            if count.direction == direction and count.method != "random":
                assert f"{count.outside} of {count.measured} (mean " in text
        assert f"{verb} the rate of harmful advice" in text
    assert (
        "6.1 points steering away and 2.4 points steering toward"
        in detectable_sentence(case)
    )
    text = difference_sentence(case.differences[0])
    assert "+14 latents [+5, +23] outside the range (p = 0.002, q = 0.006)" in text
    assert "Both selected 3 latents (17, 42, 203), 2 of them outside the range." in text


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
        "Steering away, no change of a single latent could be distinguished from chance"
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
    assert "beyond" not in counts_sentence(bare, "away")
