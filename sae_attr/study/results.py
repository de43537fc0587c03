"""A case with what its stages found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.grading import Graded
from sae_attr.study.selection import Selection


@dataclass(frozen=True, eq=False)
class CaseResults:
    """A case with the results of its stages by name."""

    case: Case
    of: Mapping[str, Result]

    @property
    def selection(self) -> Selection:
        """Its latents."""
        return Selection.load(self.of["select"].arrays)

    def grades(self, direction: str) -> Graded:
        """Of steered and unsteered completions."""
        result = self.of[f"judge.{direction}"]
        return Graded.load(result.arrays, result.meta)
