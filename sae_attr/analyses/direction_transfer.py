"""The last stages of a study of directions on organisms: what projecting the directions
of every fine-tune out of every other does, and what each adapter reads and does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_attr.analyses.direction_removals import removal_edits, removals
from sae_attr.analyses.direction_rows import answer_rows, answer_states
from sae_attr.analyses.direction_settings import DirectionCase
from sae_attr.analyses.direction_stages import (
    Results,
    adapter_stage,
    answers_stage,
    directions_stage,
    records_of,
    tune_stage,
    tuned_params,
)
from sae_attr.analyses.organism_case import behind_organism
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import check_lora, merged
from sae_attr.lm.params import Params
from sae_attr.organism.build import organism_stages
from sae_attr.organism.exact import PromptPaths, exact_rates, prompt_paths
from sae_attr.organism.world import DOMAIN_OF
from sae_attr.store import Computed, Progress, Stage
from sae_attr.text.batching import batches


def transfer_stage(case: DirectionCase, tune: str) -> Stage:
    """Rates of a fine-tune under every one of `removals`: arrays `behaviour_cp`, `coherence_cp` and
    `domain_p`; prompts in `meta`.
    """
    s = case.settings
    adapter_name = case.stage_name(tune, "adapter")
    names = [case.stage_name(other, "directions") for other in s.tunes]

    def run(results: Results, progress: Progress) -> Computed:
        params = merged(tuned_params(case, results[adapter_name]))
        records = records_of(case, results)
        conditions = removals(records, s.removed, s.draws)
        edits = removal_edits(
            conditions, records, tune, case.sites, to=s.project_to, seed=case.seed
        )
        paths, facts = _effect_paths(case, tune)
        rates = partial(exact_rates, cfg=case.setup.cfg, rows=len(conditions))
        run_rates = jax.jit(rates)
        behaviour_cp, coherence_cp = run_rates(params, paths, edits)
        arrays = {
            "behaviour_cp": np.asarray(behaviour_cp),
            "coherence_cp": np.asarray(coherence_cp),
            "domain_p": facts["domain_p"],
        }
        return arrays, {"prompts": facts["prompts"]}

    fields = {
        "prompts": s.effect_prompts,
        "removed": list(s.removed),
        "tunes": list(s.tunes),
        "average": s.average,
        "project_to": s.project_to,
        "draws": s.draws,
    }
    return tune_stage(case, tune, "transfer", run, fields, [adapter_name, *names])


def _effect_paths(case: DirectionCase, tune: str) -> tuple[PromptPaths, dict[str, Any]]:
    """Returns the laid-out prompts that rates are measured on, their ids and domains."""
    effects = case.prompts(tune, "effects", case.settings.effect_prompts)
    paths = prompt_paths(case.organism.world, case.tune(tune).behaviour, effects)
    domains = np.array([DOMAIN_OF[prompt.question.topic] for prompt in effects])
    ids = [prompt.id for prompt in effects]
    return paths, {"prompts": ids, "domain_p": domains}


# ---- adapters ------------------------------------------------------------------------


def adapters_stage(case: DirectionCase, tune: str) -> Stage:
    """Returns the stage of what every adapter of a fine-tune reads and does: arrays
    `<matrix>.state_lr` over its answers, and rates `behaviour_cp`, `coherence_cp` with
    all adapters, without any, without each one and with each one alone, in the order of
    `adapter_conditions`.
    """
    adapter_name = case.stage_name(tune, "adapter")
    answers_name = case.stage_name(tune, "answers")

    def run(results: Results, progress: Progress) -> Computed:
        params = tuned_params(case, results[adapter_name])
        rows = answer_rows(results[answers_name].arrays)
        states = answer_states(
            params,
            batches(rows, batch_size=case.settings.batch_size),
            len(rows),
            cfg=case.setup.cfg,
            layers=adapted_layers(case.setup.cfg, case),
        )
        arrays = {f"{name}.state_lr": state for name, state in states.items()}
        paths, facts = _effect_paths(case, tune)
        rates = jax.jit(partial(exact_rates, edits={}, cfg=case.setup.cfg))
        behaviour, coherence = [], []
        for condition in adapter_conditions(case):
            of_condition = rates(merged(with_adapters(params, condition)), paths)
            behaviour.append(np.asarray(of_condition[0])[0])
            coherence.append(np.asarray(of_condition[1])[0])
        arrays |= {
            "behaviour_cp": np.stack(behaviour),
            "coherence_cp": np.stack(coherence),
            "domain_p": facts["domain_p"],
        }
        return arrays, {"prompts": facts["prompts"]}

    fields = {"prompts": case.settings.effect_prompts}
    return tune_stage(case, tune, "adapters", run, fields, [adapter_name, answers_name])


def adapted_layers(cfg: LMConfig, case: DirectionCase) -> tuple[int, ...]:
    """Returns the layers that have adapters."""
    return check_lora(cfg, case.settings.adapter)


def adapter_places(case: DirectionCase) -> list[tuple[str, int]]:
    """Returns matrix and layer of every adapter, layer by layer."""
    layers = adapted_layers(case.setup.cfg, case)
    return [(name, layer) for layer in layers for name in case.settings.adapter.targets]


def adapter_conditions(case: DirectionCase) -> list[frozenset[tuple[str, int]]]:
    """Returns which adapters act in each condition: all, none, all but each one, each
    one alone.
    """
    places = adapter_places(case)
    every = frozenset(places)
    without = [every - {place} for place in places]
    alone = [frozenset({place}) for place in places]
    return [every, frozenset(), *without, *alone]


def with_adapters(params: Params, places: frozenset[tuple[str, int]]) -> Params:
    """Returns a model in which only some adapters act."""
    kept: Params = {}
    for name, leaf in params["lora"].items():
        acts_l = np.zeros(len(leaf["b"]), np.float32)
        for matrix, layer in places:
            if matrix == name:
                acts_l[layer] = 1
        kept[name] = {"a": leaf["a"], "b": leaf["b"] * acts_l[:, None, None]}
    return {**params, "lora": kept}


# ---- the graph -----------------------------------------------------------------------

MAKERS = (
    adapter_stage,
    answers_stage,
    directions_stage,
    transfer_stage,
    adapters_stage,
)


def direction_stages(cases: Sequence[DirectionCase]) -> list[Stage]:
    """Returns the stages of all cases, each behind those of its organism."""
    stages: list[Stage] = []
    for case in cases:
        of_tunes: list[Stage] = []
        for make in MAKERS:
            of_tunes += [make(case, tune) for tune in case.settings.tunes]
        available = organism_stages(
            case.recipe, mesh=case.mesh, prefix=case.organism_prefix
        )
        stages += behind_organism(of_tunes, available)
    return stages
