"""A judge that process 0 asks for all processes of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_attr.judge.base import (
    Grade,
    Item,
    JudgeStopped,
    grade_of_row,
    grade_row,
)
from sae_attr.judge.model_judge import ModelJudge
from sae_attr.server.relay import relayed


class AskedByMain(ModelJudge):
    """A judge whose questions process 0 alone asks; the others get its grades, and its
    error where it ends with one.

    Every process calls `grade` with the same items.

    Args:
      asked: the judge, for instance behind a server: asked by every process, each
        grade would be paid for several times.
    """

    def __init__(self, asked: Any) -> None:
        self.asked = asked
        self.rubric = asked.rubric

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge's own: who asks changes no grade."""
        return self.asked.identity

    @property
    def warnings(self) -> list[str]:
        """The judge's own, which only process 0 has."""
        return list(getattr(self.asked, "warnings", ()))

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade) as they arrive; raises on every process what the judge
        raises.
        """

        def rows() -> Iterator[tuple[str, Any]]:
            for name, grade in self.asked.grade(items):
                yield name, grade_row(grade)

        for name, row in relayed(rows, record=_error_record, error=_error_of):
            yield name, grade_of_row(row)


def _error_record(error: Exception) -> dict[str, Any]:
    stopped = isinstance(error, JudgeStopped)
    counts = {"graded": error.graded, "left": error.left} if stopped else None
    return {"text": str(error), "stopped": counts}


def _error_of(record: Mapping[str, Any]) -> Exception:
    if record["stopped"] is None:
        return RuntimeError(f"process 0 asked the judge: {record['text']}")
    return JudgeStopped(record["text"], **record["stopped"])
