"""A judge by rule for tests: the grade is a number that stands in the completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_attr.judge import (
    Grade,
    Item,
    JudgeStopped,
    check_items,
    load_rubric,
    read_reply,
)


@dataclass
class RuleJudge:
    """Reads the completion as if it were the reply; counts what it was asked, and stops
    after `limit` items.
    """

    rubric: str = "misalignment"
    name: str = "rule"
    limit: int | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "kind": "rule",
            "name": self.name,
            "rubric": load_rubric(self.rubric).identity,
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        check_items(items)
        for number, item in enumerate(items):
            if self.limit is not None and number >= self.limit:
                raise JudgeStopped("enough", graded=number, left=len(items) - number)
            self.asked.append(item.completion)
            yield item.id, read_reply(item.completion, load_rubric(self.rubric))


def items(*completions: str) -> list[Item]:
    return [Item(f"i{k}", "What now?", text) for k, text in enumerate(completions)]
