"""The stages that check latents by experiment: strengths → steer → judge, in either direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.case_study.case import Case, plain
from sae_attr.case_study.grading import graded
from sae_attr.case_study.samples import Arms, every_row, padded, sampled
from sae_attr.case_study.selection import Selection, arms_of, scaled, with_unsteered
from sae_attr.steering import choose_strengths
from sae_attr.store import Progress, Result

Made = tuple[Mapping[str, Any], Mapping[str, Any]]


def norm_of(attribution: Result) -> float:
    """The unit of strengths: the site's mean norm over ordinary text."""
    return float(attribution.meta["summary"]["mean"]["norm"])


def arms_in(case: Case, selection: Result, direction: str) -> Arms:
    """The arms of a direction, of strength ±1."""
    return arms_of(Selection.load(selection.arrays), direction, gradient_signed=case.study.gradient_signed)


def strengths(case: Case, direction: str, selection: Result, attribution: Result, progress: Progress) -> Made:
    """Per arm the largest strength of the grid that the budget of incoherence allows, on prompts that nothing else uses.

    Arrays: `strengths_k` (0 where no strength is allowed), `incoherent_kc` of every arm and strength.
    """
    arms, norm, grid = arms_in(case, selection, direction), norm_of(attribution), np.array(case.study.grid)
    trial = with_unsteered(Arms(np.repeat(arms.latents_k, len(grid)), np.outer(arms.strengths_k, grid).ravel()))
    if case.study.strengths_by == "exact":
        _, coherent_kp = case.exact(direction, "strengths", trial, norm)
        coherent_k, cost = coherent_kp.mean(1), {}
    else:
        coherent_k, cost = _sampled_coherence(case, direction, trial, norm, progress)
    incoherent_kc = 1 - coherent_k[1:].reshape(len(arms), len(grid))
    base, budget = float(1 - coherent_k[0]), case.study.budget
    chosen = choose_strengths(incoherent_kc, grid, base, rule=budget.rule, budget=budget.points, pick=budget.pick)
    facts = {"unsteered_incoherent": base, "without_strength": int((chosen.index_k < 0).sum())}
    return {"strengths_k": chosen.strength_k, "incoherent_kc": incoherent_kc}, {
        "by": case.study.strengths_by,
        **facts,
        **cost,
    }


def _sampled_coherence(
    case: Case, direction: str, trial: Arms, norm: float, progress: Progress
) -> tuple[np.ndarray, dict[str, Any]]:
    """Share of coherent first answers of every arm; where none could be graded an arm counts as incoherent."""
    samples = case.study.strength_samples
    rows = every_row(len(trial), len(case.prompts("strengths")), samples)
    answer, runtime = case.answer(direction, "strengths", trial, norm), case.runtime
    options: dict[str, Any] = {"batch_size": runtime.batch_size, "bar": runtime.progress}
    ids = sampled(answer, rows, progress, name=f"strengths, {direction}", **options)
    tokens_rn = padded(ids, case.study.sampling.max_new)
    found, counts = graded(rows, tokens_rn, case.judge, case.item("strengths"), answer, progress, attempts=0, **options)
    _, coherent_kps = found.shaped(len(trial), len(case.prompts("strengths")), samples)
    known = np.isfinite(coherent_kps).any((1, 2))
    coherent_k = np.zeros(len(trial))
    coherent_k[known] = np.nanmean(coherent_kps[known], axis=(1, 2))
    return coherent_k, {"samples": len(rows), "tokens": sum(map(len, ids)), "counts": counts}


def steered_arms(case: Case, direction: str, selection: Result, chosen: Result) -> Arms:
    """The model as it is, then every arm with its strength."""
    arms = arms_in(case, selection, direction)
    return with_unsteered(scaled(arms, np.asarray(chosen.arrays["strengths_k"])))


def steer(
    case: Case, direction: str, selection: Result, chosen: Result, attribution: Result, progress: Progress
) -> Made:
    """Completions of every arm on the effects' prompts, `effect_samples` each; arm 0 is the model as it is."""
    arms = steered_arms(case, direction, selection, chosen)
    rows = every_row(len(arms), len(case.prompts("effects")), case.study.effect_samples)
    answer = case.answer(direction, "effects", arms, norm_of(attribution))
    runtime = case.runtime
    ids = sampled(
        answer, rows, progress, batch_size=runtime.batch_size, name=f"steer {direction}", bar=runtime.progress
    )
    facts = {"arms": len(arms), "samples": len(rows), "tokens": sum(map(len, ids))}
    return {"tokens_rn": padded(ids, case.study.sampling.max_new)}, facts


def judge(
    case: Case,
    direction: str,
    selection: Result,
    chosen: Result,
    attribution: Result,
    steered: Result,
    progress: Progress,
) -> Made:
    """What the judge says of steered and unsteered completions; excluded ones are sampled again under the same arm."""
    arms = steered_arms(case, direction, selection, chosen)
    rows = every_row(len(arms), len(case.prompts("effects")), case.study.effect_samples)
    answer = case.answer(direction, "effects", arms, norm_of(attribution))
    found, counts = graded(
        rows, np.asarray(steered.arrays["tokens_rn"]), case.judge, case.item("effects"), answer, progress,
        attempts=case.study.sampling.attempts, batch_size=case.runtime.batch_size, bar=case.runtime.progress,
    )  # fmt: skip
    return found.arrays(), {"labels": list(found.labels_r), "counts": counts}


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    study = case.study
    effects = (
        [[p.id, p.prompt, p.prompt_ids] for p in case.prompts("effects")] if case.settings.organism is None else []
    )
    tried = (
        [[p.id, p.prompt, p.prompt_ids] for p in case.prompts("strengths")] if case.settings.organism is None else []
    )
    how = {"gradient_signed": study.gradient_signed, "tokens": study.steer_tokens}
    sampling = plain(study.sampling, "attempts")
    grid = {"grid": study.grid, "by": study.strengths_by, "budget": plain(study.budget), "prompts": tried}
    by = {"judge": dict(case.judge.identity)} if study.strengths_by == "samples" else {}
    return {
        "strengths": {**grid, **how, **by, "samples": study.strength_samples, "limit": study.strength_prompts,
                      "sampling": sampling},
        "steer": {**how, "samples": study.effect_samples, "limit": study.effect_prompts, "sampling": sampling,
                  "prompts": effects},
        "judge": {"judge": dict(case.judge.identity), "attempts": study.sampling.attempts},
    }  # fmt: skip
