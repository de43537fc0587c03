"""The stages of a rank-1 adapter's transition on model organisms: the path of every
fine-tune, the exact rates along it, and at some steps Δ, directions and steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations.statistics import MeanActivation
from sae_attr.analyses.completion_scores import (
    ScoreKind,
    completion_scores,
    sided,
)
from sae_attr.analyses.pool_stages import with_needs
from sae_attr.analyses.transition_settings import TransitionCase
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.token_table import collect, token_weights
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
# Directions that are steered beside latents, both of the last step.
VECTORS = ("gradient", "mean_difference")

Results = Mapping[str, Result]


def transition_stages(cases: Sequence[TransitionCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism."""
    stages: dict[str, Stage] = {}
    for case in cases:
        of_case = []
        for run in range(case.settings.runs):
            of_case += [_path(case, run), _rates(case, run), _measured(case, run)]
        required = {need for stage in of_case for need in stage.needs}
        before = with_needs(evaluation_stages([case.evaluation]), required)
        for stage in (*before, *of_case):
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


class _Model(NamedTuple):
    """The organism's model and how an adapter is put on it."""

    cfg: LMConfig
    params: Params
    lora: Lora
    where: tuple[str, int]

    def at(self, path: AdapterPath, step: int) -> Params:
        """Returns the weights of a step."""
        factors = jnp.asarray(path.a_si[step]), jnp.asarray(path.b_so[step])
        return _adapted(self.params, self.lora, self.where, factors)


@partial(jax.jit, static_argnames=("lora", "where"))
def _adapted(
    params: Params, lora: Lora, where: tuple[str, int], factors: Any
) -> Params:
    return with_adapter(params, lora, where, factors)


class _Measurement(NamedTuple):
    """Holds what one step shows of the pairs: Δ of every latent within each prompt, and
    unit directions toward the behaviour.
    """

    delta_pn: np.ndarray
    gradient_d: np.ndarray
    mean_difference_d: np.ndarray


def _measured(case: TransitionCase, run: int) -> Stage:
    """Returns the stage of what the measured steps show, m of them: arrays `delta_m` and
    `delta_se_m` of the top latents on the half of the prompts that did not select them,
    `gradient_md`, `mean_difference_md`, and `steering_mk`, the rise of the rate at +s and
    its fall at −s, of `VECTORS`, the top latents and random ones; `latents_k` and `top`
    in `meta`.
    """
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
    model = _Model(cfg, params, s.adapter, check_path_adapter(cfg, s.adapter))
    dec_nd = decoder_rows(e.setup.decoder, np.arange(len(e.setup.decoder)))
    measured = []
    for step in s.measured_steps:
        weights = model.at(path, step)
        measured.append(_measurement(case, weights, cfg, dec_nd, mean.mean_d))
    last = measured[-1]
    selecting, others = _halves(len(last.delta_pn))
    delta_n = last.delta_pn[selecting].mean(0)
    top_k = np.argsort(-delta_n, kind="stable")[: s.top]
    random_k = _random_latents(len(dec_nd), s.random, top_k, e.recipe.seed + run)
    latents_k = np.concatenate([top_k, random_k])
    vectors = np.stack([last.gradient_d, last.mean_difference_d])
    steered_kd = np.concatenate([vectors, np.asarray(dec_nd)[latents_k]])
    steering = []
    for step in s.measured_steps:
        weights = model.at(path, step)
        steering.append(_steering(case, weights, cfg, steered_kd, mean.norm))
    arrays = {"steering_mk": np.stack(steering), "latents_k": latents_k}
    arrays |= _series(measured, top_k, others)
    return arrays, {"top": len(top_k)}


def _halves(prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts that select latents, and the others: a latent that is selected
    on the prompts that it is measured on looks better than it is.

    Raises:
      ValueError: fewer than four prompts.
    """
    if prompts < 4:
        raise ValueError(
            f"{prompts} prompts have pairs: half of them select latents, and the other "
            "half needs two for a standard error; raise pair_prompts"
        )
    return np.arange(0, prompts, 2), np.arange(1, prompts, 2)


def _random_latents(count: int, drawn: int, top_k: np.ndarray, seed: int) -> np.ndarray:
    others = np.setdiff1d(np.arange(count), top_k)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(others, min(drawn, len(others)), replace=False))


def _series(
    measured: Sequence[_Measurement], top_k: np.ndarray, others: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns Δ of the top latents with its standard error over prompts, and the
    directions, step by step.
    """
    means, errors = [], []
    for x in measured:
        of_prompt = x.delta_pn[np.ix_(others, top_k)].astype(np.float64).mean(1)
        means.append(of_prompt.mean())
        errors.append(of_prompt.std(ddof=1) / np.sqrt(len(of_prompt)))
    return {
        "delta_m": np.array(means),
        "delta_se_m": np.array(errors),
        "gradient_md": np.stack([x.gradient_d for x in measured]),
        "mean_difference_md": np.stack([x.mean_difference_d for x in measured]),
    }


def _measurement(
    case: TransitionCase,
    params: Params,
    cfg: LMConfig,
    dec_nd: jax.Array,
    mean_d: np.ndarray,
) -> _Measurement:
    s, setup = case.settings, case.evaluation.setup
    rows = setup.encoded.rows
    table = collect(
        params,
        rows,
        cfg=cfg,
        site=setup.site,
        mesh=case.evaluation.mesh,
        batch_size=s.batch_size,
    )
    kind, mean = ScoreKind(*s.attribution), jnp.asarray(mean_d, jnp.float32)
    scores_rn = completion_scores(table, dec_nd, mean, kind, setup.exclude)
    gradient_k = token_weights(rows, s.gradient_tokens, setup.exclude)
    completion_k = token_weights(rows, "completion", setup.exclude)
    return _Measurement(
        sided(scores_rn, rows).difference_pn,
        _unit(-gradient_k @ table.grads_kd),
        _unit(completion_k @ table.acts_kd),
    )


def _unit(vector_d: np.ndarray) -> np.ndarray:
    return vector_d / max(float(np.linalg.norm(vector_d)), 1e-30)


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
