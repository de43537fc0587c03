"""The stages of a study of crosscoders: training on a fine-tune and the model before it,
what their latents are, and what steering with them does beside random latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sae_attr.analyses.crosscoder_data import study_rows
from sae_attr.analyses.crosscoder_measures import measured, trained_dictionary
from sae_attr.analyses.crosscoder_settings import (
    DICTIONARIES,
    DIFFERENCE,
    CrosscoderCase,
)
from sae_attr.analyses.organism_case import behind_organism
from sae_attr.analyses.planted_models import planted_rows
from sae_attr.attribution.presets import decoder_rows
from sae_attr.organism.exact import prompt_paths
from sae_attr.organism.ground_truth import steering_ground_truth
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.case_stage import plain
from sae_attr.study.score_ground_truth import evaluation_stages
from sae_attr.study.stages import mean_activation

VERSIONS: Mapping[str, int] = {"dictionaries": 1, "steering": 1, "planted": 1}
TRAINING, STEERING, PLANTED = "dictionaries", "dictionary_steering", "planted"
RANDOM = "random"
PARTS = ("misaligned", "chat", "sae", "corpus")

Results = Mapping[str, Result]


def crosscoder_stages(cases: Sequence[CrosscoderCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism, and the test
    on planted data.
    """
    stages: dict[str, Stage] = {}
    for case in cases:
        of_case = [_training(case), _steering(case)]
        available = evaluation_stages([case.evaluation])
        for stage in behind_organism(of_case, available):
            stages.setdefault(stage.name, stage)
    if cases and cases[0].settings.planted.steps:
        planted = _planted(cases[0])
        stages[planted.name] = planted
    return list(stages.values())


def _planted(case: CrosscoderCase) -> Stage:
    s = case.settings
    seed = case.evaluation.recipe.seed

    def run(results: Results, progress: Progress) -> Computed:
        return {}, {"rows": planted_rows(s.planted, s.specificity, seed)}

    fields: dict[str, Any] = {
        "planted": plain(s.planted),
        "specificity": plain(s.specificity),
        "seed": seed,
    }
    return Stage(PLANTED, run, fields, (), VERSIONS["planted"])


# ---- training ------------------------------------------------------------------------


def _training(case: CrosscoderCase) -> Stage:
    """Trains the three dictionaries: arrays `<dictionary>.<measurement>_n` and
    `<dictionary>.rows_nd`, unit rows of the fine-tuned model; their numbers in
    `meta`.
    """
    s, e = case.settings, case.evaluation

    def run(results: Results, progress: Progress) -> Computed:
        train, held_out = study_rows(case)
        arrays: dict[str, Any] = {}
        meta: dict[str, Any] = {"tokens": len(train.tokens_kmd)}
        for name in DICTIONARIES:
            sae = trained_dictionary(case, name, train.tokens_kmd)
            arrays_of, numbers = measured(case, name, sae, train, held_out)
            arrays |= {f"{name}.{key}": value for key, value in arrays_of.items()}
            meta[name] = numbers
        return arrays, meta

    names = ("documents", "latents", "k", "sparsity", "steps", "batch", "lr")
    fields = {name: getattr(s, name) for name in (*names, "held_out", "patched")}
    needs = tuple(e.organism.stages[part] for part in PARTS)
    name = case.stage_name(TRAINING)
    return Stage(name, run, fields, needs, VERSIONS["dictionaries"])


# ---- steering ------------------------------------------------------------------------


def steered_latents(arrays: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """Returns the latents of a dictionary that are steered with: of a crosscoder the
    largest Δ_norm that fired, of the difference the largest mean code.
    """
    if name == DIFFERENCE:
        score_n = np.asarray(arrays[f"{name}.code_n"])
    else:
        fired_n = np.asarray(arrays[f"{name}.active_n"]) > 0
        norm_n = np.nan_to_num(np.asarray(arrays[f"{name}.norm_n"]))
        score_n = np.where(fired_n, norm_n, -1)
    return np.argsort(-score_n, kind="stable")[:count]


def _steering(case: CrosscoderCase) -> Stage:
    """Steers with the latents of every dictionary and with random latents of the
    organism's SAE, away on the fine-tune and toward on the model before it: arrays
    `<method>.latents_k`, `<method>.away_k`, `<method>.toward_k`.
    """
    s, e = case.settings, case.evaluation
    trained, mean_name = case.stage_name(TRAINING), case.stage_name("mean_activation")

    def run(results: Results, progress: Progress) -> Computed:
        arrays = results[trained].arrays
        latents, rows = {}, {}
        for name in DICTIONARIES:
            latents[name] = steered_latents(arrays, name, s.top)
            rows[name] = np.asarray(arrays[f"{name}.rows_nd"])[latents[name]]
        n = len(e.setup.decoder)
        draw = np.random.default_rng(e.recipe.seed)
        latents[RANDOM] = np.sort(draw.choice(n, min(s.random, n), replace=False))
        rows[RANDOM] = np.asarray(decoder_rows(e.setup.decoder, latents[RANDOM]))
        norm = mean_activation.mean_of(results[mean_name]).norm
        away, toward, meta = _effects(case, np.concatenate(list(rows.values())), norm)
        out, start = {}, 0
        for name, latents_k in latents.items():
            stop = start + len(latents_k)
            out[f"{name}.latents_k"] = latents_k
            out[f"{name}.away_k"] = away[start:stop]
            out[f"{name}.toward_k"] = toward[start:stop]
            start = stop
        return out, meta

    names = ("top", "random", "budget", "strength_prompts", "effect_prompts")
    fields = {name: getattr(s, name) for name in names} | {"grid": list(s.grid)}
    needs = (trained, mean_name, *(e.organism.stages[part] for part in PARTS))
    name = case.stage_name(STEERING)
    return Stage(name, run, fields, needs, VERSIONS["steering"])


def _effects(
    case: CrosscoderCase, rows_kd: np.ndarray, norm: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Returns the fall of the rate steering away, its rise steering toward, `[k]`, and
    the rates without steering.
    """
    s, e = case.settings, case.evaluation
    world = e.organism.world
    strengths = e.deciding_prompts("strengths", s.strength_prompts)
    effects = e.deciding_prompts("effects", s.effect_prompts)
    steer = partial(
        steering_ground_truth,
        strength_prompts=prompt_paths(world, e.behaviour, strengths),
        effect_prompts=prompt_paths(world, e.behaviour, effects),
        dec_nd=rows_kd,
        norm=norm,
        cfg=e.setup.cfg,
        site=e.setup.site,
        grid=tuple(s.grid),
        budget=s.budget,
    )
    away = steer(e.setup.params, sign=-1)
    toward = steer(e.params_before, sign=1)
    meta = {"base_away": away.base, "base_toward": toward.base}
    return away.effect_n, toward.effect_n, meta
