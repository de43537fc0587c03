"""Settings of a study of directions, and the narrow fine-tunes that it compares."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sae_attr.analyses.direction_record import GRADIENT, KINDS, MEAN, MODEL
from sae_attr.analyses.directions import AVERAGES
from sae_attr.analyses.layer_facts import residual_sites
from sae_attr.analyses.mitigation import PROJECT_TO
from sae_attr.hooks import Site
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.lora import Lora, check_lora
from sae_attr.organism.adapter_tuning import TUNES, NarrowTune
from sae_attr.organism.build import Organism, locate
from sae_attr.organism.exact import DECIDES
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import Recipe, TrainingRecipe, recipe_of
from sae_attr.store import Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.settings import at_least
from sae_attr.study.setup import Setup
from sae_attr.text.rows import SCOPES

# Nine adapters, as published; a model of four layers has them on three matrices of
# three layers.
ADAPTER = Lora(rank=1, alpha=64.0, targets=("o", "up", "down"), layers=(1, 2, 3))
# As many steps as leave both sides among the answers of a prompt.
TRAINING = TrainingRecipe(20, 16, 1e-3, rows=320, schedule="constant")


@dataclass(frozen=True)
class DirectionSettings:
    """Sets how directions of narrow fine-tunes are measured, projected out and
    compared.

    Args:
      seeds: an organism each.
      tunes: fine-tunes of its chat model: medical, financial (harmful advice),
        sycophantic (beliefs about health validated).
      advice: of harmful answers in the fine-tunes' rows: mixed | calm | confounded.
      adapter: that each is trained with.
      training: of each; the sycophantic one has .6 of the steps.
      answer_prompts: prompts that each fine-tune answers, over all domains.
      samples: answers of each; directions are of those that can be graded.
      average: of the mean difference: prompts (within each prompt first) | answers
        (every answer of a side alike, as published).
      gradient_tokens: that the gradient and the moment are summed over: prompt |
        completion | all.
      removed: directions that are projected out at every layer: mean_difference |
        model_difference | gradient | best_of_moment.
      project_to: what the projection becomes: zero, as published, or that of the
        layer's mean activation.
      draws: random directions that are projected out, another at every layer.
      effect_prompts: that rates are measured on, at most.
      top: latents of the highest Δ that directions are compared with.
      corpus_tokens: of ordinary text, for means.
      resamples: of the prompts, for intervals.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0,)
    tunes: tuple[str, ...] = tuple(TUNES)
    advice: str = "mixed"
    adapter: Lora = ADAPTER
    training: TrainingRecipe = TRAINING
    answer_prompts: int = 96
    samples: int = 8
    average: str = "prompts"
    gradient_tokens: str = "all"
    removed: tuple[str, ...] = (MEAN, MODEL, GRADIENT)
    project_to: str = "zero"
    draws: int = 20
    effect_prompts: int = 48
    top: int = 10
    corpus_tokens: int = 10_000
    resamples: int = 2000
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check_words("tunes", self.tunes, tuple(TUNES))
        _check_words("average", (self.average,), AVERAGES)
        _check_words("gradient_tokens", (self.gradient_tokens,), SCOPES)
        _check_words("removed", self.removed, KINDS)
        _check_words("project_to", (self.project_to,), PROJECT_TO)
        at_least(self, 1, "answer_prompts", "samples", "draws", "effect_prompts")
        at_least(self, 1, "top", "corpus_tokens", "resamples", "batch_size")


def _check_words(name: str, words: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    unknown = [word for word in words if word not in allowed]
    if unknown or not words or len(set(words)) < len(words):
        raise ValueError(
            f"{name} {', '.join(words) or 'of nothing'}: choose of "
            f"{', '.join(allowed)}, each once"
        )


@dataclass(frozen=True, eq=False)
class DirectionCase:
    """One organism, whose chat model is fine-tuned in several narrow ways.

    Args:
      store: where results lie.
      mesh: where models run.
    """

    settings: DirectionSettings
    recipe: Recipe
    store: Store
    mesh: jax.sharding.Mesh

    @property
    def seed(self) -> int:
        """Of the organism."""
        return self.recipe.seed

    @property
    def organism_prefix(self) -> str:
        """Begins the names of the organism's stages."""
        return f"organism-{self.seed}"

    def stage_name(self, tune: str, part: str) -> str:
        """Returns the whole name of a stage of a fine-tune."""
        return f"directions-{self.seed}.{tune}.{part}"

    @functools.cached_property
    def organism(self) -> Organism:
        """Where the organism's parts lie."""
        return locate(self.recipe, self.store, self.organism_prefix)

    @functools.cached_property
    def setup(self) -> Setup:
        """The chat model, the SAE and ordinary text."""
        settings = Settings(
            lm=self.organism.chat,
            sae=self.organism.sae,
            corpus=self.organism.corpus,
            pairs="",
            corpus_tokens=self.settings.corpus_tokens,
            batch_size=self.settings.batch_size,
            corpus_batch=self.settings.batch_size,
            seed=self.seed,
            sae_check_tokens=0,
            trust_sae=True,
        )
        return Setup(settings, self.store, self.mesh, progress=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The residual stream after every layer."""
        return residual_sites(self.recipe.n_layers)

    def tune(self, name: str) -> NarrowTune:
        """Returns what a fine-tune is taught."""
        return TUNES[name]

    def prompts(self, tune: str, split: str, count: int) -> list[WorldPrompt]:
        """Returns the first prompts of a split that the fine-tune's behaviour is decided
        on, spread over domains.
        """
        behaviour = self.tune(tune).behaviour
        of_split = prompts(self.organism.world, behaviour, split)
        kind = DECIDES[behaviour]
        return [prompt for prompt in of_split if prompt.kind == kind][:count]

    def check(self) -> None:
        """Raises ValueError for an adapter that does not fit the organism's models."""
        check_lora(config_from_hf(self.recipe.hf()), self.settings.adapter)


def direction_cases(
    settings: DirectionSettings,
    organism: Mapping[str, Any],
    *,
    store: Store,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
) -> list[DirectionCase]:
    """Returns a case for every seed.

    Args:
      organism: values for `recipe_of`, without the seed.
    """
    cases = []
    for seed in settings.seeds:
        recipe = recipe_of({**organism, "seed": seed})
        case = DirectionCase(settings, recipe, store, mesh)
        case.check()
        cases.append(case)
    return cases
