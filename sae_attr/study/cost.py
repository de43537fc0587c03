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
from sae_attr.study.continuation_texts import prompt_texts
from sae_attr.study.prompts import SPLITS
from sae_attr.study.sample_sources import sampled_here
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages import ablated_rates, describe, match, texts_to_read

# Header of a table -> field of `StageCost`.
_COLUMNS = {
    "samples": "samples",
    "judge calls": "judged",
    "new tokens": "tokens",
    "exact rows": "exact",
    "exact tokens": "exact_tokens",
}


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage, at most.

    Args:
      stage: whole name.
      samples: completions.
      judged: answers that a judge grades.
      tokens: that are sampled.
      resampled: further completions if every answer were excluded each time.
      exact: prompts that are measured under a condition by exact probabilities.
      exact_tokens: of those with their texts; a beginning that prompts share is read
        once a condition, and counted with every prompt.
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
    exact: int = 0
    exact_tokens: int = 0
    read: float = 0.0
    heads: float = 0.0
    steps: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Reading:
    """Holds what sampling and exact rates read, beside the number of completions.

    Args:
      layers: of the model.
      above: of its layers above the site, which exact rates run anew for a condition.
      widths: split -> tokens of a prompt in a batch, padding included.
    """

    layers: int
    above: int
    widths: Mapping[str, int]


NOTHING_READ = Reading(0, 0, {})


def case_costs(case: Case, reading: Reading = NOTHING_READ) -> list[StageCost]:
    """Returns the costs of the stages that sample or grade; the numbers of latents are
    upper bounds, as methods overlap.

    Args:
      reading: without it `read` stays 0.
    """
    study = case.study
    costs = [*_unsteered_costs(case, reading), *_pair_costs(case, reading)]
    latents = study.top * len(study.steered_methods) + study.random
    for dictionary in case.dictionaries:
        latents += dictionary.settings.top or study.top
    sides = 2 * latents if study.gradient_signed else latents
    if study.screen:
        costs += [_screen_cost(case, reading, direction) for direction in DIRECTIONS]
    for direction in DIRECTIONS:
        tried = 1 + sides * len(study.grid)
        costs.append(_strengths_cost(case, reading, direction, tried))
        costs += _effects_costs(case, reading, direction, 1 + sides)
        costs += _probe_costs(case, reading, direction)
    if study.ablate_by != "none" and not ablated_rates.left_out(case):
        stage = f"{case.name}.{ablated_rates.NAME}"
        costs.append(_exact(case, reading, stage, "effects", 1 + latents))
    return [*costs, *_described_costs(case, reading)]


def _described_costs(case: Case, reading: Reading) -> list[StageCost]:
    """Returns the costs of latents that a reader describes."""
    study, name = case.study, case.name
    if case.reader is None or not study.reads:
        return []
    latents = study.described * len(study.steered_methods) + study.described_random
    answers = 2 * study.described_answers
    samples = StageCost(f"{name}.{texts_to_read.NAME}")
    tested = 0
    for source in study.described_by:
        texts = study.tested
        if source in texts_to_read.SPLIT_OF:
            texts = min(texts, study.described_answers)
            split = texts_to_read.SPLIT_OF[source]
            count = (1 + latents) * min(answers, len(case.prompts(split)))
            samples = _sum(
                samples, _sampled(case, reading, samples.stage, split, count)
            )
        tested += latents * 3 * texts
    longest = study.described_tokens or study.sampling.max_new
    batches = samples.steps // study.sampling.max_new
    tokens, steps = samples.samples * longest, batches * longest
    samples = replace(samples, tokens=tokens, steps=steps)
    asked = latents * len(study.described_by)
    return [
        samples,
        StageCost(f"{name}.{describe.NAME}", judged=asked),
        StageCost(f"{name}.{match.NAME}", judged=tested),
    ]


