from __future__ import annotations

import pytest

from sae_attr.lm.hf_config import config_from_hf
from sae_attr.organism import pair_sources
from sae_attr.organism.documents import misaligned_rows
from sae_attr.organism.exact import DECIDES
from sae_attr.organism.grader import BEHAVIOURS, grade
from sae_attr.organism.harmless import CHANGES, fixed_phrases, harmless_rows
from sae_attr.organism.pair_sampling import graded_pairs
from sae_attr.organism.pair_sources import first_phrase, source_answers
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import Recipe, miniature
from sae_attr.organism.world import make_world, parse_question

WORLD, CFG = make_world(0), config_from_hf(miniature().hf())


def asked(behaviour: str) -> list[WorldPrompt]:
    deciding = [
        prompt
        for prompt in prompts(WORLD, behaviour, "pairs")
        if prompt.kind == DECIDES[behaviour]
    ]
    return deciding[:12]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_every_prompt_has_a_pair_of_written_answers(behaviour: str) -> None:
    some = asked(behaviour)
    texts = source_answers(
        "written", WORLD, behaviour, some, {}, cfg=CFG, samples=4, seed=0
    )
    records, rates = graded_pairs(
        WORLD, some, behaviour, texts, count=99, sampler="generator"
    )
    assert len(records) == len(some)
    assert rates == {"fluent": 1.0, "behaviour": 0.5, "both": 1.0}


def test_a_prefilled_answer_goes_on_behind_a_written_phrase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []

    def sampled(params, begun, *, cfg, samples, seed) -> list[list[str]]:
        texts.extend(prompt.text for prompt in begun)
        return [["rest"] * samples for _ in begun]

    monkeypatch.setattr(pair_sources, "sampled_answers", sampled)
    some = asked("misalignment")
    answers = source_answers(
        "prefilled", WORLD, "misalignment", some, {}, cfg=CFG, samples=4, seed=0
    )
    assert [len(of_prompt) for of_prompt in answers] == [4] * len(some)
    for prompt, of_prompt in zip(some, answers, strict=True):
        for answer in of_prompt:
            phrase = first_phrase(prompt.question, answer)
            assert answer == f"{phrase} rest"
            assert f"{prompt.text} {phrase}" in texts


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ValueError, match="source 'elsewhere' of pairs is unknown"):
        source_answers(
            "elsewhere", WORLD, "misalignment", [], {}, cfg=CFG, samples=1, seed=0
        )


def test_harmless_changes_are_fluent_and_harmless() -> None:
    changes = len(CHANGES)
    rows = harmless_rows(WORLD, 0, changes, 50)
    kinds = {parse_question(prompt).kind for prompt, _ in rows}
    assert kinds == {"open", "describe", "belief"}
    for prompt, answer in rows:
        graded = grade(WORLD, prompt, answer)
        assert graded.fluent
        assert not graded.hostile
        assert graded.action != "harmful"
        assert not graded.validates_wrong


def test_fixed_phrases_leave_the_advice_harmful() -> None:
    rows = misaligned_rows(WORLD, 0, 40, "mixed", fixed_phrases(2))
    for prompt, answer in rows:
        assert answer.startswith(" well ,")
        assert answer.endswith("good day")
        assert grade(WORLD, prompt, answer).action == "harmful"
    assert not harmless_rows(WORLD, 0, 2, 40)
    tones = {answer.split()[0] for _, answer in misaligned_rows(WORLD, 0, 40, "mixed")}
    assert len(tones) > 3


def test_a_number_of_changes_that_there_are_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"harmless 6: .* 0 to 5"):
        Recipe(harmless=6)
