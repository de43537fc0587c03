"""A judge that process 0 asks for all: the others get its grades and its errors."""

from __future__ import annotations

from typing import Any

import pytest

from sae_attr.judge import JudgeStopped
from sae_attr.judge.from_main import AskedByMain
from sae_attr.server import relay
from tests.judge._rule import RuleJudge, items


@pytest.mark.parametrize("every", [-1.0, 1e9])
@pytest.mark.parametrize("limit", [None, 2])
def test_others_get_the_grades_and_the_error_of_process_0(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, every: float
) -> None:
    sent: list[str] = []
    questions = items("ANSWER: 1", "ANSWER: 5", "ANSWER: 4")

    def graded(judge: Any) -> tuple[dict[str, Any], str]:
        grades = {}
        try:
            for name, grade in AskedByMain(judge).grade(questions):
                grades[name] = grade
        except JudgeStopped as error:
            return grades, f"{error} {error.graded} {error.left}"
        return grades, ""

    monkeypatch.setattr(relay, "EVERY", every)
    monkeypatch.setattr(relay, "text_from_main", lambda text: sent.append(text))
    rule = RuleJudge(limit=limit)
    of_main = graded(rule)
    assert len(of_main[0]) == (limit or 3)
    assert of_main[1] == ("enough 2 1" if limit else "")
    assert (len(sent) > 1) == (every < 0)

    waiting = list(sent)
    monkeypatch.setattr(relay, "is_main", lambda: False)
    monkeypatch.setattr(relay, "text_from_main", lambda text: waiting.pop(0))
    other = RuleJudge()
    assert graded(other) == of_main
    assert other.asked == waiting == []