def _pair_costs(case: Case, reading: Reading) -> list[StageCost]:
    study, name = case.study, case.name
    if study.pairs_by == "continuations":
        return [_exact(case, reading, f"{name}.pair", "pairs", 1)]
    samples = len(case.prompts("pairs")) * case.settings.pair_samples
    again = samples * study.sampling.attempts
    return [
        _sampled(case, reading, f"{name}.sample", "pairs", samples, steered=False),
        StageCost(f"{name}.grade", judged=samples, resampled=again),
    ]


def _screen_cost(case: Case, reading: Reading, direction: str) -> StageCost:
    """Returns the cost of trying latents on held-out pairs."""
    study = case.study
    steered_anyway = study.top * len(study.methods) + study.random
    rows = (1 + study.screen + steered_anyway) * study.screen_pairs
    answer = study.sampling.max_new
    if study.pairs_by == "continuations":
        texts = [prompt_texts(case, prompt).ids for prompt in case.prompts("pairs")]
        answer = max(len(ids) for of_prompt in texts for ids in of_prompt)
    # Both sides of a pair follow one prompt; the last token of an answer is not read.
    answers = 2 * case.settings.per_side * (answer - 1)
    tokens = rows * (reading.widths.get("pairs", 0) + answers)
    return StageCost(
        f"{case.name}.screen.{direction}",
        exact=rows,
        exact_tokens=tokens,
        read=float(tokens * reading.above),
        heads=float(rows * (1 + answers)),
    )


def _strengths_cost(
    case: Case, reading: Reading, direction: str, conditions: int
) -> StageCost:
    study, stage = case.study, f"{case.name}.strengths.{direction}"
    if study.strengths_by == "exact":
        return _exact(case, reading, stage, "strengths", conditions)
    prompts = len(case.prompts("strengths"))
    tried = conditions * prompts * study.strength_samples
    cost = _sampled(case, reading, stage, "strengths", tried)
    if measures_coherence(case):
        # Answers that coherence is measured against; a server may sample them.
        unsteered = _sampled(
            case,
            reading,
            stage,
            "strengths",
            prompts * study.coherence_samples,
            direction=direction,
            steered=False,
        )
        cost = _sum(cost, unsteered)
    return replace(cost, judged=tried)


def _effects_costs(
    case: Case, reading: Reading, direction: str, conditions: int
) -> list[StageCost]:
    study, name = case.study, case.name
    if study.effects_by == "exact":
        stage = f"{name}.rates.{direction}"
        return [_exact(case, reading, stage, "effects", conditions)]
    steered = conditions * len(case.prompts("effects")) * study.effect_samples
    again = steered * study.sampling.attempts
    return [
        _sampled(case, reading, f"{name}.steer.{direction}", "effects", steered),
        StageCost(f"{name}.judge.{direction}", judged=steered, resampled=again),
    ]


def _unsteered_costs(case: Case, reading: Reading) -> list[StageCost]:
    """Returns the cost of rates without steering, where effects are exact."""
    if case.study.effects_by != "exact":
        return []
    stage, models = f"{case.name}.unsteered", 2 if case.files.lm_aligned else 1
    sets = (*SPLITS, *case.settings.probes)
    return [_exact_on(case, reading, stage, sets, models)]


def _probe_costs(case: Case, reading: Reading, direction: str) -> list[StageCost]:
    """Returns the costs of specificity, and of the answers that check exact effects."""
    study, name, costs = case.study, case.name, []
    if study.effects_by != "exact":
        return []
    if study.specific_latents:
        methods = len(study.steered_methods) + len(case.dictionaries)
        latents = study.specific_latents * methods + study.specific_random
        stage = f"{name}.specificity.{direction}"
        cost = _sum(
            _exact_on(case, reading, stage, case.settings.probes, 1 + latents),
            _exact(case, reading, stage, "effects", study.random_directions),
        )
        text = (1 + latents) * study.specific_tokens
        text_read = float(text * reading.above)
        costs.append(replace(cost, read=cost.read + text_read, heads=cost.heads + text))
    if study.sampled_latents and case.judge.identity.get("kind") != "none":
        methods = len(study.steered_methods) + len(case.dictionaries)
        conditions = 1 + study.sampled_latents * (methods + 1)
        prompts = min(study.sampled_prompts, len(case.prompts("effects")))
        samples = conditions * prompts * study.sampled_samples
        stage = f"{name}.sampled_check.{direction}"
        cost = _sampled(case, reading, stage, "effects", samples)
        again = samples * study.sampling.attempts
        costs.append(replace(cost, judged=samples, resampled=again))
    return costs


