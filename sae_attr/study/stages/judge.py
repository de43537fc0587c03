"""The stage that grades steered and unsteered completions, in one direction."""

from __future__ import annotations

from typing import Any

from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs, declared_judge
from sae_attr.study.stages.steer import effect_sweep

VERSION = 1


def judge(inputs: StageInputs, progress: Progress) -> Computed:
    """Grades completions; excluded ones are sampled again under the same condition."""
    sweep = effect_sweep(
        inputs.case, inputs.direction, inputs["strengths"], inputs["attribute"]
    )
    answers, counts = sweep.grade(inputs["steer"].arrays["tokens_rn"], progress)
    return answers.arrays(), {
        "labels": list(answers.labels_r),
        "unread": answers.unread(),
        "counts": counts,
    }


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the grades depend on."""
    attempts = case.study.sampling.attempts
    return {"judge": declared_judge(case), "attempts": attempts}


STAGE = CaseStage(
    "judge",
    judge,
    fields,
    needs=("select", "strengths", "attribute", "steer"),
    version=VERSION,
    directed=True,
    applies=lambda study: study.effects_by == "samples",
)
