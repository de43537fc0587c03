"""The stage that samples completions of steered and unsteered models, in one
direction.
"""

from __future__ import annotations

from typing import Any

from sae_attr.steering.coherence import CoherenceLimits
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_prompts,
    declared_sampling,
    steered_scope,
)
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.coherence_fallback import measures_coherence
from sae_attr.study.sample_sources import declared_engine
from sae_attr.study.stages.strengths import norm_of
from sae_attr.study.sweep_conditions import SideStrengths

VERSION = 1


def strengths_of(case: Case, direction: str, strengths: Result) -> SideStrengths:
    """Returns the strengths that were chosen in a direction."""
    return SideStrengths.load(strengths.arrays, direction, case.study.steer_tokens)


def effect_sweep(
    case: Case, direction: str, strengths: Result, attribution: Result
) -> CaseSweep:
    """Returns the sweep of every side at its strength, and of the unsteered model, on
    the effects' prompts.
    """
    limits = None
    if measures_coherence(case):
        limits = CoherenceLimits(**strengths.meta["own_answers"])
    return CaseSweep(
        case,
        direction,
        "effects",
        strengths_of(case, direction, strengths).conditions(),
        norm_of(attribution),
        case.study.effect_samples,
        limits,
    )


def steer(inputs: StageInputs, progress: Progress) -> Computed:
    """Samples `effect_samples` completions of every condition and prompt."""
    sweep = effect_sweep(
        inputs.case, inputs.direction, inputs["strengths"], inputs["attribute"]
    )
    tokens_rn, counts = sweep.sample(progress, f"steer {inputs.direction}")
    return {"tokens_rn": tokens_rn}, {"conditions": len(sweep.conditions), **counts}


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the completions depend on."""
    study = case.study
    return {
        "prompts": declared_prompts(case, "effects"),
        "limit": study.effect_prompts,
        "gradient_signed": study.gradient_signed,
        **steered_scope(case),
        "samples": study.effect_samples,
        "sampling": declared_sampling(case),
        **declared_engine(case.study),
    }


STAGE = CaseStage(
    "steer",
    steer,
    fields,
    needs=("select", "strengths", "attribute"),
    version=VERSION,
    directed=True,
    applies=lambda study: study.effects_by == "samples",
)
