"""The stages of a rank-1 adapter's transition on model organisms: the path of every
fine-tune, the exact rates along it, and at some steps Δ, directions and steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations.statistics import MeanActivation
from sae_attr.analyses.organism_case import behind_organism
from sae_attr.analyses.transition_measures import (
    PairMeasurement,
    SteppedModel,
    measure_pairs,
    measured_series,
)
from sae_attr.analyses.transition_settings import TransitionCase
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import Lora
from sae_attr.lm.params import Params
from sae_attr.lm.weights import load_lm
from sae_attr.organism.adapter_path import (
    AdapterPath,
    check_path_adapter,
    train_path,
    with_adapter,
)
from sae_attr.organism.exact import BEFORE, STUDIED, exact_rates, prompt_paths
from sae_attr.organism.ground_truth import both_ways
from sae_attr.organism.parts import Trainer
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.ground_truth_stages import context_of
from sae_attr.study.score_ground_truth import evaluation_stages
from sae_attr.study.stages import mean_activation
from sae_attr.study.stages.context import Inputs

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {"path": 1, "rates": 1, "measured": 1}
PATH, RATES, MEASURED = "path", "rates", "measured"

Results = Mapping[str, Result]


def transition_stages(cases: Sequence[TransitionCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism."""
    stages: dict[str, Stage] = {}
    for case in cases:
        of_case = []
        for run in range(case.settings.runs):
            of_case += [_path(case, run), _rates(case, run), _measured(case, run)]
        available = evaluation_stages([case.evaluation])
        for stage in behind_organism(of_case, available):
            stages.setdefault(stage.name, stage)
    return list(stages.values())


# ---- the path ------------------------------------------------------------------------


def _path(case: TransitionCase, run: int) -> Stage:
    """The adapter at every step: arrays of an `AdapterPath`."""
    s, e = case.settings, case.evaluation
    part = STUDIED[e.behaviour]

    def compute(results: Results, progress: Progress) -> Computed:
        cfg, params = load_lm(e.before, mesh=e.mesh)
        path = train_path(
            Trainer(e.recipe, e.mesh, False),
            part,
            cfg,
            params,
            lora=s.adapter,
            training=s.training,
            seed=run,
        )
        return path._asdict(), {}

    fields = {
        "adapter": asdict(s.adapter),
        "training": asdict(s.training),
        "kind": e.recipe.kind,
        "run": run,
    }
    needs = (e.organism.stages[BEFORE[e.behaviour]],)
    return Stage(case.stage_name(PATH, run), compute, fields, needs, VERSIONS[PATH])


def path_of(result: Result) -> AdapterPath:
    """Reads the path from the result of its stage."""
    arrays = {name: np.asarray(result.arrays[name]) for name in AdapterPath._fields}
    return AdapterPath(**arrays)


# ---- rates ---------------------------------------------------------------------------


def _rates(case: TransitionCase, run: int) -> Stage:
    """Exact rates at every step, of the adapter times every scale: arrays `rate_cs` and
    `coherent_cs`, `[scales, steps + 1]`.
    """
    s, e = case.settings, case.evaluation
    path_name = case.stage_name(PATH, run)

    def compute(results: Results, progress: Progress) -> Computed:
        cfg, params = load_lm(e.before, mesh=e.mesh)
        path = path_of(results[path_name])
        where = check_path_adapter(cfg, s.adapter)
        prompts = e.deciding_prompts("effects", s.rate_prompts)
        paths = prompt_paths(e.organism.world, e.behaviour, prompts)
        options = {"cfg": cfg, "lora": s.adapter, "where": where}
        rates, coherent = [], []
        for scale in s.scales:
            rate_s, coherent_s = _path_rates(
                params, path.a_si, path.b_so, scale, paths, **options
            )
            rates.append(np.asarray(rate_s))
            coherent.append(np.asarray(coherent_s))
        return {"rate_cs": np.stack(rates), "coherent_cs": np.stack(coherent)}, {}

    fields = {"scales": list(s.scales), "prompts": s.rate_prompts}
    needs = (path_name, e.organism.stages[BEFORE[e.behaviour]])
    return Stage(case.stage_name(RATES, run), compute, fields, needs, VERSIONS[RATES])


