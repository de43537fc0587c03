"""The stages of a pool of selectors on model organisms: pairs and scores, rollouts of
every task, the pool, and what its latents do when they are steered and read; of the
task even_number also its controls (`number_controls`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sae_attr.analyses.monitoring import Rollouts, completion_means, cosine_auc
from sae_attr.analyses.organism_case import behind_organism
from sae_attr.analyses.pool_settings import PoolCase, Task, task_prompts
from sae_attr.analyses.selector_pool import (
    ATTRIBUTION,
    FREQUENCY,
    GRADIENT,
    MODEL_DIFFERENCE,
    PoolLatent,
    random_latents,
    selector_pool,
    with_planted,
)
from sae_attr.attribution.directions import gradient_vector
from sae_attr.attribution.evidence import Skipped
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.score_registry import key_of
from sae_attr.attribution.selectors import frequency_difference
from sae_attr.lm.weights import load_lm
from sae_attr.organism.exact import STUDIED, prompt_paths
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.ground_truth import both_ways
from sae_attr.organism.number_model import carried_latent
from sae_attr.organism.pair_sampling import graded_answers, sampled_answers
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.tokens import BOS_ID
from sae_attr.organism.world import word_ids
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.ground_truth_stages import context_of
from sae_attr.study.score_ground_truth import evaluation_stages
from sae_attr.study.stages import evidence, mean_activation
from sae_attr.study.stages.context import Inputs
from sae_attr.text.pairing import Answer

# A stage's number is raised when its code gives other numbers than before.
VERSIONS: Mapping[str, int] = {
    "rollouts": 1,
    "pool": 1,
    "steering": 1,
    "monitoring": 1,
}
VECTOR = -1  # in the place of a latent: the contrastive gradient vector

Results = Mapping[str, Result]


def pool_stages(cases: Sequence[PoolCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism."""
    stages: dict[str, Stage] = {}
    for case in cases:
        e = case.evaluation
        of_pool = [_pool(case), _steering(case), _monitoring(case)]
        tasks = [_rollouts(case, task) for task in case.tasks]
        for stage in behind_organism([*tasks, *of_pool], evaluation_stages([e])):
            stages.setdefault(stage.name, stage)
    return list(stages.values())


# ---- rollouts ------------------------------------------------------------------------


def _rollouts(case: PoolCase, task: Task) -> Stage:
    """Unsteered rollouts of a task that can be graded: arrays `mean_rd`, `behaviour_r`
    and `length_r`, tokens of their answers; their number in `meta`.
    """
    s, e = case.settings, case.evaluation
    part = STUDIED[task.behaviour]

    def run(results: Results, progress: Progress) -> Computed:
        cfg, params = load_lm(getattr(e.organism, part), mesh=e.mesh)
        world = e.organism.world
        task_set = task_prompts(world, task, s.task_prompts)
        texts = sampled_answers(
            params, task_set, cfg=cfg, samples=s.task_samples, seed=e.recipe.seed
        )
        graded = graded_answers(world, task_set, task.behaviour, texts)
        rows, n_prompts, shows = _graded_rows(task_set, graded)
        mean_rd = np.zeros((0, cfg.d_model), np.float32)
        if rows:
            site = e.recipe.site
            mean_rd = completion_means(params, rows, n_prompts, cfg=cfg, site=site)
        arrays = {"mean_rd": mean_rd, "behaviour_r": np.array(shows, bool)}
        lengths = [len(row) - n for row, n in zip(rows, n_prompts, strict=True)]
        arrays["length_r"] = np.array(lengths, np.int32)
        return arrays, {"asked": len(task_set), "graded": len(rows)}

    fields = {
        "task": list(task),
        "prompts": s.task_prompts,
        "samples": s.task_samples,
        "layer": e.recipe.sae.layer,
    }
    needs = (e.organism.stages[part],)
    return Stage(case.task_stage(task), run, fields, needs, VERSIONS["rollouts"])


def _graded_rows(
    prompts: Sequence[WorldPrompt], graded: Sequence[Sequence[Answer]]
) -> tuple[list[list[int]], list[int], list[bool]]:
    """Returns the token rows of all answers that have a grade, tokens of their prompts,
    and whether they show the behaviour.
    """
    index = word_ids()
    rows, n_prompts, shows = [], [], []
    for prompt, answers in zip(prompts, graded, strict=True):
        prompt_words = prompt.text.split()
        for answer in answers:
            if not np.isnan(answer.behaviour):
                words = [*prompt_words, *answer.text.split()]
                rows.append([BOS_ID, *(index[word] for word in words)])
                n_prompts.append(1 + len(prompt_words))
                shows.append(answer.behaviour > 0)
    return rows, n_prompts, shows


def rollouts_of(result: Result) -> Rollouts:
    """Reads the rollouts from the result of a task's stage."""
    arrays = result.arrays
    return Rollouts(
        np.asarray(arrays["mean_rd"]), np.asarray(arrays["behaviour_r"], bool)
    )


# ---- the pool ------------------------------------------------------------------------


