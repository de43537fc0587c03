"""The stage that measures the models without steering by exact probabilities, on every
set of a case's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae_attr.comparison_records import Direction
from sae_attr.hooks import Add
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_exact,
    declared_prompts,
)
from sae_attr.study.exact_rates import exact_rates
from sae_attr.study.prompts import SPLITS
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages.sample import declared_source, file_stages
from sae_attr.text.pairs import Prompt

VERSION = 1


def models_of(case: Case) -> Sequence[Direction]:
    """Returns the directions whose models are two: both, or away where a case has one
    model.
    """
    return DIRECTIONS if case.files.lm_aligned else DIRECTIONS[:1]


def prompts_of(case: Case, names: Sequence[str]) -> list[Prompt]:
    """Returns the prompts of several sets, one set after another."""
    prompts: list[Prompt] = []
    for name in names:
        prompts += case.prompts(name)
    return prompts


def measure(inputs: StageInputs, progress: Progress) -> Computed:
    """Measures the rate of the behaviour on every prompt of every set: array
    `<direction>.rate_p`, of the prompts `meta["prompts"][direction]`.
    """
    case = inputs.case
    prompts = prompts_of(case, (*SPLITS, *case.settings.probes))
    width = case.setup.cfg.width(case.setup.site.point)
    nothing = Add(jnp.zeros((1, width)), jnp.zeros(1))
    arrays, measured, left_out, rows = {}, {}, set(), 0
    for direction in models_of(case):
        rates = exact_rates(
            case,
            direction,
            prompts,
            nothing,
            progress,
            name=f"unsteered, {direction}",
        )
        arrays[f"{direction}.rate_p"] = rates.behaviour_kp[0]
        measured[direction] = list(rates.prompts)
        left_out |= set(rates.facts.get("left_out", ()))
        rows += rates.rows
    return arrays, {
        "prompts": measured,
        "left_out": sorted(left_out),
        "exact_rows": rows,
    }


def rates_by_id(result: Result, direction: str) -> dict[str, float]:
    """Returns prompt's id -> rate, of the prompts that were measured."""
    rate_p = np.asarray(result.arrays[f"{direction}.rate_p"]).tolist()
    return dict(zip(result.meta["prompts"][direction], rate_p, strict=True))


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the rates depend on."""
    sets = {}
    for name in (*SPLITS, *case.settings.probes):
        ids = declared_prompts(case, name)
        sets[name] = [len(case.prompts(name)), ids, declared_exact(case, name)]
    return {**declared_source(case), "sets": sets}


STAGE = CaseStage(
    "unsteered",
    measure,
    fields,
    also_needs=file_stages,
    version=VERSION,
    applies=lambda study: study.effects_by == "exact",
)
