"""The cost of a study before it is run, at most: completions, judge calls, tokens, and
the work of the model behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from sae_attr.report.numbers import duration
from sae_attr.report.tables import text_table
from sae_attr.study.case import Case
from sae_attr.study.coherence_fallback import measures_coherence
from sae_attr.study.settings import DIRECTIONS

_COUNTS = {"samples": ",", "judge calls": ",", "new tokens": ","}


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, at most.

    Args:
      stage: whole name.
      samples: completions.
      judged: answers that a judge grades.
      tokens: that are sampled.
      resampled: further completions if every answer were excluded each time.
      read: tokens times the layers that read them, in batches of whole rows; a layer of
        a backward pass counts as one more.
      heads: tokens whose next-token probabilities are computed.
      steps: tokens that a batch of completions is continued by, one at a time.
      flops: of products with a dictionary.
    """

    stage: str
    samples: int = 0
    judged: int = 0
    tokens: int = 0
    resampled: int = 0
    read: float = 0.0
    heads: float = 0.0
    steps: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Reading:
    """What sampling reads, beside the number of completions.

    Args:
      layers: of the model.
      widths: split -> tokens of a prompt in a batch, padding included.
    """

    layers: int
    widths: Mapping[str, int]


NOTHING_READ = Reading(0, {})


def case_costs(case: Case, reading: Reading = NOTHING_READ) -> list[StageCost]:
    """Returns the costs of the stages that sample or grade; the numbers of latents are
    upper bounds, as methods overlap.

    Args:
      reading: without it `read` stays 0.
    """
    study, name = case.study, case.name
    attempts = study.sampling.attempts
    for_pairs = len(case.prompts("pairs")) * case.settings.pair_samples
    sampled = _sampled(case, reading, f"{name}.sample", "pairs", for_pairs)
    graded = StageCost(
        f"{name}.grade", judged=for_pairs, resampled=for_pairs * attempts
    )
    costs = [sampled, graded]
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
        strengths = f"{name}.strengths.{direction}"
        chosen_by = _sampled(case, reading, strengths, "strengths", tried + unsteered)
        costs += [
            replace(chosen_by, judged=tried),
            _sampled(case, reading, f"{name}.steer.{direction}", "effects", steered),
            StageCost(
                f"{name}.judge.{direction}",
                judged=steered,
                resampled=steered * attempts,
            ),
        ]
    return costs


def _sampled(
    case: Case, reading: Reading, stage: str, split: str, samples: int
) -> StageCost:
    """Returns the cost of sampling completions of a split's prompts."""
    max_new, rows = case.study.sampling.max_new, case.runtime.batch_size
    batches = -(-samples // rows)  # the last one is filled up
    return StageCost(
        stage,
        samples=samples,
        tokens=samples * max_new,
        read=float(batches * rows * reading.widths.get(split, 0) * reading.layers),
        steps=batches * max_new,
    )


def cost_table(
    costs: Sequence[StageCost],
    states: Mapping[str, str],
    seconds: Mapping[str, float] | None = None,
) -> str:
    """Returns the costs as a table, with what is left to do and its sum.

    Args:
      states: stage -> its state; what is done costs nothing more.
      seconds: stage -> estimated time; None leaves the column out.
    """
    shown = [cost for cost in costs if seconds is not None or _is_counted(cost)]
    left = StageCost("to do")
    left_seconds = 0.0
    times, state_of = [], []
    for cost in shown:
        state = states.get(cost.stage, "missing")
        state_of.append(state)
        time = 0.0
        if state != "done":
            left = _sum(left, cost)
            time = (seconds or {}).get(cost.stage, 0.0)
        left_seconds += time
        times.append(time)
    rows = [*shown, left]
    columns: dict[str, list[object]] = {
        "stage": [cost.stage for cost in rows],
        "samples": [cost.samples for cost in rows],
        "judge calls": [cost.judged for cost in rows],
        "new tokens": [cost.tokens for cost in rows],
    }
    if seconds is not None:
        columns["time"] = [duration(time) for time in [*times, left_seconds]]
    columns["state"] = [*state_of, ""]
    lines = [
        "at most, before answers that are excluded and sampled again:",
        text_table(columns, _COUNTS, right=("time",)),
    ]
    if left.resampled:
        lines.append(
            f"excluded answers may add up to {left.resampled:,} samples and judge "
            "calls; usually a few per cent of that"
        )
    return "\n".join(lines)


def _is_counted(cost: StageCost) -> bool:
    return bool(cost.samples or cost.judged or cost.resampled)


def _sum(total: StageCost, cost: StageCost) -> StageCost:
    sums = {}
    for field in fields(StageCost):
        if field.name != "stage":
            sums[field.name] = getattr(total, field.name) + getattr(cost, field.name)
    return replace(total, **sums)
