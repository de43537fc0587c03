"""What scores of latents are evaluated on: an organism, an SAE and a behaviour."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import jax
from etils import epath

from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_lm
from sae_attr.organism.build import Organism, locate, organism_stages
from sae_attr.organism.exact import BEFORE, DECIDES, STUDIED
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.store import Stage, Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.setup import Setup

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationSettings:
    """Sets which organisms, and on how much each is evaluated.

    Args:
      seeds: an organism each.
      latents: sizes of the SAE.
      kinds: of the misaligned fine-tune (mixed, confounded, calm); validation has one
        kind.
      behaviours: of misalignment, validation.
      pair_prompts: prompts that are asked; pairs are of those that gave both sides.
      samples: completions of each.
      pairs: at most so many.
      strength_prompts, effect_prompts: at most so many prompts of either split.
      grid: strengths that are tried, in mean lengths; at 0.7 hardly a latent leaves so
        small a model coherent.
      budget: of coherence, as a share.
      top: latents whose recall and mean effect are reported.
      draws: of the effects' prompts, and of seeds, for intervals.
      corpus_tokens: of ordinary text, for means and firing rates.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    latents: tuple[int, ...] = (256, 2048)
    kinds: tuple[str, ...] = ("mixed", "confounded", "calm")
    behaviours: tuple[str, ...] = ("misalignment", "validation")
    pair_prompts: int = 160
    samples: int = 8
    pairs: int = 64
    strength_prompts: int = 6
    effect_prompts: int = 16
    grid: tuple[float, ...] = (0.2, 0.4)
    budget: float = 0.10
    top: int = 20
    draws: int = 300
    corpus_tokens: int = 30_000
    batch_size: int = 64


def evaluation_settings(study: Any, **changes: Any) -> EvaluationSettings:
    """Returns the settings of the evaluations that another study is made on.

    Args:
      study: settings of a dataclass; its fields that have the name of one here are
        taken over.
      changes: fields of other names.
    """
    shared = {}
    for field in fields(EvaluationSettings):
        if hasattr(study, field.name):
            shared[field.name] = getattr(study, field.name)
    return EvaluationSettings(**shared | changes)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One organism, SAE and behaviour.

    Args:
      settings: of all evaluations.
      recipe: of the organism.
      behaviour: misalignment | validation, or even_number of an organism that has it.
      store: where results lie.
      workdir: where the pairs are written for the attribution, and for readers.
      mesh: where models run.
      several_saes: whether its graph has other SAEs of the same models.
    """

    settings: EvaluationSettings
    recipe: Recipe
    behaviour: str
    store: Store
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    several_saes: bool = False

    @property
    def model_name(self) -> str:
        """Names what it shares with other SAEs of the same model: its pairs."""
        name = f"{self.behaviour}-{self.recipe.kind}-{self.recipe.seed}"
        if self.recipe.harmless:
            name += f"-harmless-{self.recipe.harmless}"
        return name

    @property
    def name(self) -> str:
        """Names its other stages."""
        if not self.several_saes:
            return self.model_name
        return f"{self.model_name}-{self.recipe.sae.latents}"

    @property
    def about(self) -> Row:
        """What its rows begin with."""
        recipe = self.recipe
        return {
            "behaviour": self.behaviour,
            "kind": recipe.kind,
            "latents": recipe.sae.latents,
            "seed": recipe.seed,
        }

    @property
    def organism_prefix(self) -> str:
        """Begins the names of its organism's stages, which others of its seed share."""
        return f"organism-{self.recipe.seed}"

    @functools.cached_property
    def organism(self) -> Organism:
        """Where the organism's parts lie."""
        return locate(
            self.recipe,
            self.store,
            self.organism_prefix,
            several_saes=self.several_saes,
        )

    @property
    def studied(self) -> str:
        """Folder of the model that shows the behaviour."""
        return getattr(self.organism, STUDIED[self.behaviour])

    @property
    def before(self) -> str:
        """Folder of the model that its fine-tune began with."""
        return getattr(self.organism, BEFORE[self.behaviour])

    @functools.cached_property
    def params_before(self) -> Params:
        """Weights of that model; stages share them."""
        return load_lm(self.before, mesh=self.mesh)[1]

    def organism_stages(self) -> list[Stage]:
        """Returns the stages that make its organism."""
        return organism_stages(
            self.recipe,
            mesh=self.mesh,
            prefix=self.organism_prefix,
            several_saes=self.several_saes,
        )

    @functools.cached_property
    def setup(self) -> Setup:
        """The attribution of the behaviour."""
        s, organism = self.settings, self.organism
        settings = Settings(
            lm=self.studied,
            lm_aligned=self.before,
            sae=organism.sae,
            pairs=str(self.workdir / "pairs" / f"{self.model_name}.jsonl"),
            corpus=organism.corpus,
            corpus_tokens=s.corpus_tokens,
            firing_tokens=s.corpus_tokens,
            batch_size=s.batch_size,
            corpus_batch=s.batch_size,
            seed=self.recipe.seed,
            # Small dictionaries are judged by the ground truth itself.
            sae_check_tokens=0,
            trust_sae=True,
        )
        return Setup(settings, self.store, self.mesh, progress=False)

    def deciding_prompts(self, split: str, count: int) -> list[WorldPrompt]:
        """Returns the first prompts of a split whose behaviour next-word probabilities
        decide.
        """
        kind = DECIDES[self.behaviour]
        split_prompts = prompts(self.organism.world, self.behaviour, split)
        return [prompt for prompt in split_prompts if prompt.kind == kind][:count]

    def stage_name(self, stage: str) -> str:
        """Returns the whole name of one of its stages."""
        if stage == "pairs":
            return f"{self.model_name}.pairs"
        return f"{self.name}.{stage}"


def evaluations_of(
    settings: EvaluationSettings,
    organism: Mapping[str, Any],
    *,
    store: Store,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
) -> list[Evaluation]:
    """Returns every evaluation, seed by seed; validation, whose fine-tune has one kind,
    once a seed and size of the SAE.

    Args:
      organism: values for `recipe_of`, without seed, kind and number of latents.

    Raises:
      ValueError: the organism's values hold a number of latents.
    """
    size = (organism.get("sae") or {}).get("latents")
    if size is not None:
        raise ValueError(
            f"organism.sae.latents={size}, but the sizes of the SAE are those of "
            f"latents={','.join(map(str, settings.latents))}; set latents alone"
        )
    evaluations = []
    for seed, behaviour in product(settings.seeds, settings.behaviours):
        kinds = settings.kinds
        if behaviour != "misalignment":
            kinds = kinds[:1]
        for kind, latents in product(kinds, settings.latents):
            recipe = recipe_of({**organism, "seed": seed, "kind": kind})
            recipe = replace(recipe, sae=replace(recipe.sae, latents=latents))
            evaluation = Evaluation(
                settings, recipe, behaviour, store, workdir, mesh, several_saes=True
            )
            evaluations.append(evaluation)
    return evaluations
