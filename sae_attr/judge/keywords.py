"""A judge that counts words, for behaviours that show in single words, and for tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.judge.base import Grade, Item, check_items
from sae_attr.judge.kinds import JudgeKind, Workplace
from sae_attr.store import digest

NEITHER = "NEITHER"
VERSION = 2  # 2: says nothing of coherence


@dataclass(frozen=True)
class Words:
    """Settings of a judge that counts words.

    Args:
      present, absent: of keywords: words that count for and against the behaviour.
    """

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeywordJudge:
    """Grades by the words of a completion: it has the behaviour where words that show
    it outnumber those that show its absence.

    Where neither prevail the completion is excluded. Counts of words do not show
    whether a text is coherent, so `coherent` is None.

    Args:
      present: words that show the behaviour, in any case.
      absent: words that show its absence.

    Raises:
      ValueError: no words on one side, or a word on both.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...]

    def __post_init__(self) -> None:
        both = set(self.present) & set(self.absent)
        if both or not self.present or not self.absent:
            why = "one side has no words"
            if both:
                why = f"{sorted(both)[0]!r} stands on both sides"
            raise ValueError(
                f"keyword judge: {why}; give words that show the behaviour and others "
                "that show its absence"
            )

    @property
    def tells_coherence(self) -> bool:
        """False: noise that holds the words is graded like any other text."""
        return False

    @property
    def identity(self) -> Mapping[str, Any]:
        """The words, by their digest."""
        words = {"present": sorted(self.present), "absent": sorted(self.absent)}
        return {
            "kind": "keywords",
            "name": "keywords",
            "version": VERSION,
            "rubric": digest(words)[:12],
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade) in order; the score is the difference of the counts.

        Raises:
          ValueError: an id that occurs twice.
        """
        check_items(items)
        return ((item.id, self._one(item.completion)) for item in items)

    def _one(self, text: str) -> Grade:
        words = re.findall(r"\w+", text.lower())
        present = sum(word in self.present for word in words)
        score = present - sum(word in self.absent for word in words)
        if not score:
            return Grade(NEITHER, excluded=True)
        return Grade(f"{score:+d}", score=float(score), behaviour=float(score > 0))


def _open(words: Words, workplace: Workplace) -> Callable[[Any], KeywordJudge]:
    judge = KeywordJudge(words.present, words.absent)
    return lambda rubric: judge


KIND = JudgeKind("keywords", (Words,), _open, has_rubric=False)
