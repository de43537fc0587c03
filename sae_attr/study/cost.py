"""What a study costs before it is run: completions, judge calls and tokens, at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_attr.report.tables import text_table
from sae_attr.study.case import Case
from sae_attr.study.settings import DIRECTIONS


@dataclass(frozen=True)
class Cost:
    """Of one stage, at most.

    Args:
      samples: completions.
      judged: answers that a judge grades.
      tokens: that are sampled.
      resampled: further completions if every answer were set aside each time.
    """

    stage: str
    samples: int = 0
    judged: int = 0
    tokens: int = 0
    resampled: int = 0


def case_costs(case: Case) -> list[Cost]:
    """The stages of a case that sample or grade; the numbers of latents are upper
    bounds, as methods overlap.
    """
    s, study, name = case.settings, case.study, case.settings.name
    new, attempts = study.sampling.max_new, study.sampling.attempts
    found = len(case.prompts("pairs")) * s.pair_samples
    out = [
        Cost(f"{name}.sample", samples=found, tokens=found * new),
        Cost(f"{name}.grade", judged=found, resampled=found * attempts),
    ]
    latents = study.top * len(study.methods) + study.random
    arms = latents * (2 if study.gradient_signed else 1)
    for direction in DIRECTIONS:
        tried = (
            (1 + arms * len(study.grid))
            * len(case.prompts("strengths"))
            * study.strength_samples
        )
        tried = 0 if study.strengths_by == "exact" else tried
        unsteered = (
            len(case.prompts("strengths")) * study.coherence_samples
            if case.measures_coherence
            else 0
        )
        steered = (1 + arms) * len(case.prompts("effects")) * study.effect_samples
        out += [
            Cost(
                f"{name}.strengths.{direction}",
                samples=tried + unsteered,
                judged=tried,
                tokens=(tried + unsteered) * new,
            ),
            Cost(f"{name}.steer.{direction}", samples=steered, tokens=steered * new),
            Cost(
                f"{name}.judge.{direction}",
                judged=steered,
                resampled=steered * attempts,
            ),
        ]
    return out


def cost_table(costs: Sequence[Cost], states: Mapping[str, str]) -> str:
    """Returns the costs as a table, with the sum of what is left to do."""
    left = [cost for cost in costs if states.get(cost.stage) != "done"]
    total = Cost(
        "to do",
        sum(cost.samples for cost in left),
        sum(cost.judged for cost in left),
        sum(cost.tokens for cost in left),
        sum(cost.resampled for cost in left),
    )
    rows = [*costs, total]
    table = text_table(
        {
            "stage": [row.stage for row in rows],
            "samples": [row.samples for row in rows],
            "judge calls": [row.judged for row in rows],
            "new tokens": [row.tokens for row in rows],
            "state": [states.get(cost.stage, "missing") for cost in costs] + [""],
        },
        {"samples": ",", "judge calls": ",", "new tokens": ","},
    )
    lines = ["at most, before answers that are excluded and sampled again:", table]
    if total.resampled:
        lines.append(
            f"excluded answers may add up to {total.resampled:,} samples and judge calls; "
            "usually a few per cent of that"
        )
    return "\n".join(lines)
