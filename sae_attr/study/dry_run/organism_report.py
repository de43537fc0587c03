"""The dry run of what an organism needs before it is built: its trainings, its cases,
and the evaluation of scores on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.organism.exact import prompt_paths
from sae_attr.organism.pair_sampling import LONGEST, ROWS
from sae_attr.organism.recipe import MODELS, Recipe
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store import Stage, Store, stage_statuses
from sae_attr.study.attribution_cost import (
    AttributionShape,
    RowCounts,
    attribution_costs,
)
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.case import Case
from sae_attr.study.cost import Reading, StageCost, case_costs
from sae_attr.study.dry_run.memory import Held, weight_bytes
from sae_attr.study.dry_run.rates import Batch, RatesOf
from sae_attr.study.dry_run.report import DryRun, models_table
from sae_attr.study.dry_run.training_report import step_flops
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.score_ground_truth import evaluation_stages
from sae_attr.study.stages import scores
from sae_attr.text.rows import SCOPES

_PASSES = 3  # forward, and backward to inputs and weights
_PATHS, _PATH = 3, 12  # ways in which an answer may begin, and words of one
WIDTH = 16  # slots for an organism's prompts
_BATCH = 128  # rows of a batch where the organism's size decides little


def organism_cfg(recipe: Recipe) -> LMConfig:
    """Returns the config of an organism's models."""
    return config_from_hf(recipe.hf(), "the organism's recipe")


def organism_text(recipe: Recipe) -> str:
    """Returns the shapes of an organism's parts."""
    names = ", ".join(MODELS)
    table = models_table({f"each of {names}": organism_cfg(recipe)}, "float32")
    return (
        f"{table}\nan SAE of {recipe.sae.latents:,} latents at {recipe.site}; the run "
        "makes what of them is not there"
    )


def organism_costs(recipe: Recipe, names: Mapping[str, str]) -> list[StageCost]:
    """Returns the costs of making an organism.

    Args:
      names: part -> name of its stage.
    """
    costs = []
    for part in MODELS:
        training = getattr(recipe, part)
        tokens = _PASSES * training.steps * training.batch * recipe.context
        read = tokens * recipe.n_layers
        costs.append(StageCost(names[part], read=read, heads=tokens))
    sae, d = recipe.sae, recipe.d_model
    config = TrainConfig(d, sae.latents, sae.steps, k=sae.k)
    costs.append(
        StageCost(
            names["sae"],
            read=sae.documents * recipe.context * (sae.layer + 1),
            flops=sae.steps * sae.batch * step_flops(config),
        )
    )
    return costs


# ---- cases ---------------------------------------------------------------------------


def unbuilt_case_costs(case: Case, recipe: Recipe) -> list[StageCost]:
    """Returns the costs of a case whose organism is still to be made; its tokens are
    words.
    """
    lengths = {}
    for split in case.split_prompts:
        words = [len(_text(p).split()) + 1 for p in case.prompts(split)]
        lengths[split] = max(words, default=0)
    above = recipe.n_layers - recipe.site.layer
    costs = []
    for cost in case_costs(case, Reading(recipe.n_layers, above, lengths)):
        # The grammar's paths; texts of a screen are counted already.
        if cost.exact and not cost.exact_tokens:
            tokens = cost.exact * _PATHS * (lengths["strengths"] + _PATH)
            cost = replace(cost, read=float(tokens * above), heads=float(tokens))
        costs.append(cost)
    max_new = case.study.sampling.max_new
    pairs = min(case.settings.pairs, len(case.prompts("pairs")))
    rows = 2 * case.settings.per_side * pairs
    counts = RowCounts(rows, rows * (lengths["pairs"] + max_new), rows * max_new)
    shape = organism_shape(case.setup.settings, recipe)
    return [*costs, *attribution_costs(shape, counts, prefix=f"{case.name}.")]


def _text(prompt: object) -> str:
    return str(getattr(prompt, "prompt", ""))


def organism_shape(settings: Settings, recipe: Recipe) -> AttributionShape:
    """Returns the shape of an attribution on an organism."""
    return AttributionShape(
        settings=settings,
        layers=recipe.n_layers,
        site_layer=recipe.site.layer,
        n_latents=recipe.sae.latents,
        d_in=recipe.d_model,
        d_out=recipe.d_model,
        firing_positions=min(settings.firing_tokens, settings.corpus_tokens),
        second_model=True,
        outliers=True,
    )


# ---- the evaluation of scores --------------------------------------------------------


def evaluation_dry_run(
    evaluations: Sequence[Evaluation], store: Store, rates_of: RatesOf
) -> DryRun:
    """Finds out what the evaluation of scores needs; nothing is built."""
    report, first = DryRun(), evaluations[0]
    cfg = organism_cfg(first.recipe)
    report.add("organisms", organism_text(first.recipe))
    weights = weight_bytes(cfg, first.mesh, "float32")
    report.add_memory(
        "memory", [Held("weights of two models", 2 * weights)], first.mesh
    )
    stages: list[Stage] = evaluation_stages(evaluations)
    costs: dict[str, StageCost] = {}
    for evaluation in evaluations:
        recipe, names = evaluation.recipe, evaluation.organism.stages
        for cost in (*organism_costs(recipe, names), *evaluation_costs(evaluation)):
            costs.setdefault(cost.stage, cost)
    statuses = stage_statuses(store, stages)
    present = {status.name for status in statuses}
    kept = [cost for cost in costs.values() if cost.stage in present]
    report.add_stages(
        kept, rates_of(cfg, Batch(_BATCH, 2 * LONGEST), "float32"), statuses
    )
    return report


def evaluation_costs(e: Evaluation) -> list[StageCost]:
    """Returns the costs of the stages of one evaluation."""
    s, recipe = e.settings, e.recipe
    prompts = e.deciding_prompts("pairs", s.pair_prompts)
    width = max(len(prompt.text.split()) for prompt in prompts) + 1
    samples = len(prompts) * s.samples
    batches = -(-samples // ROWS)
    steps = batches * LONGEST * ROWS / _BATCH
    read = batches * ROWS * width * recipe.n_layers
    tokens = samples * LONGEST
    costs = [
        StageCost(
            e.stage_name("pairs"),
            samples=samples,
            tokens=tokens,
            read=read,
            steps=steps,
        )
    ]
    rows = 2 * min(s.pairs, len(prompts))
    counts = RowCounts(rows, rows * (width + LONGEST), rows * LONGEST)
    shape = organism_shape(e.setup.settings, recipe)
    for cost in attribution_costs(shape, counts):
        if cost.stage == scores.NAME:
            for scope in SCOPES:
                costs.append(replace(cost, stage=e.stage_name(f"scores.{scope}")))
        else:
            costs.append(replace(cost, stage=e.stage_name(cost.stage)))
    return [*costs, _ground_truth_cost(e, shape)]


def _ground_truth_cost(e: Evaluation, shape: AttributionShape) -> StageCost:
    """Returns the cost of steering every latent both ways, and of ablating it."""
    s, world = e.settings, e.organism.world
    tokens = {}
    for split, count in (
        ("strengths", s.strength_prompts),
        ("effects", s.effect_prompts),
    ):
        paths = prompt_paths(world, e.behaviour, e.deciding_prompts(split, count))
        tokens[split] = paths.tokens_pmt.size
    steered = 2 * (len(s.grid) * tokens["strengths"] + tokens["effects"])
    read = shape.n_latents * (steered + tokens["effects"])
    return StageCost(e.stage_name("ground_truth"), read=read * shape.above, heads=read)
