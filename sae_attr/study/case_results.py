"""A case with the results of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_attr.comparison_records import Direction, LatentName
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.grading import GradedAnswers
from sae_attr.study.latent_scores import LatentScores
from sae_attr.study.selection import Selection
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages import dictionaries
from sae_attr.study.stages.rates import rates_of
from sae_attr.study.stages.steer import effect_sweep, strengths_of
from sae_attr.study.sweep_conditions import side_of
from sae_attr.text.pairing import Answer


@dataclass(frozen=True, eq=False)
class CaseResults:
    """A case with the results of its stages by name."""

    case: Case
    of: Mapping[str, Result]

    @property
    def selection(self) -> Selection:
        """Its latents."""
        return Selection.load(self.of["select"].arrays)

    @property
    def scores(self) -> LatentScores:
        """Scores of its latents."""
        return LatentScores.load(self.of["attribute"], self.of.get(dictionaries.NAME))

    def label(self, latent: int) -> LatentName:
        """Returns how readers see a latent."""
        return self.case.latents.label(latent)

    def has(self, stage: str) -> bool:
        """Returns True if a stage that runs for either direction is done in both."""
        return all(f"{stage}.{direction}" in self.of for direction in DIRECTIONS)

    def graded(self, direction: Direction) -> GradedAnswers:
        """Returns the graded answers of a direction."""
        strengths = self.of[f"strengths.{direction}"]
        sweep = effect_sweep(self.case, direction, strengths, self.of["attribute"])
        grades = self.of[f"judge.{direction}"]
        return GradedAnswers.load(sweep.plan, grades.arrays, grades.meta)

    def exact(
        self, direction: Direction
    ) -> tuple[tuple[str, ...], dict[Condition, Any]]:
        """Returns the prompts that exact effects were measured on, and condition -> the
        rate of the behaviour on each.
        """
        strengths = self.of[f"strengths.{direction}"]
        sweep = effect_sweep(self.case, direction, strengths, self.of["attribute"])
        rates = rates_of(self.of[f"rates.{direction}"])
        by_condition = dict(zip(sweep.conditions, rates.behaviour_kp, strict=True))
        return rates.prompts, by_condition

    def condition(self, direction: Direction, latent: int) -> Condition:
        """Returns the condition that steered a latent with the direction's fixed sign."""
        stored = self.of[f"strengths.{direction}"]
        strengths = strengths_of(self.case, direction, stored)
        return strengths.condition(
            side_of(self.selection, direction, signed=False)[latent]
        )

    def answers(
        self, direction: Direction, latent: int | None = None
    ) -> dict[tuple[str, int], Answer]:
        """Returns (prompt's id, sample) -> answer under a latent's steering; None: of
        the unsteered model.
        """
        condition = UNSTEERED
        if latent is not None:
            condition = self.condition(direction, latent)
        return self.graded(direction).answers(condition, self.case.text)
