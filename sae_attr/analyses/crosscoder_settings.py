"""Settings of a study of crosscoders on model organisms, and its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

from sae_attr.analyses.latent_scaling import SpecificitySettings
from sae_attr.analyses.organism_case import (
    OrganismCase,
    OrganismSettings,
    Where,
    organism_cases,
)
from sae_attr.analyses.planted_models import PlantedSettings
from sae_attr.study.evaluation import EvaluationSettings
from sae_attr.study.settings import at_least

CROSSCODER, CROSSCODER_L1 = "crosscoder", "crosscoder_l1"
DIFFERENCE = "difference"
DICTIONARIES = (CROSSCODER, CROSSCODER_L1, DIFFERENCE)


@dataclass(frozen=True)
class CrosscoderSettings(OrganismSettings):
    """Sets dictionaries of an organism's misaligned fine-tune and of the model before it.

    Args:
      documents: of ordinary text, and as many dialogues of the fine-tune, that
        activations are taken of.
      latents, k: of every dictionary; k of those that keep a fixed number.
      sparsity: of the L1 crosscoder: λ times code times the sum of norms, beside the
        mean squared error of a coordinate.
      steps, batch, lr: of every training, in tokens.
      held_out: dialogues that explained variance and KL are measured on.
      patched: latents of largest Δ_norm whose patch is measured, and the halves of
        them by ν.
      top: latents of every dictionary that are steered with.
      random: latents of the organism's SAE that are the null of all.
      grid, budget, strength_prompts, effect_prompts: of steering, as in `pool`.
      specificity: thresholds.
      planted: the test on planted data.
    """

    documents: int = 1500
    latents: int = 512
    k: int = 10
    sparsity: float = 0.01
    steps: int = 600
    batch: int = 512
    lr: float = 2e-3
    held_out: int = 128
    patched: int = 64
    top: int = 20
    random: int = 100
    grid: tuple[float, ...] = (0.2, 0.4)
    budget: float = 0.10
    strength_prompts: int = 6
    effect_prompts: int = 16
    specificity: SpecificitySettings = field(default_factory=SpecificitySettings)
    planted: PlantedSettings = field(default_factory=PlantedSettings)

    def __post_init__(self) -> None:
        at_least(self, 1, "documents", "latents", "k", "steps", "batch", "held_out")
        at_least(self, 2, "patched", "top", "random")

    def evaluation(self) -> EvaluationSettings:
        """Returns those of the misaligned fine-tune alone."""
        return replace(super().evaluation(), behaviours=("misalignment",))


class CrosscoderCase(OrganismCase[CrosscoderSettings]):
    """One organism."""


def crosscoder_cases(
    settings: CrosscoderSettings, organism: Mapping[str, Any], **where: Unpack[Where]
) -> list[CrosscoderCase]:
    """Returns a case for every seed.

    Args:
      organism: values for `recipe_of`, without seed and kind.
      where: results lie, pairs are written and models run.
    """
    return organism_cases(CrosscoderCase, settings, organism, **where)
