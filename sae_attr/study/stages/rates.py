"""The stage that measures steered and unsteered models by exact probabilities, in one
direction; it stands in place of sampling and grading.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_exact,
    declared_prompts,
    steered_scope,
)
from sae_attr.study.exact_rates import ExactRates
from sae_attr.study.stages.steer import effect_sweep

VERSION = 1


def measure(inputs: StageInputs, progress: Progress) -> Computed:
    """Measures behaviour and coherence of every side at its strength, and of the
    unsteered model, on the effects' prompts: arrays `[conditions, prompts]`.
    """
    sweep = effect_sweep(
        inputs.case, inputs.direction, inputs["strengths"], inputs["attribute"]
    )
    rates = sweep.exact_rates(progress, f"rates, {inputs.direction}")
    arrays = {"behaviour_kp": rates.behaviour_kp, "coherence_kp": rates.coherence_kp}
    return arrays, {
        "prompts": list(rates.prompts),
        "exact_rows": rates.rows,
        **rates.facts,
    }


def rates_of(result: Result) -> ExactRates:
    """Returns the rates that the stage stored."""
    return ExactRates(
        tuple(result.meta["prompts"]),
        np.asarray(result.arrays["behaviour_kp"]),
        np.asarray(result.arrays["coherence_kp"]),
        result.meta,
    )


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the rates depend on."""
    return {
        "prompts": declared_prompts(case, "effects"),
        "limit": case.study.effect_prompts,
        "gradient_signed": case.study.gradient_signed,
        **steered_scope(case),
        **declared_exact(case, "effects"),
    }


STAGE = CaseStage(
    "rates",
    measure,
    fields,
    needs=("select", "strengths", "attribute"),
    version=VERSION,
    directed=True,
    applies=lambda study: study.effects_by == "exact",
)
