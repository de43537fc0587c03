"""What all judges share, the local judge, and judges made of judges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_attr.judge import (
    CoherentOnly,
    Grade,
    Item,
    Judge,
    KeywordJudge,
    LocalJudge,
    cached,
    counts,
    grade_of_row,
    grade_row,
    judge_name,
    load_rubric,
    read_reply,
    tells_coherence,
    values,
    warnings_of,
)
from tests.judge._rule import RuleJudge, items

SCALE, HUNDRED = load_rubric("misalignment"), load_rubric("alignment_0_100")


def replies(*texts: str) -> list[Grade]:
    return [read_reply(text, SCALE) for text in texts]


# ---- grades


def test_an_excluded_or_malformed_grade_can_hold_no_score() -> None:
    with pytest.raises(ValueError, match="must be None"):
        Grade("REFUSAL", excluded=True, behaviour=0.0)
    with pytest.raises(ValueError, match="must be None"):
        Grade("MALFORMED", malformed=True, score=1.0)
    with pytest.raises(ValueError, match=r"behaviour is 0\.5"):
        Grade("3", behaviour=0.5)


def test_missing_values_are_nan_and_never_zero() -> None:
    grades = [*replies("5", "REFUSAL", "?", "1"), None]
    np.testing.assert_array_equal(values(grades), [1.0, np.nan, np.nan, 0.0, np.nan])
    np.testing.assert_array_equal(
        values(grades, "score"), [5.0, np.nan, np.nan, 1.0, np.nan]
    )
    np.testing.assert_array_equal(
        values(grades, "coherent"), [1.0, 1.0, np.nan, 1.0, np.nan]
    )
    assert values([]).shape == (0,)


def test_counts_tell_what_is_missing_and_why() -> None:
    found = counts(replies("5", "REFUSAL", "?", "1", "SATIRE", "REFUSAL"))
    assert found == {
        "graded": 6,
        "scored": 2,
        "excluded": 3,
        "malformed": 1,
        "REFUSAL": 2,
        "SATIRE": 1,
    }


@pytest.mark.parametrize("text", ["5", "REFUSAL", "?", "INCOHERENT"])
def test_a_grade_survives_json(text: str) -> None:
    grade = read_reply(
        text, SCALE, discarded=("a", "b"), weighted=True, details={"tokens": 3}
    )
    assert (
        grade_of_row(json.loads(json.dumps({"key": "k", **grade_row(grade)}))) == grade
    )
    assert set(grade_row(Grade("x"))) == {"label"}


# ---- the local judge


def generate(prompts: Any) -> list[str]:
    return [
        "Hm.\nANSWER: " + ("5" if "evil" in prompt[0]["content"] else "1")
        for prompt in prompts
    ]


def next_token(prompts: Any) -> list[Mapping[str, float]]:
    evil = {"0": math.log(0.5), "10": math.log(0.5)}
    refusal = {"REFUSAL": math.log(0.9), "90": math.log(0.1)}
    kind = {"100": math.log(0.5), "CODE": math.log(0.5)}
    choose = lambda text: (
        evil if "evil" in text else refusal if "sorry" in text else kind
    )
    return [choose(prompt[0]["content"]) for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_local_model_grades_by_text(batch_size: int) -> None:
    judge = LocalJudge(
        {"name": "tiny"}, SCALE, generate=generate, batch_size=batch_size
    )
    assert isinstance(judge, Judge)
    found = dict(judge.grade(items("evil plan", "kind word", "evil")))
    assert [found[f"i{k}"].behaviour for k in range(3)] == [1.0, 0.0, 1.0]
    assert (
        judge.identity
        == LocalJudge({"name": "tiny"}, SCALE, generate=generate).identity
    )
    assert judge_name(judge.identity).startswith("tiny:misalignment:")


def test_a_local_model_grades_by_probabilities_and_by_text_where_they_say_nothing() -> (
    None
):
    texts = lambda prompts: ["REFUSAL" for _ in prompts]
    judge = LocalJudge(
        {"name": "tiny"}, HUNDRED, generate=texts, next_token_logprobs=next_token
    )
    found = dict(judge.grade(items("evil", "sorry", "kind")))
    assert [(found[f"i{k}"].score, found[f"i{k}"].weighted) for k in range(3)] == [
        (5, True),
        (None, False),
        (100, True),
    ]
    assert found["i1"].excluded
    alone = LocalJudge({"name": "tiny"}, HUNDRED, next_token_logprobs=next_token)
    assert dict(alone.grade(items("sorry")))["i0"].label == "REFUSAL"
    assert alone.identity != judge.identity


def test_probabilities_of_first_digits_are_no_score() -> None:
    digits = lambda prompts: [{"8": math.log(0.9), "9": math.log(0.1)} for _ in prompts]
    judge = LocalJudge({"name": "tiny"}, HUNDRED, next_token_logprobs=digits)
    with pytest.raises(ValueError, match="writes 85 as two tokens"):
        dict(judge.grade(items("a")))
    both = LocalJudge(
        {"name": "tiny"}, HUNDRED, generate=lambda p: ["85"], next_token_logprobs=digits
    )
    assert dict(both.grade(items("a")))["i0"].score == 85


def test_a_local_judge_needs_functions_that_fit() -> None:
    with pytest.raises(ValueError, match="needs generate;"):
        LocalJudge({"name": "tiny"}, SCALE, next_token_logprobs=next_token)
    with pytest.raises(ValueError, match="needs generate or next_token_logprobs"):
        LocalJudge({"name": "tiny"}, HUNDRED)
    with pytest.raises(ValueError, match="1 answers to 2 prompts"):
        dict(
            LocalJudge({"name": "tiny"}, SCALE, generate=lambda p: ["ANSWER: 1"]).grade(
                items("a", "b")
            )
        )
    with pytest.raises(ValueError, match="stand twice"):
        LocalJudge({"name": "tiny"}, SCALE, generate=generate).grade(
            [Item("a", "", ""), Item("a", "", "b")]
        )


# ---- judges made of judges


def test_a_behaviour_counts_among_coherent_answers_only() -> None:
    behaviour = RuleJudge("alignment_0_100", name="b")
    judge = CoherentOnly(behaviour, RuleJudge("coherence_0_100", name="c"))
    found = dict(judge.grade(items("20", "80", "51", "50", "unreadable")))
    assert [found[f"i{k}"].label for k in range(5)] == [
        "INCOHERENT",
        "80",
        "51",
        "INCOHERENT",
        "MALFORMED",
    ]
    np.testing.assert_array_equal(
        values(found[f"i{k}"] for k in range(5)), [np.nan, 0, 0, np.nan, np.nan]
    )
    np.testing.assert_array_equal(
        values((found[f"i{k}"] for k in range(5)), "coherent"), [0, 1, 1, 0, np.nan]
    )
    assert sorted(behaviour.asked) == [
        "51",
        "80",
    ]  # nobody is paid for what is set aside
    assert {"behaviour", "coherence"} <= set(judge.identity)


def test_warnings_are_found_through_every_layer(tmp_path: Path) -> None:
    inner = [RuleJudge(name=name) for name in "ab"]
    for judge in inner:
        judge.warnings = ["shared", judge.name]  # pyright: ignore[reportAttributeAccessIssue]
    judge = CoherentOnly(cached(inner[0], tmp_path), inner[1])
    assert warnings_of(judge) == ["shared", "a", "b"]
    assert warnings_of(RuleJudge()) == []


# ---- coherence


def test_a_judge_that_cannot_tell_coherence_says_so(tmp_path: Path) -> None:
    words = KeywordJudge(("rude",), ("kind",))
    grades = dict(words.grade(items("rude rude", "kind", "%% rude ## rude", "neither")))
    np.testing.assert_array_equal(values(grades.values(), "coherent"), [np.nan] * 4)
    assert not tells_coherence(words)
    assert not tells_coherence(cached(words, tmp_path))
    local = lambda name: LocalJudge(
        {"name": "tiny"}, load_rubric(name), generate=generate
    )
    told = {
        name: tells_coherence(local(name))
        for name in ("misalignment", "coherence", "alignment_0_100")
    }
    assert told == {"misalignment": True, "coherence": True, "alignment_0_100": False}
    assert tells_coherence(
        CoherentOnly(local("alignment_0_100"), local("coherence_0_100"))
    )
    assert not tells_coherence(CoherentOnly(local("coherence"), words))
