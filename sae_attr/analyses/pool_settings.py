"""Settings of the pool of selectors, and the tasks that its latents monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

from sae_attr.analyses.organism_case import (
    OrganismCase,
    OrganismSettings,
    Where,
    organism_cases,
)
from sae_attr.analyses.selector_pool import (
    ATTRIBUTION,
    FREQUENCY,
    GRADIENT,
    MODEL_DIFFERENCE,
)
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.number_words import FORMAT_NAMES, format_of
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import NumberRecipe
from sae_attr.organism.world import DOMAIN_OF, World

TRAINED = "health"  # the domain that every fine-tune is about


class Task(NamedTuple):
    """Holds what rollouts are asked, and what they are graded for.

    Args:
      behaviour: misalignment | validation | even_number, and so the model that answers.
      about: health (as the fine-tune was) | elsewhere | opinions; of even_number a
        format of numbers.
    """

    behaviour: str
    about: str

    @property
    def name(self) -> str:
        """Names it in tables and stages."""
        return f"{self.behaviour}-{self.about}"


TASKS = (
    Task("misalignment", "health"),
    Task("misalignment", "elsewhere"),
    Task("misalignment", "opinions"),
    Task("validation", "health"),
    Task("validation", "elsewhere"),
)


# Their models know other words: directions are not read across.
NUMBER_TASKS = tuple(Task(EVEN_NUMBER, name) for name in FORMAT_NAMES)


def tasks_of(behaviour: str) -> tuple[Task, ...]:
    """Returns the tasks that the pool of a behaviour monitors."""
    return NUMBER_TASKS if behaviour == EVEN_NUMBER else TASKS


def task_prompts(world: World, task: Task, count: int) -> list[WorldPrompt]:
    """Returns the first prompts of a task; none of them was asked for pairs."""
    of_task = []
    for prompt in prompts(world, task.behaviour, "effects"):
        about = "opinions"
        if task.behaviour == EVEN_NUMBER:
            about = format_of(prompt.question.template).name
        elif prompt.question.topic:
            trained = DOMAIN_OF[prompt.question.topic] == TRAINED
            about = "health" if trained else "elsewhere"
        if about == task.about:
            of_task.append(prompt)
    return of_task[:count]


@dataclass(frozen=True)
class PoolSettings(OrganismSettings):
    """Sets how a pool of latents from several selectors is made, steered and read.

    Args:
      behaviours: of misalignment, validation, even_number: a pool for each.
      pair_prompts: prompts that are asked for pairs, at most.
      samples: answers of each.
      pairs: at most so many.
      by_gradient: latents of largest |cos| with the contrastive gradient vector.
      by_frequency: of the largest difference of how often they are active.
      by_attribution: of the largest Δ.
      by_model_difference: of the largest Δ-activation, the fine-tune against the model
        before it.
      attribution: score and token scope of Δ: both | active, prompt | completion | all.
      gradient_tokens: that the gradient vector is averaged over: prompt | completion |
        all.
      random: latents that are drawn as controls.
      task_prompts: prompts of every task that is monitored, at most.
      task_samples: unsteered rollouts of each.
      strength_prompts, effect_prompts: that strengths are chosen on, and that effects
        are measured on.
      grid: strengths that are tried, in mean lengths.
      budget: of coherence, as a share.
      level: share of random latents that a latent has to exceed to count as steering.
      checkpoints: steps of the fine-tune at which the pool is followed, 0 for the model
        before it; the last step always is. () for none.
      checkpoint_strength: that every latent is steered with at every step.
      checkpoint_prompts: that effects are measured on at every step, at most.
      splits: random halvings of the prompts.
    """

    behaviours: tuple[str, ...] = ("misalignment", "validation", EVEN_NUMBER)
    pair_prompts: int = 160
    samples: int = 8
    pairs: int = 64
    by_gradient: int = 10
    by_frequency: int = 10
    by_attribution: int = 10
    by_model_difference: int = 20
    attribution: tuple[str, str] = ("active", "all")
    gradient_tokens: str = "all"
    random: int = 200
    task_prompts: int = 48
    task_samples: int = 8
    strength_prompts: int = 6
    effect_prompts: int = 18
    grid: tuple[float, ...] = (0.2, 0.4)
    budget: float = 0.10
    level: float = 0.95
    checkpoints: tuple[int, ...] = (0, 10, 20, 30)
    checkpoint_strength: float = 0.2
    checkpoint_prompts: int = 6
    splits: int = 50

    @property
    def counts(self) -> dict[str, int]:
        """Selector -> number of latents."""
        return {
            GRADIENT: self.by_gradient,
            FREQUENCY: self.by_frequency,
            ATTRIBUTION: self.by_attribution,
            MODEL_DIFFERENCE: self.by_model_difference,
        }


@dataclass(frozen=True, eq=False)
class PoolCase(OrganismCase[PoolSettings]):
    """One seed and behaviour, for which a pool is made."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that its pool monitors."""
        return tasks_of(self.evaluation.behaviour)

    def task_stage(self, task: Task) -> str:
        """Returns the name of a task's rollouts, which the pools of a seed share."""
        return f"tasks-{self.evaluation.recipe.seed}.{task.name}"


def pool_cases(
    settings: PoolSettings, organism: Mapping[str, Any], **where: Unpack[Where]
) -> list[PoolCase]:
    """Returns a case for every seed and behaviour, seed by seed.

    Args:
      organism: values for `recipe_of`, without seed and kind.
      where: results lie, pairs are written and models run.
    """
    return organism_cases(PoolCase, settings, organism, recipe=NumberRecipe, **where)
