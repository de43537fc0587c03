"""A judge made of two: the behaviour, graded among coherent completions only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.judge.base import Grade, Item, Judge, check_items, tells_coherence

# Attributes under which a judge keeps those that it asks.
PARTS = ("judge", "behaviour", "coherence")


@dataclass(frozen=True)
class CoherentOnly:
    """Grades a behaviour where the completion is coherent, and excludes the others
    (Betley et al. 2025: aligned and coherent).

    The coherence of all items is graded first, then the behaviour of the coherent ones.
    Both judges should be cached, so that a stop between the two loses nothing.

    Args:
      behaviour: judge of the coherent completions.
      coherence: judge of all completions.
    """

    behaviour: Judge
    coherence: Judge

    @property
    def tells_coherence(self) -> bool:
        """As the judge of coherence does."""
        return tells_coherence(self.coherence)

    @property
    def identity(self) -> dict[str, Any]:
        """Those of both judges."""
        both = {
            "behaviour": dict(self.behaviour.identity),
            "coherence": dict(self.coherence.identity),
        }
        rubric = both["behaviour"].get("rubric", "")
        return {
            "kind": "coherent_only",
            "name": both["behaviour"].get("name", ""),
            "rubric": rubric,
            **both,
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade): the behaviour's grade with the verdict of the judge of
        coherence; raises what the judges raise.
        """
        check_items(items)
        by_id = {item.id: item for item in items}
        coherent: list[Item] = []
        for name, grade in self.coherence.grade(items):
            if grade.coherent == 1.0:
                coherent.append(by_id[name])
            else:
                yield name, _incoherent(grade)
        for name, grade in self.behaviour.grade(coherent):
            yield name, dataclasses.replace(grade, coherent=1.0)


def warnings_of(judge: Any) -> list[str]:
    """Gathers the warnings of a judge and of those that it asks, each once."""
    warnings = list(getattr(judge, "warnings", ()))
    for name in PARTS:
        if hasattr(judge, name):
            warnings += warnings_of(getattr(judge, name))
    return list(dict.fromkeys(warnings))


def _incoherent(grade: Grade) -> Grade:
    if grade.malformed:
        return grade
    details = {**grade.details, "coherence": grade.score}
    return Grade(
        "INCOHERENT",
        coherent=grade.coherent,
        excluded=True,
        raw=grade.raw,
        details=details,
    )