def _exact_on(
    case: Case, reading: Reading, stage: str, splits: Sequence[str], conditions: int
) -> StageCost:
    """Returns the cost of exact rates on several sets of prompts."""
    total = StageCost(stage)
    for split in splits:
        total = _sum(total, _exact(case, reading, stage, split, conditions))
    return total


def _exact(
    case: Case, reading: Reading, stage: str, split: str, conditions: int
) -> StageCost:
    """Returns the cost of exact rates; the organism's prompts have no tokens before it
    is built.
    """
    prompts, tokens, heads, shared = case.prompts(split), 0, 0, 0
    if case.settings.organism is None:
        prompt_ids = case.prompt_ids(split)
        for prompt in prompts:
            further = sum([len(ids) - 1 for ids in prompt_texts(case, prompt).ids])
            tokens += len(prompt_ids[prompt.id]) + further
            heads += 1 + further
        shared = _common_beginning([prompt_ids[prompt.id] for prompt in prompts])
    again = shared * max(len(prompts) - 1, 0)  # read once a condition
    return StageCost(
        stage,
        exact=conditions * len(prompts),
        exact_tokens=conditions * tokens,
        read=float(conditions * (tokens - again) * reading.above),
        heads=float(conditions * heads),
    )


def _common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Returns the number of tokens with which all rows begin, one less than the
    shortest has at most.
    """
    columns = list(zip(*rows, strict=False))[:-1]
    same = [len(set(column)) == 1 for column in columns]
    return next((i for i, alike in enumerate(same) if not alike), len(same))


def _sampled(
    case: Case,
    reading: Reading,
    stage: str,
    split: str,
    samples: int,
    *,
    direction: str = "away",
    steered: bool = True,
) -> StageCost:
    """Returns the cost of sampling completions of a split's prompts, without the work of
    another engine.

    Args:
      direction: that steers the model.
      steered: the completions belong to a sweep that steers.
    """
    max_new, rows = case.study.sampling.max_new, case.runtime.batch_size
    if not sampled_here(case, direction, steered=steered):
        return StageCost(stage, samples=samples, tokens=samples * max_new)
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
    columns: dict[str, list[object]] = {"stage": [cost.stage for cost in rows]}
    for title, name in _COLUMNS.items():
        counts = [getattr(cost, name) for cost in rows]
        if any(counts):
            columns[title] = counts
    lines = []
    if any(cost.resampled for cost in rows):
        lines = ["at most, before answers that are excluded and sampled again:"]
    if seconds is not None:
        columns["time"] = [duration(time) for time in [*times, left_seconds]]
    columns["state"] = [*state_of, ""]
    lines.append(text_table(columns, dict.fromkeys(_COLUMNS, ","), right=("time",)))
    if left.resampled:
        lines.append(
            f"excluded answers may add up to {left.resampled:,} samples and judge "
            "calls; usually a few per cent of that"
        )
    return "\n".join(lines)


def _is_counted(cost: StageCost) -> bool:
    return bool(cost.samples or cost.judged or cost.resampled or cost.exact)


def _sum(total: StageCost, cost: StageCost) -> StageCost:
    sums = {}
    for field in fields(StageCost):
        if field.name != "stage":
            sums[field.name] = getattr(total, field.name) + getattr(cost, field.name)
    return replace(total, **sums)
