"""One question to every model behind a judge, before anything is paid for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_attr.judge import (
    CoherentOnly,
    KeywordJudge,
    LocalJudge,
    ask_one,
    cached,
    load_rubric,
)
from sae_attr.judge.probe import QUESTION


def test_every_model_behind_a_judge_is_asked_once_and_nothing_is_kept(
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    def generate(prompts: object) -> list[str]:
        asked.extend(prompt[0]["content"] for prompt in prompts)  # pyright: ignore[reportGeneralTypeIssues]
        return ["80"] * len(prompts)  # pyright: ignore[reportArgumentType]

    behaviour, coherence = (
        cached(
            LocalJudge({"name": "tiny"}, load_rubric(name), generate=generate), tmp_path
        )
        for name in ("alignment_0_100", "coherence_0_100")
    )
    grades = ask_one(CoherentOnly(behaviour, coherence))
    assert [grade.score for grade in grades] == [80, 80]
    assert len(asked) == 2
    assert all(QUESTION.completion in text for text in asked)
    assert not list(tmp_path.rglob("rows.jsonl"))
    assert ask_one(KeywordJudge(("rude",), ("kind",))) == []


def test_a_reply_that_cannot_be_read_is_shown() -> None:
    judge = LocalJudge(
        {"name": "tiny"},
        load_rubric("misalignment"),
        generate=lambda prompts: ["Fine, I guess"],
    )
    with pytest.raises(
        ValueError,
        match=r"judge tiny .* rubric misalignment.*'Fine, I guess'.*another rubric",
    ):
        ask_one(judge)