def _pool(case: PoolCase) -> Stage:
    """The pool and its controls in `meta["pool"]`, what was left out in
    `meta["skipped"]`; array `vector_d`, the contrastive gradient vector.
    """
    s, e = case.settings, case.evaluation
    scope = s.attribution[1]

    def run(inputs: Inputs, progress: Progress) -> Computed:
        measured = evidence.evidence_of(e.setup, inputs)
        computed = inputs[f"scores.{scope}"]
        vector_d = gradient_vector(measured, s.gradient_tokens)
        n = len(e.setup.decoder)
        dec_nd = np.asarray(decoder_rows(e.setup.decoder, np.arange(n)))
        scores = {
            GRADIENT: dec_nd @ vector_d,
            FREQUENCY: frequency_difference(measured),
            ATTRIBUTION: stored_score(computed, key_of(*s.attribution)),
            MODEL_DIFFERENCE: stored_score(computed, "delta_activation"),
        }
        pool, skipped = selector_pool(scores, s.counts)
        if e.behaviour == EVEN_NUMBER:
            pool = with_planted(pool, carried_latent(e.setup.params, dec_nd))
        latents = [*pool, *random_latents(n, s.random, pool, e.recipe.seed)]
        meta = {"pool": [asdict(latent) for latent in latents], "skipped": skipped}
        return {"vector_d": vector_d}, meta

    fields = {
        "counts": s.counts,
        "attribution": list(s.attribution),
        "gradient_tokens": s.gradient_tokens,
        "random": s.random,
        "seed": e.recipe.seed,
    }
    return context_of(e).stage(
        "pool",
        run,
        version=VERSIONS["pool"],
        fields=fields,
        needs=(*evidence.NEEDS, f"scores.{scope}"),
        files=("lm", "sae"),
        pairs=True,
    )


def stored_score(scores: Result, key: str) -> np.ndarray | Skipped:
    """Reads a score of every latent from the result of a stage `scores`, or why it is
    left out.
    """
    if key in scores.arrays:
        return np.asarray(scores.arrays[key])
    return Skipped(scores.meta["skipped"].get(key, f"no score is called {key}"))


def pool_of(result: Result) -> list[PoolLatent]:
    """Reads the latents of a pool and their controls."""
    pool = []
    for row in result.meta["pool"]:
        pool.append(PoolLatent(row["latent"], tuple(row["origins"]), row["sign"]))
    return pool


def directions_of(e: Evaluation, result: Result) -> np.ndarray:
    """Returns what is steered and read, unit rows `[1 + k, d]`: the contrastive gradient
    vector, and behind it the pool's decoder rows with their signs.
    """
    pool = pool_of(result)
    latents = np.array([latent.latent for latent in pool])
    sign_k = np.array([latent.sign for latent in pool], np.float32)
    dec_kd = np.asarray(decoder_rows(e.setup.decoder, latents)) * sign_k[:, None]
    return np.concatenate([np.asarray(result.arrays["vector_d"])[None], dec_kd])


# ---- what the pool does --------------------------------------------------------------


def _steering(case: PoolCase) -> Stage:
    """Steering diffing of the vector and every latent: arrays `along_k` (rise of the
    rate at +s) and `against_k` (fall at -s), and the strengths; `meta["base"]`.
    """
    s, e = case.settings, case.evaluation
    pool_name, mean_name = case.stage_name("pool"), case.stage_name("mean_activation")

    def run(results: Results, progress: Progress) -> Computed:
        dec_kd = directions_of(e, results[pool_name])
        norm = mean_activation.mean_of(results[mean_name]).norm
        strengths = e.deciding_prompts("strengths", s.strength_prompts)
        effects = e.deciding_prompts("effects", s.effect_prompts)
        world = e.organism.world
        truths = both_ways(
            e.setup.params,
            prompt_paths(world, e.behaviour, strengths),
            prompt_paths(world, e.behaviour, effects),
            dec_kd,
            norm,
            cfg=e.setup.cfg,
            site=e.setup.site,
            grid=tuple(s.grid),
            budget=s.budget,
        )
        arrays, meta = {}, {}
        for name, truth in truths.items():
            arrays[f"{name}_k"] = truth.effect_n
            arrays[f"{name}_strength_k"] = truth.strength_n
            meta["base"] = truth.base
        return arrays, meta

    fields = {
        "grid": list(s.grid),
        "budget": s.budget,
        "strength_prompts": s.strength_prompts,
        "effect_prompts": s.effect_prompts,
    }
    parts = (STUDIED[e.behaviour], "sae")
    needs = (pool_name, mean_name, *(e.organism.stages[part] for part in parts))
    name, version = case.stage_name("pool_steering"), VERSIONS["steering"]
    return Stage(name, run, fields, needs, version)


def _monitoring(case: PoolCase) -> Stage:
    """Monitoring AUC of the vector and every latent on every task: arrays
    `<task>` `[1 + k]`; tasks that cannot be monitored in `meta["skipped"]`, numbers of
    rollouts and rates in `meta["tasks"]`.
    """
    e, pool_name = case.evaluation, case.stage_name("pool")

    def run(results: Results, progress: Progress) -> Computed:
        dec_kd = directions_of(e, results[pool_name])
        arrays, skipped, facts = {}, {}, {}
        for task in case.tasks:
            rollouts = rollouts_of(results[case.task_stage(task)])
            facts[task.name] = _facts(rollouts)
            if rollouts.one_sided:
                skipped[task.name] = rollouts.one_sided
            else:
                arrays[task.name] = cosine_auc(rollouts, dec_kd)
        return arrays, {"skipped": skipped, "tasks": facts}

    tasks = tuple(case.task_stage(task) for task in case.tasks)
    needs = (pool_name, e.organism.stages["sae"], *tasks)
    name, version = case.stage_name("pool_monitoring"), VERSIONS["monitoring"]
    return Stage(name, run, {}, needs, version)


def _facts(rollouts: Rollouts) -> dict[str, Any]:
    count = len(rollouts.behaviour_r)
    rate = float(rollouts.behaviour_r.mean()) if count else float("nan")
    return {"rollouts": count, "rate": rate}
