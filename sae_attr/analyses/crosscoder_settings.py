"""Settings of a study of crosscoders on model organisms, and its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from sae_attr.analyses.latent_scaling import SpecificitySettings
from sae_attr.analyses.planted_models import PlantedSettings
from sae_attr.organism.recipe import recipe_of
from sae_attr.store import Store
from sae_attr.study.evaluation import (
    Evaluation,
    EvaluationSettings,
    evaluation_settings,
)
from sae_attr.study.settings import at_least

CROSSCODER, CROSSCODER_L1 = "crosscoder", "crosscoder_l1"
DIFFERENCE = "difference"
DICTIONARIES = (CROSSCODER, CROSSCODER_L1, DIFFERENCE)


@dataclass(frozen=True)
class CrosscoderSettings:
    """Dictionaries of an organism's misaligned fine-tune and of the chat model before it.

    Args:
      seeds: an organism each.
      kind: of the misaligned fine-tune: mixed | calm | confounded.
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
      corpus_tokens: of ordinary text, for the mean length of activations.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0,)
    kind: str = "mixed"
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
    corpus_tokens: int = 20_000
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "documents", "latents", "k", "steps", "batch", "held_out")
        at_least(self, 2, "patched", "top", "random")

    def evaluation(self) -> EvaluationSettings:
        """Returns the settings of the evaluations that the cases are made on."""
        behaviours = ("misalignment",)
        return evaluation_settings(self, kinds=(self.kind,), behaviours=behaviours)


@dataclass(frozen=True, eq=False)
class CrosscoderCase:
    """One organism."""

    settings: CrosscoderSettings
    evaluation: Evaluation

    def stage_name(self, stage: str) -> str:
        """Returns the whole name of one of its stages."""
        return self.evaluation.stage_name(stage)


def crosscoder_cases(
    settings: CrosscoderSettings,
    organism: Mapping[str, Any],
    *,
    store: Store,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
) -> list[CrosscoderCase]:
    """Returns a case for every seed.

    Args:
      organism: values for `recipe_of`, without seed and kind.
    """
    cases = []
    for seed in settings.seeds:
        recipe = recipe_of({**organism, "seed": seed, "kind": settings.kind})
        evaluation = Evaluation(
            settings.evaluation(), recipe, "misalignment", store, workdir, mesh
        )
        cases.append(CrosscoderCase(settings, evaluation))
    return cases
