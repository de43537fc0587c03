"""A judge that process 0 asks for all processes of a run."""

from __future__ import annotations

import json
import time
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
from sae_attr.parallel import is_main, text_from_main

# Seconds between two messages to the processes that wait: a collective that none joins
# for many minutes would be ended.
EVERY = 20.0


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
        messages = self._sent(items) if is_main() else _received()
        for message in messages:
            for name, row in message["grades"]:
                yield name, grade_of_row(row)

    def _sent(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        grades: list[tuple[str, Any]] = []
        began = time.monotonic()
        try:
            for name, grade in self.asked.grade(items):
                grades.append((name, grade_row(grade)))
                if time.monotonic() - began > EVERY:
                    yield _send({"grades": grades, "more": True})
                    grades, began = [], time.monotonic()
        except Exception as error:
            yield _send({"grades": grades, "error": _error_record(error)})
            raise
        yield _send({"grades": grades, "more": False})


def _send(message: dict[str, Any]) -> dict[str, Any]:
    text_from_main(json.dumps(message))
    return message


def _received() -> Iterator[dict[str, Any]]:
    more = True
    while more:
        message = json.loads(text_from_main(""))
        yield message
        if "error" in message:
            raise _error_of(message["error"])
        more = message["more"]


def _error_record(error: Exception) -> dict[str, Any]:
    stopped = isinstance(error, JudgeStopped)
    counts = {"graded": error.graded, "left": error.left} if stopped else None
    return {"text": str(error), "stopped": counts}


def _error_of(record: Mapping[str, Any]) -> Exception:
    if record["stopped"] is None:
        return RuntimeError(f"process 0 asked the judge: {record['text']}")
    return JudgeStopped(record["text"], **record["stopped"])
