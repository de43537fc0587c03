"""The stage that pairs completions of one prompt: graded ones, or the texts for and
against the behaviour.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from sae_attr.steering.plan import UNSTEERED
from sae_attr.store import Computed, Progress
from sae_attr.study import continuations
from sae_attr.study.case import Case
from sae_attr.study.case_checks import can_score
from sae_attr.study.case_stage import CaseStage, StageInputs, declared_exact
from sae_attr.study.exact_rates import unsteered_state
from sae_attr.study.grading import GradedAnswers
from sae_attr.study.stages.sample import declared_source, pair_sweep
from sae_attr.text.held_out import hold_out
from sae_attr.text.pairing import first_distinct, pair_records

TEXTS = "texts of the settings"  # stands for the model that sampled a completion
# 2: what may be in a pair is decided before prompts are chosen.
VERSION = 2


def pair(inputs: StageInputs, progress: Progress) -> Computed:
    """Pairs completions of either kind of one prompt, as records of a pairs file in
    `meta["records"]`, and those that are held out for a screen in `meta["held_out"]`.
    """
    if inputs.case.study.pairs_by == "continuations":
        records, meta = pair_texts(inputs.case)
    else:
        records, meta = pair_answers(inputs)
    return {}, {**_split(inputs.case, records), **meta}


def _split(case: Case, records: list[Any]) -> dict[str, Any]:
    """Returns the records that rank, and those that are held out for the screen."""
    held = {}
    if case.study.screen:
        count, groups = case.study.screen_pairs, _groups(case)
        records, held["held_out"] = hold_out(records, groups, count)
    return {"records": records[: case.settings.pairs], **held}


def _groups(case: Case) -> dict[str, str]:
    """Returns the groups of the prompts that have one."""
    groups = {}
    for prompt in case.prompts("pairs"):
        if prompt.group is not None:
            groups[prompt.id] = prompt.group
    return groups


def _limit(case: Case) -> int:
    """Returns how many prompts are paired: all, where some are held out."""
    return len(case.prompts("pairs")) if case.study.screen else case.settings.pairs


def pair_answers(inputs: StageInputs) -> tuple[list[Any], dict[str, Any]]:
    """Pairs the graded answers of prompts that gave both kinds."""
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
        limit=_limit(case),
        pick=first_distinct(case.settings.per_side),
        fits=partial(can_score, case),
    )
    return records, {"counts": counts}


def pair_texts(case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Pairs the texts for and against the behaviour of every prompt whose texts have
    enough probability, the likeliest of either side.
    """
    prompts = case.prompts("pairs")
    exact = continuations.exact_prompts(case, prompts)
    state = unsteered_state(case, "away", prompts)
    measured, by_prompt = [], []
    answers = exact.answers(state.arrays)
    for prompt, ids, of_prompt, enough in zip(
        prompts, exact.prompt_ids, answers, state.measured_p, strict=True
    ):
        if enough:
            measured.append(replace(prompt, prompt_ids=ids))
            by_prompt.append(of_prompt)
    records, counts = pair_records(
        measured,
        by_prompt,
        sampler=TEXTS,
        limit=_limit(case),
        pick=first_distinct(case.settings.per_side),
        fits=partial(can_score, case),
    )
    return records, {"counts": counts, **state.facts}


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the pairs depend on."""
    declared: dict[str, Any] = {
        "limit": case.settings.pairs,
        "per_side": case.settings.per_side,
    }
    if case.study.screen:
        declared["held_out"] = [case.study.screen_pairs, _groups(case)]
    if case.study.pairs_by == "samples":
        return declared
    return {
        **declared,
        "source": declared_source(case),
        **declared_exact(case, "pairs"),
    }


STAGE = CaseStage("pair", pair, fields, needs=("grade",), version=VERSION)
