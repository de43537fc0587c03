"""What studies on model organisms have in common: the organisms that their settings name,
and a case for each seed and behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import jax
from etils import epath

from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.store import Stage, Store
from sae_attr.study.evaluation import (
    Evaluation,
    EvaluationSettings,
    evaluation_settings,
)


@dataclass(frozen=True)
class OrganismSettings:
    """Sets the organisms of a study.

    Args:
      seeds: an organism each.
      kind: of the misaligned fine-tune: mixed | calm | confounded.
      corpus_tokens: of ordinary text, for means.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0,)
    kind: str = "mixed"
    corpus_tokens: int = 20_000
    batch_size: int = 64

    def evaluation(self) -> EvaluationSettings:
        """Returns the settings of the evaluations that the study is made on; fields of
        the same name are taken over.
        """
        return evaluation_settings(self, kinds=(self.kind,))


class Where(TypedDict):
    """Where the results of cases lie, their pairs are written and their models run."""

    store: Store
    workdir: epath.Path
    mesh: jax.sharding.Mesh


S = TypeVar("S", bound=OrganismSettings)
C = TypeVar("C")


@dataclass(frozen=True, eq=False)
class OrganismCase(Generic[S]):
    """One seed and behaviour of a study.

    Args:
      settings: of all cases.
      evaluation: the organism and the behaviour.
    """

    settings: S
    evaluation: Evaluation

    @property
    def about(self) -> dict[str, Any]:
        """Columns that its rows begin with."""
        recipe = self.evaluation.recipe
        return {"behaviour": self.evaluation.behaviour, "seed": recipe.seed}

    def stage_name(self, stage: str) -> str:
        """Returns the whole name of one of its stages."""
        return self.evaluation.stage_name(stage)


def organism_cases(
    case_of: Callable[[S, Evaluation], C],
    settings: S,
    organism: Mapping[str, Any],
    *,
    recipe: type[Recipe] = Recipe,
    **where: Unpack[Where],
) -> list[C]:
    """Returns a case for every seed and behaviour, seed by seed.

    Args:
      case_of: makes the case of an evaluation.
      organism: values for `recipe_of`, without seed and kind.
      recipe: kind of organisms.
      where: results lie, pairs are written and models run.
    """
    evaluation = settings.evaluation()
    recipes = {}
    for seed in settings.seeds:
        values = {**organism, "seed": seed, "kind": settings.kind}
        recipes[seed] = recipe_of(values, recipe)
    cases = []
    for seed, behaviour in product(settings.seeds, evaluation.behaviours):
        of_case = Evaluation(evaluation, recipes[seed], behaviour, **where)
        cases.append(case_of(settings, of_case))
    return cases


def behind_organism(
    of_case: Sequence[Stage], available: Sequence[Stage]
) -> list[Stage]:
    """Returns the stages of a case behind those of its organism that they read.

    Args:
      available: stages of the organism, in order.
    """
    required = {need for stage in of_case for need in stage.needs}
    for stage in reversed(available):
        if stage.name in required:
            required.update(stage.needs)
    before = [stage for stage in available if stage.name in required]
    return [*before, *of_case]
