"""What figures call the model that a direction steers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sae_attr.report.figures.strips import heading
from sae_attr.study.case import Case

NUMBERS: dict[str, Any] = {"behaviour": "answers of yes"}
MODELS = {
    None: ("the model", "the model"),
    "folder": ("the model with the behaviour", "the model without it"),
}


@pytest.mark.parametrize("lm_aligned", MODELS)
def test_one_model_is_the_model_and_two_differ_by_the_behaviour(
    lm_aligned: str | None,
) -> None:
    case: Any = SimpleNamespace(files=SimpleNamespace(lm_aligned=lm_aligned))
    away, toward = MODELS[lm_aligned]
    assert Case.steered_model(case, "away") == away
    assert Case.steered_model(case, "toward") == toward


def test_a_heading_tells_what_is_done_to_a_latent() -> None:
    panel = {"direction": "toward", "model": "the model", "base_rate": 0.25}
    lines = heading(NUMBERS, panel)
    assert lines[0] == "Steering toward, along each latent: the model"
    assert lines[1] == "rate of answers of yes without steering: 25.0 %"
    lines = heading({**NUMBERS, "ablated": True}, {**panel, "direction": "away"})
    assert lines[0] == "Each latent alone set to its mean: the model"
    # Random latents choose their sign too: neither along nor against all of them.
    assert heading({**NUMBERS, "signed": True}, panel)[:2] == (
        "Steering toward: the model",
        "each latent by the sign of its own gradient",
    )
