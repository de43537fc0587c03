"""Compares every score of latents with ground truth, on organisms where every latent
can be tried: the stages of it, for several seeds, kinds of fine-tune and behaviours.

For each of them: on-policy pairs, the attribution's stages up to the scores (one stage
for each scope of tokens), the ground truth of every latent, and how far they agree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from etils import epath

from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.score_registry import labelled
from sae_attr.lm.weights import load_lm
from sae_attr.organism.build import Organism, locate, organism_stages
from sae_attr.organism.exact import DECIDES, STUDIED, PromptPaths, prompt_paths
from sae_attr.organism.ground_truth import (
    GroundTruth,
    ablation_ground_truth,
    steering_ground_truth,
)
from sae_attr.organism.pair_sampling import organism_pairs
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.organism.score_agreement import agreement, agreement_rows
from sae_attr.store import (
    Computed,
    Progress,
    Result,
    Stage,
    Store,
    fingerprint,
    select_stages,
)
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.attribution_stages import attribution_stages
from sae_attr.study.setup import Setup
from sae_attr.study.stages.mean_activation import mean_of
from sae_attr.text.rows import SCOPES

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"pairs": 1, "ground_truth": 1, "agreement": 1}
GROUND_TRUTHS = ("away", "toward", "ablation")

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationSettings:
    """Which organisms, and on how much each is evaluated.

    Args:
      seeds: an organism each.
      kinds: of the misaligned fine-tune (mixed, calm, confounded); validation has one
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
      corpus_tokens: of ordinary text, for means and firing rates.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = ("mixed", "confounded")
    behaviours: tuple[str, ...] = ("misalignment", "validation")
    pair_prompts: int = 160
    samples: int = 8
    pairs: int = 64
    strength_prompts: int = 18
    effect_prompts: int = 36
    grid: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5)
    budget: float = 0.10
    top: int = 20
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
    """One organism and behaviour.

    Args:
      settings: of all evaluations.
      recipe: of the organism.
      behaviour: misalignment | validation.
      store: where results lie.
      workdir: where the pairs are written for the attribution, and for readers.
      mesh: where models run.
    """

    settings: EvaluationSettings
    recipe: Recipe
    behaviour: str
    store: Store
    workdir: epath.Path
    mesh: jax.sharding.Mesh

    @property
    def name(self) -> str:
        """Names its stages and files."""
        name = f"{self.behaviour}-{self.recipe.kind}-{self.recipe.seed}"
        if self.recipe.harmless:
            name += f"-harmless-{self.recipe.harmless}"
        return name

    @property
    def about(self) -> Row:
        """What its rows begin with."""
        seed, kind = self.recipe.seed, self.recipe.kind
        return {"behaviour": self.behaviour, "kind": kind, "seed": seed}

    @property
    def organism_prefix(self) -> str:
        """Begins the names of its organism's stages, which others of its seed share."""
        return f"organism-{self.recipe.seed}"

    @functools.cached_property
    def organism(self) -> Organism:
        """Where the organism's parts lie."""
        return locate(self.recipe, self.store, self.organism_prefix)

    @property
    def studied(self) -> str:
        """Folder of the model that shows the behaviour."""
        return getattr(self.organism, STUDIED[self.behaviour])

    @functools.cached_property
    def setup(self) -> Setup:
        """The attribution of the behaviour."""
        s, organism = self.settings, self.organism
        settings = Settings(
            lm=self.studied,
            lm_aligned=organism.chat,
            sae=organism.sae,
            pairs=str(self.workdir / "pairs" / f"{self.name}.jsonl"),
            corpus=organism.corpus,
            corpus_tokens=s.corpus_tokens,
            firing_tokens=s.corpus_tokens,
            batch_size=s.batch_size,
            corpus_batch=s.batch_size,
            seed=self.recipe.seed,
            # Small dictionaries are judged by the ground truth itself.
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
    once a seed.

    Args:
      organism: values for `recipe_of`, without seed and kind.
    """
    evaluations = []
    for seed in settings.seeds:
        for behaviour in settings.behaviours:
            kinds = settings.kinds
            if behaviour != "misalignment":
                kinds = kinds[:1]
            for kind in kinds:
                recipe = recipe_of({**organism, "seed": seed, "kind": kind})
                evaluations.append(
                    Evaluation(settings, recipe, behaviour, store, workdir, mesh)
                )
    return evaluations


# ---- stages --------------------------------------------------------------------------


def evaluation_stages(evaluations: Sequence[Evaluation]) -> list[Stage]:
    """Returns the stages of all evaluations, each behind those of its organism;
    organisms of one seed share what does not depend on their kind.
    """
    stages: dict[str, Stage] = {}
    for evaluation in evaluations:
        parts = organism_stages(
            evaluation.recipe, mesh=evaluation.mesh, prefix=evaluation.organism_prefix
        )
        for stage in (*parts, *_stages_of(evaluation)):
            stages.setdefault(stage.name, stage)
    return list(stages.values())


def _stages_of(e: Evaluation) -> list[Stage]:
    """The stages of one evaluation, without its organism's."""
    measured = _attribution_stages(e)
    return [_pair_stage(e), *measured, _ground_truth_stage(e), _agreement_stage(e)]


def _pair_stage(e: Evaluation) -> Stage:
    """On-policy pairs as records in `meta`, and the rates of the samples."""
    s = e.settings

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        cfg, params = load_lm(e.studied, mesh=e.mesh)
        prompts = e.deciding_prompts("pairs", s.pair_prompts)
        records, rates = organism_pairs(
            e.organism.world,
            params,
            prompts,
            e.behaviour,
            cfg=cfg,
            samples=s.samples,
            count=s.pairs,
            sampler=fingerprint(e.studied),
            seed=e.recipe.seed,
        )
        if not records:
            raise ValueError(
                f"{e.name}: no prompt of {len(prompts)} gave both sides ({dict(rates)}); "
                "ask more prompts"
            )
        return {}, {"records": records, "rates": dict(rates)}

    fields = {
        "behaviour": e.behaviour,
        "prompts": s.pair_prompts,
        "samples": s.samples,
        "pairs": s.pairs,
    }
    needs = (e.organism.stages[STUDIED[e.behaviour]],)
    return Stage(e.stage_name("pairs"), run, fields, needs, VERSIONS["pairs"])


def _attribution_stages(e: Evaluation) -> list[Stage]:
    """The attribution's stages up to the scores: one stage of scores for each scope,
    behind those that have no scope.
    """
    parts = (STUDIED[e.behaviour], "chat", "sae", "corpus")
    files = tuple(e.organism.stages[part] for part in parts)
    stages: list[Stage] = []
    for scope in SCOPES:
        settings = replace(e.setup.settings, tokens=scope)
        # The setups share the model's files, so that weights are loaded once.
        scoped = replace(e.setup, settings=settings, shared=e.setup.model_files)
        attribution = attribution_stages(
            scoped,
            prefix=e.stage_name(""),
            pairs_stage=e.stage_name("pairs"),
            file_stages=files,
        )
        *before, scores = select_stages(attribution, until=e.stage_name("scores"))
        stages += before if not stages else []
        stages.append(replace(scores, name=e.stage_name(f"scores.{scope}")))
    return stages


def _ground_truth_stage(e: Evaluation) -> Stage:
    """What steering with every latent away and toward, and ablating it, does: arrays
    `<ground truth>.<field>`.
    """
    s = e.settings
    mean_name = e.stage_name("mean_activation")

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        world = e.organism.world
        strengths = e.deciding_prompts("strengths", s.strength_prompts)
        effects = e.deciding_prompts("effects", s.effect_prompts)
        ground_truths = _ground_truths(
            e,
            results[mean_name],
            prompt_paths(world, e.behaviour, strengths),
            prompt_paths(world, e.behaviour, effects),
        )
        arrays = {}
        for name, ground_truth in ground_truths.items():
            for field in ("effect_n", "strength_n", "loss_n"):
                arrays[f"{name}.{field}"] = getattr(ground_truth, field)
        base = {name: truth.base for name, truth in ground_truths.items()}
        return arrays, {"base": base}

    fields = {
        "behaviour": e.behaviour,
        "grid": list(s.grid),
        "budget": s.budget,
        "strength_prompts": s.strength_prompts,
        "effect_prompts": s.effect_prompts,
    }
    parts = (STUDIED[e.behaviour], "chat", "sae")
    needs = (mean_name, *(e.organism.stages[part] for part in parts))
    name, version = e.stage_name("ground_truth"), VERSIONS["ground_truth"]
    return Stage(name, run, fields, needs, version)


def _ground_truths(
    e: Evaluation, mean_result: Result, strengths: PromptPaths, effects: PromptPaths
) -> Mapping[str, GroundTruth]:
    """Away and ablation on the studied model, toward on the chat model."""
    setup, mean = e.setup, mean_of(mean_result)
    cfg, site = setup.cfg, setup.site
    dec_nd = np.asarray(decoder_rows(setup.decoder, np.arange(len(setup.decoder))))
    steer = functools.partial(
        steering_ground_truth,
        strength_prompts=strengths,
        effect_prompts=effects,
        dec_nd=dec_nd,
        norm=mean.norm,
        cfg=cfg,
        site=site,
        grid=tuple(e.settings.grid),
        budget=e.settings.budget,
    )
    _, aligned = load_lm(e.organism.chat, mesh=e.mesh)
    return {
        "away": steer(setup.params, sign=-1),
        "toward": steer(aligned, sign=1),
        "ablation": ablation_ground_truth(
            setup.params, effects, dec_nd, mean.mean_d, cfg=cfg, site=site
        ),
    }


def ground_truths_of(result: Result) -> dict[str, GroundTruth]:
    """Reads the ground truths from the result of a stage `ground_truth`."""
    ground_truths = {}
    for name in GROUND_TRUTHS:
        ground_truths[name] = GroundTruth(
            effect_n=np.asarray(result.arrays[f"{name}.effect_n"]),
            strength_n=np.asarray(result.arrays[f"{name}.strength_n"]),
            loss_n=np.asarray(result.arrays[f"{name}.loss_n"]),
            base=result.meta["base"][name],
        )
    return ground_truths


def _agreement_stage(e: Evaluation) -> Stage:
    """A row for every score, scope and ground truth, in `meta["rows"]`."""
    truth_name = e.stage_name("ground_truth")
    score_names = {scope: e.stage_name(f"scores.{scope}") for scope in SCOPES}

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        scores: dict[tuple[str, str], np.ndarray] = {}
        for scope, name in score_names.items():
            scores |= labelled(results[name].arrays, scope)
        ground_truths = ground_truths_of(results[truth_name])
        n = len(ground_truths["away"].effect_n)
        scores["random", ""] = np.random.default_rng(e.recipe.seed).normal(size=n)
        return {}, {"rows": agreement_rows(scores, ground_truths, e.settings.top)}

    fields = {"top": e.settings.top, "seed": e.recipe.seed}
    needs = (truth_name, *score_names.values())
    return Stage(e.stage_name("agreement"), run, fields, needs, VERSIONS["agreement"])


# ---- results -------------------------------------------------------------------------


def is_complete(e: Evaluation, results: Mapping[str, Result]) -> bool:
    """Returns True if all results are there that `rows_of` and `facts_of` read."""
    stages = ("agreement", "pairs", "mean_activation", "ground_truth")
    return all(e.stage_name(stage) in results for stage in stages)


def rows_of(e: Evaluation, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row for every score, scope and ground truth of an evaluation."""
    rows = results[e.stage_name("agreement")].meta["rows"]
    return [{**e.about, **row} for row in rows]


def facts_of(e: Evaluation, results: Mapping[str, Result]) -> Row:
    """Returns an evaluation's numbers of pairs and samples, and its ground truths in
    short.
    """
    pairs = results[e.stage_name("pairs")].meta
    mean = mean_of(results[e.stage_name("mean_activation")])
    ground_truths = ground_truths_of(results[e.stage_name("ground_truth")])
    facts = {**e.about, "pairs": len(pairs["records"]), "norm": mean.norm}
    for name, rate in pairs["rates"].items():
        facts[f"sampled_{name}"] = rate
    for name, ground_truth in ground_truths.items():
        facts[f"{name}_base"] = ground_truth.base
        facts[f"{name}_max"] = float(ground_truth.effect_n.max())
        facts[f"{name}_unsteerable"] = int((ground_truth.strength_n == 0).sum())
    away, toward = ground_truths["away"], ground_truths["toward"]
    facts["away_toward_spearman"] = agreement(away.effect_n, toward.effect_n)[
        "spearman"
    ]
    return facts
