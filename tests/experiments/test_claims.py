from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import claims as config_file
from experiments import claims
from sae_attr.analyses import claim_pairs
from sae_attr.analyses.claim_pairs import too_few_pairs
from sae_attr.analyses.claim_rows import headline_count, verdict
from sae_attr.analyses.claim_settings import ClaimSettings
from sae_attr.organism.pair_sources import source_answers
from tests.experiments._organism_study import listed, small_study, started_again

CLAIMS = ("pairs", "counts", "sources", "harmless")


def small_config() -> ConfigDict:
    return small_study(
        config_file,
        {
            "seeds": (0,),
            "counts": (1, 3),
            "draws": 3,
            "pair_prompts": 8,
            "samples": 2,
            "pairs": 6,
            "sources": ("on_policy", "chat", "written"),
            "source_prompts": 6,
            "source_pairs": 3,
            "harmless": (0, 5),
            "harmless_pairs": 4,
            "candidates": 5,
            "top": 3,
            "resamples": 20,
            "strength_prompts": 1,
            "effect_prompts": 1,
            "grid": (0.3,),
        },
    )


def test_every_stage_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = listed(claims, small_config(), tmp_path, capsys)
    assert "organism-0.misaligned.mixed.harmless-5" in names
    of_diluted = "misalignment-mixed-0-harmless-5."
    assert [n.removeprefix(of_diluted) for n in names if n.startswith(of_diluted)] == [
        "norm_limits",
        "mean_activation",
        "on_policy.pairs",
        "on_policy.scores",
        "effects",
    ]
    assert names[-1] == "validation-mixed-0.draws"
    assert "validation-mixed-0.dilution" not in names


@pytest.mark.slow
def test_every_claim_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(source: str, world, behaviour, prompts, params, **options) -> Any:
        """So small a model says nothing that could be graded; the aligned model never
        shows the behaviour.
        """
        if source == "chat":
            return [["so , so"] for _ in prompts]
        options["samples"] = 2
        return source_answers("written", world, behaviour, prompts, params, **options)

    monkeypatch.setattr(claim_pairs, "source_answers", written)
    workdir = epath.Path(tmp_path)
    claims.start(small_config(), workdir)
    monkeypatch.setattr(claim_pairs, "source_answers", None)
    figures = [f"claim_{name}" for name in CLAIMS]
    text, numbers = started_again(claims, small_config(), tmp_path, "claims", figures)
    assert {row["behaviour"] for row in numbers["designs"]} == {
        "misalignment",
        "validation",
    }
    assert {row["changes"] for row in numbers["harmless"]} == {0, 5}
    assert {row["source"] for row in numbers["sources"]} == {"on_policy", "written"}
    # A source that never shows the behaviour is named, left out, and said in the table.
    assert "the aligned model: 0 pairs" in text
    assert "left out: 0 of 6 prompts gave a pair, 3 are needed" in text


def test_too_few_pairs_say_how_often_the_behaviour_is_shown() -> None:
    meta = {"records": [{}], "asked": 8, "rates": {"behaviour": 0.015}}
    assert too_few_pairs(meta, 1) == ""
    assert too_few_pairs(meta, 6).startswith(
        "1 of 8 prompts gave a pair, 6 are needed: 1.5 % of the graded answers show"
    )
    nothing = {"records": [], "asked": 8, "rates": {"behaviour": float("nan")}}
    assert "0 of 8 prompts" in too_few_pairs(nothing, 1)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"counts": (1, 200)}, r"counts: 200 pairs .* raise pairs to 400"),
        ({"sources": ("written",)}, "on_policy is what the others are compared with"),
        ({"harmless": (2, 5)}, "begin with 0"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(
    values: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        ClaimSettings(**values)


def test_an_interval_decides_a_claim() -> None:
    decided = verdict(0.1, 0.2), verdict(-0.2, -0.1), verdict(-0.1, 0.1)
    assert decided == ("holds", "reversed", "undecided")
    assert headline_count((1, 2, 30, 148)) == 30
