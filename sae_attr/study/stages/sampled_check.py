"""The stage that samples and grades answers under a few latents whose effects are
exact, in one direction: a check of the one by the other.
"""

from __future__ import annotations

from typing import Any

from sae_attr.steering.plan import UNSTEERED
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_judge,
    declared_prompts,
    declared_sampling,
    steered_scope,
)
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.sample_sources import declared_engine
from sae_attr.study.selection import Selection
from sae_attr.study.settings import StudySettings
from sae_attr.study.stages.specificity import best_and_random, steered_conditions
from sae_attr.study.stages.steer import strengths_of
from sae_attr.study.stages.strengths import norm_of

VERSION = 1


def checked_sweep(
    case: Case, direction: str, select: Result, strengths: Result, attribution: Result
) -> CaseSweep:
    """Returns the sweep of the latents that are sampled, and of the unsteered model, on
    the first of the effects' prompts.
    """
    study = case.study
    selection = Selection.load(select.arrays)
    count = study.sampled_latents
    conditions = steered_conditions(
        selection,
        strengths_of(case, direction, strengths),
        best_and_random(selection, count, count),
    )
    return CaseSweep(
        case,
        direction,
        "effects",
        (UNSTEERED, *conditions),
        norm_of(attribution),
        study.sampled_samples,
        most_prompts=study.sampled_prompts,
    )


def check(inputs: StageInputs, progress: Progress) -> Computed:
    """Samples and grades; excluded answers are sampled again under the same condition."""
    case, direction = inputs.case, inputs.direction
    # Of several cases one may have no judge.
    if not has_judge(case):
        return {}, {"left_out_since": "the case has no judge"}
    sweep = checked_sweep(
        case, direction, inputs["select"], inputs["strengths"], inputs["attribute"]
    )
    tokens_rn, cost = sweep.sample(progress, f"sampled check, {direction}")
    answers, counts = sweep.grade(tokens_rn, progress)
    return answers.arrays(), {
        "labels": list(answers.labels_r),
        "unread": answers.unread(),
        "counts": counts,
        **cost,
    }


def has_judge(case: Case) -> bool:
    """Returns True if a case names a judge."""
    return case.judge.identity.get("kind") != "none"


def applies(study: StudySettings) -> bool:
    """Returns whether a study has the stage: exact effects, and a judge."""
    judges = [case.judge.get("kind") for case in study.cases]
    if study.effects_by != "exact" or not study.sampled_latents:
        return False
    return any(judge != "none" for judge in judges)


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the answers depend on."""
    study = case.study
    return {
        "prompts": declared_prompts(case, "effects"),
        "limit": min(study.sampled_prompts, study.effect_prompts),
        "latents": study.sampled_latents,
        "samples": study.sampled_samples,
        "sampling": declared_sampling(case),
        "judge": declared_judge(case),
        "attempts": study.sampling.attempts,
        **steered_scope(case),
        **declared_engine(case.study),
    }


STAGE = CaseStage(
    "sampled_check",
    check,
    fields,
    needs=("select", "strengths", "attribute"),
    version=VERSION,
    directed=True,
    applies=applies,
)
