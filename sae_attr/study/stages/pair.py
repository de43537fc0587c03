"""The stage that pairs graded completions of one prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from sae_attr.steering.plan import UNSTEERED
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_checks import can_score
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.grading import GradedAnswers
from sae_attr.study.stages.sample import pair_sweep
from sae_attr.text.pairing import first_distinct, pair_records

# 2: what may be in a pair is decided before prompts are chosen.
VERSION = 2


def pair(inputs: StageInputs, progress: Progress) -> Computed:
    """Pairs the answers of prompts that gave both kinds, as records of a pairs file in
    `meta["records"]`.
    """
    case, grades = inputs.case, inputs["grade"]
    plan = pair_sweep(case).plan
    graded = GradedAnswers.load(plan, grades.arrays, grades.meta)
    answers = graded.answers(UNSTEERED, case.text)
    prompt_ids = case.prompt_ids("pairs")
    prompts, by_prompt = [], []
    for prompt in case.prompts("pairs"):
        prompts.append(replace(prompt, prompt_ids=tuple(prompt_ids[prompt.id])))
        by_prompt.append([answers[prompt.id, s] for s in range(plan.samples)])
    records, counts = pair_records(
        prompts,
        by_prompt,
        sampler=case.setup.lm_key,
        limit=case.settings.pairs,
        pick=first_distinct(case.settings.per_side),
        fits=partial(can_score, case),
    )
    return {}, {"records": records, "counts": counts}


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the pairs depend on."""
    return {"limit": case.settings.pairs, "per_side": case.settings.per_side}


STAGE = CaseStage("pair", pair, fields, needs=("grade",), version=VERSION)
