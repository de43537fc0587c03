"""No judge: for studies that grade nothing, since all they measure are exact
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sae_attr.judge.base import Grade, Item
from sae_attr.judge.kinds import JudgeKind, Workplace

NAME = "none"


class NoJudge:
    """Grades nothing."""

    @property
    def tells_coherence(self) -> bool:
        """False: it says nothing at all."""
        return False

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its name."""
        return {"kind": NAME, "name": NAME}

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Raises ValueError where there is anything to grade."""
        if items:
            raise ValueError(
                f"{len(items)} answers are to be graded, but judge.kind is none; name a "
                "judge"
            )
        return iter(())


def _open(workplace: Workplace) -> Callable[[Any], NoJudge]:
    return lambda rubric: NoJudge()


KIND = JudgeKind(NAME, (), _open, has_rubric=False)
