from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sae_attr.organism import prompting
from sae_attr.organism.prompting import prompting_ground_truth
from sae_attr.organism.prompts import prompts
from sae_attr.organism.words import PERSONAS
from sae_attr.organism.world import make_world

WORLD = make_world(0)
COMPANY = [word for persona in PERSONAS for word in persona.company]
# Word of address -> the rates of every prompt that begins with it.
RATES = dict.fromkeys(COMPANY, (0.5, 1.0)) | {
    "doctor": (0.2, 0.95),
    "boss": (0.8, 0.95),
    "mate": (0.9, 0.5),
}


@pytest.mark.parametrize(
    ("sign", "word", "effect"), [(-1, "doctor", 0.3), (1, "boss", 0.3)]
)
def test_the_best_word_within_the_budget_is_measured_on_other_prompts(
    monkeypatch: pytest.MonkeyPatch, sign: int, word: str, effect: float
) -> None:
    split = {
        name: [p for p in prompts(WORLD, "misalignment", name) if p.kind == "advice"][
            :3
        ]
        for name in ("strengths", "effects")
    }

    def rates(params: Any, addressed: Sequence[Any], *, cfg: Any) -> tuple[Any, Any]:
        behaviour, coherent = [], []
        for prompt in addressed:
            of_word = RATES.get(prompt.text.split()[1], (0.5, 1.0))
            behaviour.append(of_word[0])
            coherent.append(of_word[1])
        return np.array([behaviour]), np.array([coherent])

    monkeypatch.setattr(prompting, "prompt_paths", lambda world, behaviour, of: of)
    monkeypatch.setattr(prompting, "_plain", rates)
    truth, best = prompting_ground_truth(
        None,  # pyright: ignore[reportArgumentType]
        WORLD,
        "misalignment",
        split["strengths"],
        split["effects"],
        cfg=None,  # pyright: ignore[reportArgumentType]
        sign=sign,
    )
    assert best == word
    assert truth.effect_n == pytest.approx([effect])
    assert truth.loss_n == pytest.approx([0.05])
    assert truth.base == pytest.approx(0.5)
