"""Settings of the transition of a rank-1 adapter, and its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Unpack

from sae_attr.analyses.organism_case import (
    OrganismCase,
    OrganismSettings,
    Where,
    organism_cases,
)
from sae_attr.lm.lora import Lora
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.recipe import TrainingRecipe

# It writes where the organism's SAE reads: into the residual stream after block 1.
ADAPTER = Lora(rank=1, alpha=64.0, targets=("down",), layers=(1,))
TRAINING = TrainingRecipe(100, 16, 1e-3, rows=1600, schedule="constant")


@dataclass(frozen=True)
class EventSettings:
    """Sets what counts as a turn, a peak and a rise; k, windows and lags in steps.

    Args:
      lags: k of the local cosine.
      least_norm: the local cosine is undefined where the longer of its two differences
        is shorter than this.
      least_share: nor where it is shorter than this share of the longest on the path. 0
        as published; a path that has arrived wanders, and turns at every step.
      turn_below: a turn is where |local cosine| is smallest, and below this: 0.7 is a
        turn by 45 degrees.
      smooth: steps that the gradient's norm is averaged over, an odd number.
      rise_lag: steps before and behind between which a rate rises.
      least_rise: a rate that nowhere rises by more has no rise.
    """

    lags: tuple[int, ...] = (5, 10, 15)
    least_norm: float = 0.002
    least_share: float = 0.5
    turn_below: float = 0.7
    smooth: int = 5
    rise_lag: int = 5
    least_rise: float = 0.05

    def __post_init__(self) -> None:
        if not self.lags or min(self.lags) < 1:
            raise ValueError(f"lags {self.lags}: name at least one, each at least 1")
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise ValueError(
                f"smooth={self.smooth} has no middle; choose an odd number of steps"
            )

    @property
    def fewest(self) -> int:
        """Steps that a path needs."""
        return 2 * max(*self.lags, self.rise_lag, self.smooth // 2)


@dataclass(frozen=True)
class TransitionSettings(OrganismSettings):
    """Sets fine-tunes of an organism by a rank-1 adapter, and what is measured on their way.

    Args:
      behaviours: of misalignment, validation.
      runs: fine-tunes of each, which differ in the adapter's first A and in the order
        of the documents.
      adapter: of rank 1, on one matrix of one layer.
      training: of the adapter.
      events: what counts as a turn, a peak and a rise.
      scales: that the adapter is multiplied with for rates.
      rate_prompts: that rates are measured on at every step, at most.
      measure_every: steps between measurements of Δ, directions and steering.
      pair_prompts: prompts that are asked for pairs, at most.
      samples: answers of each.
      pairs: at most so many; half of them select latents, the other half measures Δ.
      attribution: score and token scope of Δ: both | active, prompt | completion | all.
      gradient_tokens: that the gradient direction is averaged over: prompt | completion
        | all.
      top: latents of the largest Δ at the last step.
      random: latents that are drawn as controls.
      strength: that every direction is steered with, in mean lengths.
      effect_prompts: that steering is measured on, at most.
    """

    behaviours: tuple[str, ...] = ("misalignment", "validation")
    runs: int = 8
    adapter: Lora = ADAPTER
    training: TrainingRecipe = TRAINING
    events: EventSettings = field(default_factory=EventSettings)
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    rate_prompts: int = 12
    measure_every: int = 10
    pair_prompts: int = 160
    samples: int = 8
    pairs: int = 64
    attribution: tuple[str, str] = ("active", "all")
    gradient_tokens: str = "all"
    top: int = 10
    random: int = 20
    strength: float = 0.2
    effect_prompts: int = 6

    def __post_init__(self) -> None:
        if self.training.steps < self.events.fewest:
            raise ValueError(
                f"the fine-tune has {self.training.steps} steps, and lags of "
                f"{self.events.lags} need {self.events.fewest}; raise training.steps or "
                "lower events.lags"
            )
        if self.runs < 1 or self.measure_every < 1 or not self.scales:
            raise ValueError(
                f"runs={self.runs}, measure_every={self.measure_every}, scales="
                f"{self.scales}: each needs at least one"
            )
        if EVEN_NUMBER in self.behaviours:
            raise ValueError(
                f"behaviours: {EVEN_NUMBER} is trained with a planted direction, not by "
                "an adapter; choose of misalignment, validation"
            )

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """Steps at which Δ, directions and steering are measured, the last among them."""
        last = self.training.steps
        return (*range(0, last, self.measure_every), last)


class TransitionRuns(Protocol):
    """Several fine-tunes of one model toward one behaviour."""

    @property
    def settings(self) -> TransitionSettings:
        """Returns how they are made and measured."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """Returns what its rows begin with."""
        ...

    def stage_name(self, stage: str, run: int) -> str:
        """Returns the whole name of a stage of one of its runs."""
        ...


@dataclass(frozen=True, eq=False)
class TransitionCase(OrganismCase[TransitionSettings]):
    """One seed and behaviour, which is fine-tuned several times."""

    def stage_name(self, stage: str, run: int | None = None) -> str:
        """Returns the whole name of a stage, of one of its runs."""
        if run is not None:
            stage = f"run-{run}.{stage}"
        return super().stage_name(stage)


def transition_cases(
    settings: TransitionSettings, organism: Mapping[str, Any], **where: Unpack[Where]
) -> list[TransitionCase]:
    """Returns a case for every seed and behaviour, seed by seed.

    Args:
      organism: values for `recipe_of`, without seed and kind.
      where: results lie, pairs are written and models run.
    """
    return organism_cases(TransitionCase, settings, organism, **where)
