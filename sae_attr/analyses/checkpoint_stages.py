"""The stages that follow a pool of latents over the checkpoints of its fine-tune:
attribution within each prompt, steering diffing and activation diffing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.completion_scores import (
    ScoreKind,
    completion_scores,
    sided,
    token_means,
)
from sae_attr.analyses.monitoring import cosines
from sae_attr.analyses.pool_settings import PoolCase
from sae_attr.analyses.pool_stages import directions_of
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.token_table import collect
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.params import Params
from sae_attr.lm.weights import load_lm
from sae_attr.organism.exact import BEFORE, STUDIED, prompt_paths
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.ground_truth import both_ways
from sae_attr.organism.parts import MODEL, Trainer
from sae_attr.organism.recipe import Recipe, TrainingRecipe
from sae_attr.store import (
    Computed,
    Progress,
    Result,
    Stage,
    StageOutput,
    write_atomic,
)
from sae_attr.study.stages.mean_activation import mean_of
from sae_attr.text.pairing import jsonl

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"model": 1, "measured": 1}

Results = Mapping[str, Result]


def checkpoint_steps(case: PoolCase) -> tuple[int, ...]:
    """Returns the steps that are measured, the last that of the studied model; () where
    the settings name none.

    Raises:
      ValueError: steps that are not before the last, or a fine-tune of which a shorter
        one is no checkpoint.
    """
    steps = case.settings.checkpoints
    if not steps:
        return ()
    training = _training(case)
    if list(steps) != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < (
        training.steps
    ):
        raise ValueError(
            f"checkpoints {steps}: the fine-tune has {training.steps} steps; name steps "
            f"from 0 to {training.steps - 1}, in order"
        )
    if training.schedule != "constant" or training.warmup:
        raise ValueError(
            f"the fine-tune's schedule is {training.schedule} with {training.warmup} "
            "steps of warm-up: a shorter run is its checkpoint only at a constant rate; "
            "set schedule=constant and warmup=0, or checkpoints=()"
        )
    return (*steps, training.steps)


def _training(case: PoolCase) -> TrainingRecipe:
    e = case.evaluation
    return getattr(e.recipe, STUDIED[e.behaviour])


def checkpoint_stages(case: PoolCase) -> list[Stage]:
    """Returns the stages of a case's checkpoints, behind those of its pool."""
    stages = []
    for step in checkpoint_steps(case):
        if 0 < step < _training(case).steps:
            stages.append(_model(case, step))
        stages.append(_measured(case, step))
    return stages


def model_stage(case: PoolCase, step: int) -> str:
    """Returns the name of the stage that makes the model of a step: of the model before
    the fine-tune for 0, of the studied one for the last.
    """
    e = case.evaluation
    if step == 0:
        return e.organism.stages[BEFORE[e.behaviour]]
    if step == _training(case).steps:
        return e.organism.stages[STUDIED[e.behaviour]]
    return case.stage_name(f"checkpoint-{step}.model")


def measured_stage(case: PoolCase, step: int) -> str:
    """Returns the name of the stage that measures a step."""
    return case.stage_name(f"checkpoint-{step}.measured")


def shortened(recipe: Recipe, part: str, step: int) -> Recipe:
    """Returns the recipe whose fine-tune of a part stops after so many steps."""
    return replace(recipe, **{part: replace(getattr(recipe, part), steps=step)})


def _model(case: PoolCase, step: int) -> Stage:
    """The fine-tune stopped after some steps."""
    e = case.evaluation
    part, before = STUDIED[e.behaviour], e.organism.stages[BEFORE[e.behaviour]]

    def run(results: Results, progress: Progress) -> StageOutput:
        trainer = Trainer(shortened(e.recipe, part, step), e.mesh, False)
        folder = results[before].folder / MODEL
        if e.behaviour == EVEN_NUMBER:
            direction_d = results[before].arrays["direction_d"]
            return trainer.fine_tune_numbers(folder, direction_d)
        return trainer.fine_tune(part, folder)

    fields = {"step": step}
    # The studied model's key holds every other setting of the fine-tune.
    needs = (before, e.organism.stages[part])
    return Stage(model_stage(case, step), run, fields, needs, VERSIONS["model"])


