"""The check of exact effects by sampled answers, as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_attr.comparison_records import Direction, SampledAgreement
from sae_attr.report.page.probe_records import SampledCheck
from sae_attr.report.specificity_sentences import agreement_sentence
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import Paired, paired, weighted_mean
from sae_attr.steering.plan import UNSTEERED
from sae_attr.steering.sampled_agreement import (
    binomial_errors,
    exact_changes,
    sampled_agreement,
)
from sae_attr.study.case_results import CaseResults
from sae_attr.study.grading import GradedAnswers
from sae_attr.study.probe_results import group_of
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages.effects import effect_settings
from sae_attr.study.stages.sampled_check import checked_sweep, has_judge
from sae_attr.study.stages.specificity import best_and_random


def sampled_check(results: CaseResults) -> SampledCheck | None:
    """Returns the section on sampled answers; None where effects are sampled anyway, or
    these answers not yet.
    """
    case = results.case
    if case.study.effects_by != "exact":
        return None
    if not has_judge(case) or not case.study.sampled_latents:
        why = "the case has no judge"
        if has_judge(case):
            why = "sampled_latents is 0"
        return SampledCheck(
            sentences=(f"Exact effects were not checked by sampled answers: {why}.",)
        )
    if not results.has("sampled_check"):
        return None
    panels, agreements, answers, sentences = [], [], {}, []
    for direction in DIRECTIONS:
        agreement, rows = _compared(results, direction)
        counts = answer_counts(results, direction)
        agreements.append(agreement)
        answers[direction] = counts
        sentences.append(agreement_sentence(agreement))
        sentences.append(_counts_sentence(direction, counts))
        panel = {
            "direction": direction,
            "pearson": agreement.pearson.value,
            "spearman": agreement.spearman.value,
            "points": rows,
        }
        panels.append(panel)
    return SampledCheck(
        {"panels": panels}, tuple(agreements), answers, tuple(sentences)
    )


def answer_counts(results: CaseResults, direction: str) -> dict[str, int]:
    """Returns how many answers were sampled, how often the judge left one undecided and
    it was sampled again, and how many stayed without a grade.
    """
    result = results.of[f"sampled_check.{direction}"]
    counts = result.meta["counts"]
    return {
        "answers": len(result.arrays["behaviour_r"]),
        "undecided": counts["resampled"],
        "missing": counts["missing"],
        "malformed": counts["malformed"],
    }


def _counts_sentence(direction: str, counts: dict[str, int]) -> str:
    """Returns how many answers stand behind a comparison."""
    answers, missing = counts["answers"], counts["missing"]
    text = (
        f"Steering {direction}, {answers} answers were sampled and graded; "
        f"{counts['undecided']} undecided ones were sampled again, and {missing} "
        f"({100 * missing / max(answers, 1):.0f} %) stayed without a grade"
    )
    if counts["malformed"]:
        text += f"; {counts['malformed']} replies of the judge could not be read"
    return f"{text}."


def _compared(
    results: CaseResults, direction: Direction
) -> tuple[SampledAgreement, list[dict[str, Any]]]:
    """Returns the agreement in one direction, and the two changes of every latent."""
    case, of = results.case, results.of
    strengths = of[f"strengths.{direction}"]
    sampled = of[f"sampled_check.{direction}"]
    sweep = checked_sweep(case, direction, of["select"], strengths, of["attribute"])
    behaviour = GradedAnswers.load(sweep.plan, sampled.arrays, sampled.meta).behaviour()
    measured, exact = results.exact(direction)
    # A prompt whose texts have too little probability has no exact rate.
    column = {name: place for place, name in enumerate(measured)}
    prompts = [name for name in sweep.plan.prompts if name in column]
    columns = [column[name] for name in prompts]
    rows = [sweep.plan.prompts.index(name) for name in prompts]
    conditions = [c for c in sweep.conditions if c != UNSTEERED]
    shape = (len(conditions), len(prompts), sweep.samples)
    graded_kps = np.empty(shape)
    rate_kp = np.empty(shape[:2])
    for k, condition in enumerate(conditions):
        graded_kps[k] = behaviour[condition][rows]
        rate_kp[k] = exact[condition][columns]
    base_p = exact[UNSTEERED][columns]
    settings = effect_settings(case.study)
    pairs = paired(graded_kps, behaviour[UNSTEERED][rows], settings=settings)
    by_id = case.prompts_by_id("effects")
    group_p = group_numbers([group_of(by_id[name]) for name in prompts])
    agreement = sampled_agreement(
        direction, rate_kp, base_p, pairs, group_p, settings=settings
    )
    latents = [condition.latent for condition in conditions]
    return agreement, _points(results, latents, rate_kp, base_p, pairs)


def _points(
    results: CaseResults,
    latents: Sequence[int],
    rate_kp: np.ndarray,
    base_p: np.ndarray,
    pairs: Paired,
) -> list[dict[str, Any]]:
    """Returns both changes of every latent, with the error of the sampled one.

    Args:
      rate_kp, base_p: exact rates of each latent's condition, and unsteered.
      pairs: of the sampled answers.
    """
    exact_k = exact_changes(rate_kp, base_p, pairs)
    sampled_k = weighted_mean(pairs.diff_kp, pairs.weight_kp)
    error_k = binomial_errors(rate_kp, base_p, pairs)
    points = []
    for k, latent in enumerate(latents):
        point = {
            "latent": results.label(latent),
            "method": _method_of(results, latent),
            "exact": float(exact_k[k]),
            "sampled": float(sampled_k[k]),
            "error": float(error_k[k]),
        }
        points.append(point)
    return points


def _method_of(results: CaseResults, latent: int) -> str:
    """Returns the first method of a study that a sampled latent is among the best of."""
    count = results.case.study.sampled_latents
    methods = best_and_random(results.selection, count, count)
    for method, latents in methods.items():
        if latent in latents:
            return method
    raise ValueError(f"latent {latent} was sampled, but no method selected it")
