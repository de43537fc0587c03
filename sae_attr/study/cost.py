"""The cost of a study before it is run: completions, judge calls and tokens, at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_attr.study.case import Case
from sae_attr.study.coherence_fallback import measures_coherence
from sae_attr.study.settings import DIRECTIONS


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, at most.

    Args:
      stage: whole name.
      samples: completions.
      judged: answers that a judge grades.
      tokens: that are sampled.
      resampled: further completions if every answer were excluded each time.
    """

    stage: str
    samples: int = 0
    judged: int = 0
    tokens: int = 0
    resampled: int = 0


def case_costs(case: Case) -> list[StageCost]:
    """Returns the costs of the stages that sample or grade; the numbers of latents are
    upper bounds, as methods overlap.
    """
    study, name = case.study, case.name
    max_new, attempts = study.sampling.max_new, study.sampling.attempts
    for_pairs = len(case.prompts("pairs")) * case.settings.pair_samples
    costs = [
        StageCost(f"{name}.sample", samples=for_pairs, tokens=for_pairs * max_new),
        StageCost(f"{name}.grade", judged=for_pairs, resampled=for_pairs * attempts),
    ]
    sides = study.top * len(study.methods) + study.random
    if study.gradient_signed:
        sides *= 2
    for_strengths = len(case.prompts("strengths"))
    tried = (1 + sides * len(study.grid)) * for_strengths * study.strength_samples
    if study.strengths_by == "exact":
        tried = 0
    unsteered = 0  # answers that coherence is measured against
    if measures_coherence(case):
        unsteered = for_strengths * study.coherence_samples
    steered = (1 + sides) * len(case.prompts("effects")) * study.effect_samples
    for direction in DIRECTIONS:
        costs += [
            StageCost(
                f"{name}.strengths.{direction}",
                samples=tried + unsteered,
                judged=tried,
                tokens=(tried + unsteered) * max_new,
            ),
            StageCost(
                f"{name}.steer.{direction}", samples=steered, tokens=steered * max_new
            ),
            StageCost(
                f"{name}.judge.{direction}",
                judged=steered,
                resampled=steered * attempts,
            ),
        ]
    return costs


def cost_table(costs: Sequence[StageCost], states: Mapping[str, str]) -> str:
    """Returns the costs as a table, with what is left to do and its sum."""
    head = (
        f"{'stage':<34} {'samples':>10} {'judge calls':>12} {'new tokens':>12}  state"
    )
    lines = [
        "at most, before answers that are excluded and sampled again:",
        head,
        "-" * len(head),
    ]
    left = StageCost("to do")
    for cost in costs:
        state = states.get(cost.stage, "missing")
        lines.append(f"{_cells(cost)}  {state}")
        if state != "done":
            left = _sum(left, cost)
    lines.append(_cells(left))
    if left.resampled:
        lines.append(
            f"excluded answers may add up to {left.resampled:,} samples and judge "
            "calls; usually a few per cent of that"
        )
    return "\n".join(lines)


def _cells(cost: StageCost) -> str:
    return f"{cost.stage:<34} {cost.samples:>10,} {cost.judged:>12,} {cost.tokens:>12,}"


def _sum(total: StageCost, cost: StageCost) -> StageCost:
    return StageCost(
        total.stage,
        total.samples + cost.samples,
        total.judged + cost.judged,
        total.tokens + cost.tokens,
        total.resampled + cost.resampled,
    )