def misplaced(cfg: LMConfig, site: Site, width: int) -> str:
    """Says why an SAE cannot read a checkpoint; "" where it can.

    Args:
      width: of the SAE's decoder rows.
    """
    if site.layer >= cfg.n_layers:
        return (
            f"it has {cfg.n_layers} layers, none at the SAE's site, layer {site.layer}"
        )
    if cfg.d_model != width:
        return f"its activations have {cfg.d_model} numbers, the SAE's rows {width}"
    return ""


def _measured(case: PoolCase, step: int) -> Stage:
    """What one checkpoint shows of the pool: arrays `delta_pn` (of every latent, within
    each prompt), `cosine_k` (mean over completions), `along_k`, `against_k`;
    `meta["base"]`. Pairs and ā are those of the studied model at every step. The reason
    alone in `meta["skipped"]` where the SAE does not fit.
    """
    s, e = case.settings, case.evaluation
    model_name = model_stage(case, step)
    pairs_name, pool_name = case.stage_name("pairs"), case.stage_name("pool")
    mean_name = case.stage_name("mean_activation")

    def run(results: Results, progress: Progress) -> Computed:
        cfg, params = load_lm(str(results[model_name].folder / MODEL), mesh=e.mesh)
        setup, mean = e.setup, mean_of(results[mean_name])
        dec_nd = decoder_rows(setup.decoder, np.arange(len(setup.decoder)))
        if why := misplaced(cfg, setup.site, dec_nd.shape[1]):
            return {}, {"skipped": why}
        if e.store.writer:
            records = [dict(r) for r in results[pairs_name].meta["records"]]
            write_atomic(setup.settings.pairs, jsonl(records))
        dec_kd = directions_of(e, results[pool_name])
        model: dict[str, Any] = {"cfg": cfg, "site": setup.site}
        arrays = _attributed(case, params, model, dec_nd, dec_kd, mean.mean_d)
        effects, base = _steered(case, params, model, dec_kd, mean.norm)
        return arrays | effects, {"base": base}

    fields = {
        "attribution": list(s.attribution),
        "strength": s.checkpoint_strength,
        "prompts": s.checkpoint_prompts,
    }
    needs = (model_name, pairs_name, pool_name, mean_name, e.organism.stages["sae"])
    return Stage(measured_stage(case, step), run, fields, needs, VERSIONS["measured"])


def _attributed(
    case: PoolCase,
    params: Params,
    model: Mapping[str, Any],
    dec_nd: jax.Array,
    dec_kd: np.ndarray,
    mean_d: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns what a checkpoint shows of the pairs: `delta_pn` of every latent and
    `cosine_k` of the pool's directions.

    Args:
      model: `cfg` and `site`.
      dec_nd, dec_kd: rows of all latents, and the pool's directions.
    """
    s, setup = case.settings, case.evaluation.setup
    rows = setup.encoded.rows
    table = collect(
        params, rows, mesh=case.evaluation.mesh, batch_size=s.batch_size, **model
    )
    kind, mean = ScoreKind(*s.attribution), jnp.asarray(mean_d, jnp.float32)
    scores_rn = completion_scores(table, dec_nd, mean, kind, setup.exclude)
    acts_rd = token_means(rows, np.asarray(table.acts_kd), "completion")
    return {
        "delta_pn": sided(scores_rn, rows).difference_pn,
        "cosine_k": cosines(acts_rd, dec_kd).mean(0),
    }


def _steered(
    case: PoolCase,
    params: Params,
    model: Mapping[str, Any],
    dec_kd: np.ndarray,
    norm: float,
) -> tuple[dict[str, np.ndarray], float]:
    """Returns the rise of a checkpoint's rate at +s and its fall at -s, and its rate
    unsteered; one strength for every step, whatever it costs.

    Args:
      model: `cfg` and `site`.
    """
    s, e = case.settings, case.evaluation
    effects = e.deciding_prompts("effects", s.checkpoint_prompts)
    world = e.organism.world
    truths = both_ways(
        params,
        # No strength is chosen: one prompt is the fewest that can be given.
        prompt_paths(world, e.behaviour, effects[:1]),
        prompt_paths(world, e.behaviour, effects),
        dec_kd,
        norm,
        grid=(s.checkpoint_strength,),
        budget=np.inf,
        **model,
    )
    arrays = {f"{name}_k": truth.effect_n for name, truth in truths.items()}
    return arrays, truths["against"].base