@partial(jax.jit, static_argnames=("cfg", "lora", "where"))
def _path_rates(
    params: Params,
    a_si: Any,
    b_so: Any,
    scale: Any,
    paths: Any,
    *,
    cfg: LMConfig,
    lora: Lora,
    where: tuple[str, int],
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean rates of behaviour and coherence at every step, `[s]` each."""

    def one(a_i: jax.Array, b_o: jax.Array) -> tuple[jax.Array, jax.Array]:
        adapted = with_adapter(params, lora, where, (a_i, b_o), scale)
        behaviour_kp, coherent_kp = exact_rates(adapted, paths, {}, cfg=cfg)
        return behaviour_kp.mean(), coherent_kp.mean()

    return jax.vmap(one)(jnp.asarray(a_si), jnp.asarray(b_so))


# ---- Δ, directions and steering ------------------------------------------------------


def _measured(case: TransitionCase, run: int) -> Stage:
    """Returns the stage of what the measured steps show, of `measured_series`."""
    s = case.settings

    def compute(inputs: Inputs, progress: Progress) -> Computed:
        path = path_of(inputs[f"run-{run}.{PATH}"])
        mean = mean_activation.mean_of(inputs[mean_activation.NAME])
        return _measured_steps(case, run, path, mean)

    fields = {
        "every": s.measure_every,
        "attribution": list(s.attribution),
        "gradient_tokens": s.gradient_tokens,
        "top": s.top,
        "random": s.random,
        "strength": s.strength,
        "prompts": s.effect_prompts,
    }
    return context_of(case.evaluation).stage(
        f"run-{run}.{MEASURED}",
        compute,
        version=VERSIONS[MEASURED],
        fields=fields,
        needs=(f"run-{run}.{PATH}", mean_activation.NAME),
        files=("lm", "lm_aligned", "sae"),
        pairs=True,
    )


def _measured_steps(
    case: TransitionCase, run: int, path: AdapterPath, mean: MeanActivation
) -> Computed:
    """Measures the steps of a path, and steers with the latents of the last one."""
    s, e = case.settings, case.evaluation
    cfg, params = load_lm(e.before, mesh=e.mesh)
    model = SteppedModel(cfg, params, s.adapter, check_path_adapter(cfg, s.adapter))

    def measure(step: int, dec_nd: jax.Array) -> PairMeasurement:
        weights = model.at(path, step)
        return measure_pairs(e.setup, weights, dec_nd, mean.mean_d, cfg=cfg, settings=s)

    def steer(step: int, dec_kd: np.ndarray) -> np.ndarray:
        return _steering(case, model.at(path, step), cfg, dec_kd, mean.norm)

    return measured_series(s, e.setup, measure, steer, seed=e.recipe.seed + run)


def _steering(
    case: TransitionCase,
    params: Params,
    cfg: LMConfig,
    dec_kd: np.ndarray,
    norm: float,
) -> np.ndarray:
    """Returns the rise of the rate at +s and its fall at −s of every direction, `[k]`."""
    s, e = case.settings, case.evaluation
    prompts = e.deciding_prompts("effects", s.effect_prompts)
    truths = both_ways(
        params,
        # No strength is chosen: one prompt is the fewest that can be given.
        prompt_paths(e.organism.world, e.behaviour, prompts[:1]),
        prompt_paths(e.organism.world, e.behaviour, prompts),
        dec_kd,
        norm,
        cfg=cfg,
        site=e.setup.site,
        grid=(s.strength,),
        budget=np.inf,
    )
    return truths["along"].effect_n + truths["against"].effect_n
