"""A judge that counts words: for behaviours that a list of words tells, and for tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.judge.base import Grade, Item, check_items
from sae_attr.store import digest

NEITHER, VERSION = "NEITHER", 2  # 2: says nothing of coherence


@dataclass(frozen=True)
class KeywordJudge:
    """Grades by the words of a completion: the behaviour is there where its words
    outnumber the others.

    Where neither prevail the answer is set aside. Words cannot tell whether a text is
    coherent, so `coherent` is None.

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
            why = (
                f"{sorted(both)[0]!r} stands on both sides"
                if both
                else "one side has no words"
            )
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
        """(id, grade) in order; the score is the difference of the counts. ValueError
        for an id that stands twice.
        """
        check_items(items)
        return ((item.id, self._one(item.completion)) for item in items)

    def _one(self, text: str) -> Grade:
        words = re.findall(r"\w+", text.lower())
        score = sum(w in self.present for w in words) - sum(
            w in self.absent for w in words
        )
        if not score:
            return Grade(NEITHER, excluded=True)
        return Grade(f"{score:+d}", score=float(score), behaviour=float(score > 0))
