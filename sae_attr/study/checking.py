"""The stages that check latents by experiment: strengths → steer → judge, in either
direction.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sae_attr.steering import choose_strengths
from sae_attr.steering.coherence import OwnAnswers
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case, no_coherence, plain
from sae_attr.study.grading import known_mean
from sae_attr.study.samples import UNSTEERED, Arms
from sae_attr.study.selection import Selection, arms_of, scaled, with_unsteered
from sae_attr.study.trial import Trial
from sae_attr.study.unread import unread_arrays


def norm_of(attribution: Result) -> float:
    """The unit of strengths: the site's mean norm over ordinary text."""
    return float(attribution.meta["summary"]["mean"]["norm"])


def arms_in(case: Case, selection: Result, direction: str) -> Arms:
    """The arms of a direction, of strength ±1."""
    return arms_of(
        Selection.load(selection.arrays),
        direction,
        gradient_signed=case.study.gradient_signed,
    )


def strengths(
    case: Case,
    direction: str,
    selection: Result,
    attribution: Result,
    progress: Progress,
) -> Computed:
    """Per arm the largest strength of the grid that the budget of incoherence allows,
    on prompts that nothing else uses.

    Arrays: `strengths_k` (0 where no strength is allowed), `incoherent_kc` of every arm
      and strength.
    """
    arms = arms_in(case, selection, direction)
    norm = norm_of(attribution)
    grid = np.array(case.study.grid)
    trial = with_unsteered(
        Arms(
            np.repeat(arms.latents_k, len(grid)),
            np.outer(arms.strengths_k, grid).ravel(),
        )
    )
    if case.study.strengths_by == "exact":
        _, coherent_kp = case.exact(direction, "strengths", trial, norm)
        coherent_k, unread, cost = coherent_kp.mean(1), {}, {}
    else:
        coherent_k, unread, cost = _sampled_coherence(
            case, direction, trial, norm, progress
        )
    incoherent_kc = 1 - coherent_k[1:].reshape(len(arms), len(grid))
    base, budget = float(1 - coherent_k[0]), case.study.budget
    chosen = choose_strengths(
        incoherent_kc,
        grid,
        base,
        rule=budget.rule,
        budget=budget.points,
        pick=budget.pick,
    )
    facts = {
        "unsteered_incoherent": base,
        "without_strength": int((chosen.index_k < 0).sum()),
    }
    about = {"by": case.study.strengths_by, **facts, **cost}
    return {
        "strengths_k": chosen.strength_k,
        "incoherent_kc": incoherent_kc,
        **unread,
    }, about


def _sampled_coherence(
    case: Case, direction: str, trial: Arms, norm: float, progress: Progress
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """Share of coherent first answers of every arm (where none could be graded an arm
    counts as incoherent), the answers whose replies could not be read, and facts.
    """
    own, cost = None, {"samples": 0, "tokens": 0}
    if case.measures_coherence:
        own, cost = _own_answers(case, direction, progress)
    asked = Trial(
        case, direction, "strengths", trial, norm, case.study.strength_samples, own
    )
    tokens_rn, made = asked.sample(progress, f"strengths, {direction}")
    cost = {name: cost[name] + made[name] for name in made}
    answers, counts = asked.grade(tokens_rn, progress, attempts=0)
    _, coherent_kps = answers.shaped(*asked.shape)
    coherent_k = np.array([known_mean(coherent_ps) for coherent_ps in coherent_kps])
    if np.isnan(
        coherent_k[0]
    ):  # else every strength would pass beside an unsteered model that counts as incoherent
        raise ValueError(no_coherence(case))
    facts = (
        {"coherence_by": "judge"}
        if own is None
        else {"coherence_by": "logp", "own_answers": asdict(own)}
    )
    return (
        np.nan_to_num(coherent_k),
        unread_arrays(answers, asked.rows.prompt_r),
        {**cost, "counts": counts, **facts},
    )


def _own_answers(
    case: Case, direction: str, progress: Progress
) -> tuple[OwnAnswers, dict[str, int]]:
    """What the unsteered model's own answers to the strengths' prompts are like, and
    what they cost.
    """
    unsteered = Arms(np.array([UNSTEERED]), np.zeros(1))
    trial = Trial(
        case, direction, "strengths", unsteered, 0.0, case.study.coherence_samples
    )
    tokens_rn, cost = trial.sample(progress, f"own answers, {direction}")
    return trial.own_answers(tokens_rn, tail=case.study.coherence_tail), cost


def steered_arms(case: Case, direction: str, selection: Result, chosen: Result) -> Arms:
    """The model as it is, then every arm with its strength."""
    arms = arms_in(case, selection, direction)
    return with_unsteered(scaled(arms, np.asarray(chosen.arrays["strengths_k"])))


def _steered(
    case: Case, direction: str, selection: Result, chosen: Result, attribution: Result
) -> Trial:
    """All arms of a direction on the effects' prompts; arm 0 is the model as it is."""
    arms = steered_arms(case, direction, selection, chosen)
    samples = case.study.effect_samples
    own = OwnAnswers(**chosen.meta["own_answers"]) if case.measures_coherence else None
    return Trial(case, direction, "effects", arms, norm_of(attribution), samples, own)


def steer(
    case: Case,
    direction: str,
    selection: Result,
    chosen: Result,
    attribution: Result,
    progress: Progress,
) -> Computed:
    """Completions of every arm on the effects' prompts, `effect_samples` each; arm 0 is
    the model as it is.
    """
    trial = _steered(case, direction, selection, chosen, attribution)
    tokens_rn, counts = trial.sample(progress, f"steer {direction}")
    return {"tokens_rn": tokens_rn}, {"arms": len(trial.arms), **counts}


def judge(
    case: Case,
    direction: str,
    selection: Result,
    chosen: Result,
    attribution: Result,
    steered: Result,
    progress: Progress,
) -> Computed:
    """What the judge says of steered and unsteered completions; excluded ones are
    sampled again under the same arm.
    """
    trial = _steered(case, direction, selection, chosen, attribution)
    found, counts = trial.grade(steered.arrays["tokens_rn"], progress)
    return found.arrays(), {"labels": list(found.labels_r), "counts": counts}


def fields(case: Case) -> dict[str, dict[str, Any]]:
    """Stage -> the config fields that it declares."""
    study = case.study
    how = {"gradient_signed": study.gradient_signed, "tokens": study.steer_tokens}
    sampling = plain(study.sampling, "attempts") | {"stop_ids": case.declared_stops()}
    grid = {"grid": study.grid, "by": study.strengths_by, "budget": plain(study.budget)}
    tried = {
        "prompts": case.declared_prompts("strengths"),
        "limit": study.strength_prompts,
    }
    asked = {"prompts": case.declared_prompts("effects"), "limit": study.effect_prompts}
    by = {"judge": dict(case.judge.identity)} if study.strengths_by == "samples" else {}
    if case.measures_coherence:
        by["coherence"] = {
            "by": "logp",
            "tail": study.coherence_tail,
            "samples": study.coherence_samples,
        }
    return {
        "strengths": {
            **grid,
            **tried,
            **how,
            **by,
            "samples": study.strength_samples,
            "sampling": sampling,
        },
        "steer": {
            **asked,
            **how,
            "samples": study.effect_samples,
            "sampling": sampling,
        },
        "judge": {
            "judge": dict(case.judge.identity),
            "attempts": study.sampling.attempts,
        },
    }
