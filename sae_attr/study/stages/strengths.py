"""The stage that chooses how strongly each latent is steered, in one direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from sae_attr.steering import choose_strengths
from sae_attr.steering.coherence import CoherenceLimits
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_exact,
    declared_judge,
    declared_prompts,
    declared_sampling,
    plain,
    steered_scope,
)
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.coherence_fallback import measures_coherence, no_coherence
from sae_attr.study.grading import mean_of_known
from sae_attr.study.sample_sources import declared_engine, declared_server
from sae_attr.study.selection import Selection
from sae_attr.study.sweep_conditions import (
    Side,
    SideStrengths,
    side_condition,
    sides_of,
)

# 2: strengths are stored with the latent and sign that they belong to.
VERSION = 2


def norm_of(attribution: Result) -> float:
    """Returns the unit of strengths: the site's mean norm over ordinary text."""
    return float(attribution.meta["summary"]["mean"]["norm"])


def choose(inputs: StageInputs, progress: Progress) -> Computed:
    """Chooses for every side the largest strength of the grid that the budget of
    incoherence allows, on prompts that nothing else uses.

    Arrays: those of `SideStrengths` (strength 0 where none is allowed), and
      `incoherent_kc` of every side and strength.
    """
    case, direction = inputs.case, inputs.direction
    study = case.study
    selection = Selection.load(inputs["select"].arrays)
    sides = sides_of(selection, direction, gradient_signed=study.gradient_signed)
    tried: dict[Side, list[Condition]] = {}
    for side in sides:
        tried[side] = []
        for size in study.grid:
            condition = side_condition(side, size, direction, study.steer_tokens)
            tried[side].append(condition)
    # The unsteered model on the same prompts: what a strength breaks is what it adds.
    conditions = (UNSTEERED, *chain(*tried.values()))
    norm = norm_of(inputs["attribute"])
    if study.strengths_by == "exact":
        measured = exact_coherence(case, direction, conditions, norm, progress)
    else:
        measured = sampled_coherence(case, direction, conditions, norm, progress)
    shares = measured.share
    coherent = [shares[condition] for condition in conditions[1:]]
    incoherent_kc = 1 - np.reshape(coherent, (len(sides), len(study.grid)))
    unsteered = float(1 - shares[UNSTEERED])
    choice = choose_strengths(
        incoherent_kc,
        np.array(study.grid),
        unsteered,
        rule=study.budget.rule,
        budget=study.budget.points,
        pick=study.budget.pick,
    )
    sizes = dict(zip(sides, choice.strength_k.tolist(), strict=True))
    strengths = SideStrengths(sizes, direction, study.steer_tokens)
    return {**strengths.arrays(), "incoherent_kc": incoherent_kc}, {
        "by": study.strengths_by,
        "unsteered_incoherent": unsteered,
        "without_strength": int((choice.index_k < 0).sum()),
        **measured.facts,
    }


@dataclass(frozen=True)
class MeasuredCoherence:
    """Coherence of conditions.

    Args:
      share: condition -> share of coherent answers.
      facts: how it was measured, and what that cost.
    """

    share: Mapping[Condition, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


def exact_coherence(
    case: Case,
    direction: str,
    conditions: tuple[Condition, ...],
    norm: float,
    progress: Progress,
) -> MeasuredCoherence:
    """Measures coherence by exact probabilities."""
    sweep = CaseSweep(case, direction, "strengths", conditions, norm, 1)
    rates = sweep.exact_rates(progress, f"strengths, {direction}")
    share = dict(zip(conditions, rates.coherence_kp.mean(1).tolist(), strict=True))
    return MeasuredCoherence(share, {"exact_rows": rates.rows, **rates.facts})


def sampled_coherence(
    case: Case,
    direction: str,
    conditions: tuple[Condition, ...],
    norm: float,
    progress: Progress,
) -> MeasuredCoherence:
    """Measures coherence on first answers of every condition; where none could be
    graded a condition counts as incoherent.

    Raises:
      ValueError: nothing reports coherence of the unsteered model.
    """
    limits, own_cost = None, {"samples": 0, "tokens": 0}
    if measures_coherence(case):
        limits, own_cost = own_limits(case, direction, progress)
    samples = case.study.strength_samples
    sweep = CaseSweep(case, direction, "strengths", conditions, norm, samples, limits)
    tokens_rn, cost = sweep.sample(progress, f"strengths, {direction}")
    # First answers only: sampled again, an incoherent one would be replaced by another.
    answers, counts = sweep.grade(tokens_rn, progress, attempts=0)
    share = {}
    for condition, coherent_ps in answers.coherence().items():
        share[condition] = mean_of_known(coherent_ps)
    # Else every strength would pass beside an unsteered model that counts as
    # incoherent.
    if np.isnan(share[UNSTEERED]):
        raise ValueError(no_coherence(case))
    facts: dict[str, Any] = {
        "samples": own_cost["samples"] + cost["samples"],
        "tokens": own_cost["tokens"] + cost["tokens"],
        "counts": counts,
        "unread": answers.unread(),
        "coherence_by": "judge",
    }
    if limits is not None:
        facts |= {"coherence_by": "logp", "own_answers": asdict(limits)}
    # A strength under which no answer could be judged is not one to steer at.
    for condition, value in share.items():
        share[condition] = 0.0 if np.isnan(value) else value
    return MeasuredCoherence(share, facts)


def own_limits(
    case: Case, direction: str, progress: Progress
) -> tuple[CoherenceLimits, dict[str, int]]:
    """Returns the limits that the unsteered model's own answers to the strengths'
    prompts set, and what they cost.
    """
    samples = case.study.coherence_samples
    sweep = CaseSweep(case, direction, "strengths", (UNSTEERED,), 0.0, samples)
    tokens_rn, cost = sweep.sample(progress, f"own answers, {direction}")
    return sweep.limits_of_own(tokens_rn, tail=case.study.coherence_tail), cost


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the strengths depend on."""
    study = case.study
    declared = {
        "grid": study.grid,
        "by": study.strengths_by,
        "budget": plain(study.budget),
        "prompts": declared_prompts(case, "strengths"),
        "limit": study.strength_prompts,
        "gradient_signed": study.gradient_signed,
        **steered_scope(case),
    }
    if study.strengths_by == "exact":
        return declared | declared_exact(case, "strengths")
    declared |= {
        "samples": study.strength_samples,
        "sampling": declared_sampling(case),
        "judge": declared_judge(case),
        **declared_engine(case.study),
    }
    if measures_coherence(case):
        declared["coherence"] = {
            "by": "logp",
            "tail": study.coherence_tail,
            "samples": study.coherence_samples,
            **declared_server(case),
        }
    return declared


STAGE = CaseStage(
    "strengths",
    choose,
    fields,
    needs=("select", "attribute"),
    version=VERSION,
    directed=True,
)
