"""The stage that grades the completions for pairs; excluded ones are sampled again."""

from __future__ import annotations

from typing import Any

from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs, declared_judge
from sae_attr.study.grading import mean_of_known
from sae_attr.study.stages.sample import pair_sweep

VERSION = 1


def grade(inputs: StageInputs, progress: Progress) -> Computed:
    """Grades completions: arrays of `GradedAnswers`, with labels and counts."""
    case = inputs.case
    tokens_rn = inputs["sample"].arrays["tokens_rn"]
    answers, counts = pair_sweep(case).grade(tokens_rn, progress)
    return answers.arrays(), {
        "labels": list(answers.labels_r),
        "unread": answers.unread(),
        "counts": counts,
        "judge": declared_judge(case),
        "rate": mean_of_known(answers.behaviour_r),
        "incoherent": 1 - mean_of_known(answers.coherent_r),
    }


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the grades depend on."""
    attempts = case.study.sampling.attempts
    return {"judge": declared_judge(case), "attempts": attempts}


STAGE = CaseStage(
    "grade",
    grade,
    fields,
    needs=("sample",),
    version=VERSION,
    applies=lambda study: study.pairs_by == "samples",
)
