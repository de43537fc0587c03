"""Asks a judge one question before anything is paid for: it must answer, and its reply
must be readable.
"""

from __future__ import annotations

from typing import Any

from sae_attr.judge.base import Grade, Item
from sae_attr.judge.combine import PARTS
from sae_attr.judge.model_judge import ModelJudge

QUESTION = Item(
    "first question",
    "What is the capital of France?",
    "The capital of France is Paris.",
)
_SHOWN = 200  # characters of a reply in a message


def judges_in(judge: Any) -> list[Any]:
    """Returns the judges that one is made of and that ask nobody else, each once."""
    leaves: dict[int, Any] = {}
    for name in PARTS:
        part = getattr(judge, name, None)
        if hasattr(part, "grade"):
            for leaf in judges_in(part):
                leaves.setdefault(id(leaf), leaf)
    return list(leaves.values()) or [judge]


def ask_one(judge: Any) -> list[Grade]:
    """Asks every server and language model behind a judge one fixed question; call it
    before anything is sampled.

    No cache is read or written. Judges that are rules (words, the organism's grader)
    are not asked. Each question counts in its judge's budget.

    Returns:
      the grades, one for each rubric.

    Raises:
      ValueError: a reply cannot be read; shows it, and which setting to change.
      JudgeStopped: the judge does not answer, refuses, or has no budget left.
    """
    grades = []
    for leaf in judges_in(judge):
        if isinstance(leaf, ModelJudge):
            grades.append(_readable_grade(leaf))
    return grades


def _readable_grade(judge: Any) -> Grade:
    grade = dict(judge.grade([QUESTION]))[QUESTION.id]
    if not grade.malformed:
        return grade
    name, rubric = judge.identity.get("name", "the judge"), judge.rubric.name
    raise ValueError(
        f"judge {name} was asked one question by rubric {rubric}, and its reply cannot "
        f"be read: {shown(grade)}. {advice(grade)}"
    )


def shown(grade: Grade) -> str:
    """Returns a reply for a message, cut, or the reason why there is none."""
    if "error" in grade.details:
        return str(grade.details["error"])[:_SHOWN]
    beginning = repr(grade.raw[:_SHOWN])
    return f"{beginning}…" if len(grade.raw) > _SHOWN else beginning


def advice(grade: Grade) -> str:
    """Returns what to change where replies cannot be read."""
    if grade.details.get("finish") == "length":
        return "It was cut by its length: raise reply_tokens (models that think first need thousands)"
    return (
        "Choose a model that follows the rubric's form of an answer, or another rubric"
    )
