"""On-policy pairs: sampled and graded answers of a model become records of a pairs file,
each a prompt with answers that have the behaviour and answers that have not.

`sampled_pairs` does all of it; `pair_records` pairs answers that are graded already.
What may be in a pair is decided for every answer before prompts are chosen, on both
sides alike, so that a chosen prompt always has an answer on either side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sae_attr.text.pairs import Prompt

WITH, WITHOUT = 1.0, 0.0
NAN = float("nan")


@dataclass(frozen=True)
class Answer:
    """One sampled answer, and its grade once it has one.

    Args:
      text: as readers and the judge see it.
      ids: token ids that were sampled; None where the text alone is known, and is
        encoded when the pairs are read.
      behaviour: `WITH`, `WITHOUT`, or NaN where it is not graded.
      coherent: 1, 0, or NaN where it is not known.
      attempt: how often the prompt's sample was drawn again for this answer.
      label: the judge's word for it.
    """

    text: str
    ids: tuple[int, ...] | None = None
    behaviour: float = NAN
    coherent: float = NAN
    attempt: int = 0
    label: str = ""

    @property
    def identity(self) -> tuple[int, ...] | str:
        """Returns what two equal answers share."""
        return self.text if self.ids is None else self.ids


Fits = Callable[[Sequence[int]], bool]
"""Tells of token ids whether the attribution can score an answer of them."""

Pick = Callable[
    [Prompt, Sequence[Answer], Sequence[Answer]],
    tuple[Sequence[Answer], Sequence[Answer]],
]
"""(prompt, its answers with the behaviour, those without) -> the ones that are written."""


def any_tokens(ids: Sequence[int]) -> bool:
    """Returns True if an answer has a token at all."""
    return len(ids) > 0


def first_distinct(per_side: int) -> Pick:
    """Returns the rule that takes the first `per_side` different answers of a side."""

    def pick(
        prompt: Prompt, positives: Sequence[Answer], negatives: Sequence[Answer]
    ) -> tuple[Sequence[Answer], Sequence[Answer]]:
        return _distinct(positives)[:per_side], _distinct(negatives)[:per_side]

    return pick


def first_answers(per_side: int) -> Pick:
    """Returns the rule that takes the first `per_side` answers of a side, equal ones
    among them.
    """
    return lambda prompt, positives, negatives: (
        positives[:per_side],
        negatives[:per_side],
    )


class SampledPairs(NamedTuple):
    """Records of a pairs file, the counts of `pair_records`, and every graded answer by
    prompt.
    """

    records: list[dict[str, Any]]
    counts: dict[str, int]
    answers: list[list[Answer]]


def sampled_pairs(
    prompts: Sequence[Prompt],
    sample: Callable[[Sequence[Prompt]], Sequence[Sequence[Answer]]],
    grade: Callable[[Prompt, Sequence[Answer]], Sequence[Answer]],
    *,
    sampler: str,
    limit: int,
    pick: Pick,
    fits: Fits = any_tokens,
    required: bool = True,
) -> SampledPairs:
    """Samples answers of every prompt, grades them and pairs them.

    Args:
      sample: prompts -> answers of each, in order.
      grade: (prompt, its answers) -> the same answers with their grades.
      sampler, limit, pick, fits, required: as for `pair_records`.

    Raises:
      ValueError: from `pair_records`.
    """
    answers = []
    for prompt, sampled in zip(prompts, sample(prompts), strict=True):
        answers.append(list(grade(prompt, sampled)))
    records, counts = pair_records(
        prompts,
        answers,
        sampler=sampler,
        limit=limit,
        pick=pick,
        fits=fits,
        required=required,
    )
    return SampledPairs(records, counts, answers)


def pair_records(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    *,
    sampler: str,
    limit: int,
    pick: Pick,
    fits: Fits = any_tokens,
    required: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Returns records of a pairs file (see `text.pairs`), for the first `limit` prompts
    that gave both, and the counts of `pairing_counts`.

    Token ids are written where they are known, so that what was sampled is never
    encoded again.

    Args:
      prompts: with `prompt_ids` as the sampler saw them, where they are known.
      answers: graded, of each prompt.
      sampler: hash of the model that sampled them.
      pick: which answers of a prompt are written, for instance `first_distinct(1)`.
      fits: tells whether the attribution can score an answer.
      required: no pairs at all is an error.

    Raises:
      ValueError: no prompt gave both; says how many of each kind there were, why they
        were left out and what to change.
    """
    sides = [prompt_sides(of_prompt, fits) for of_prompt in answers]
    counts = pairing_counts(sides)
    records = []
    for prompt, side in zip(prompts, sides, strict=True):
        if side.complete and len(records) < limit:
            positives, negatives = pick(prompt, side.positives, side.negatives)
            records.append(_record(prompt, positives, negatives, sampler))
    if required and not records:
        samples = max(map(len, answers), default=0)
        raise ValueError(_no_pairs(counts, len(prompts), samples))
    return records, counts


@dataclass(frozen=True)
class PromptSides:
    """The answers of one prompt that may be in a pair, and why others may not.

    Args:
      positives, negatives: in the order of sampling.
      graded_both: there was an answer of either kind before any was left out.
      reasons: of the graded answers that were left out.
    """

    positives: tuple[Answer, ...]
    negatives: tuple[Answer, ...]
    graded_both: bool
    reasons: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Returns True if there is an answer on both sides."""
        return bool(self.positives and self.negatives)


def prompt_sides(answers: Sequence[Answer], fits: Fits = any_tokens) -> PromptSides:
    """Decides for every answer of a prompt whether it may be in a pair, and on which
    side.

    Left out are answers that are incoherent, that the attribution cannot score (`fits`:
    none without a token), and those that a judge put on both sides of one prompt, which
    differ in nothing. Where coherence is unknown the grade counts.
    """
    graded = [answer for answer in answers if answer.behaviour in (WITH, WITHOUT)]
    sides: dict[float, set[Any]] = {WITH: set(), WITHOUT: set()}
    for answer in graded:
        sides[answer.behaviour].add(answer.identity)
    on_both = sides[WITH] & sides[WITHOUT]
    usable: dict[float, list[Answer]] = {WITH: [], WITHOUT: []}
    reasons = []
    for answer in graded:
        reason = _why_left_out(answer, on_both, fits)
        if reason:
            reasons.append(reason)
        else:
            usable[answer.behaviour].append(answer)
    return PromptSides(
        positives=tuple(usable[WITH]),
        negatives=tuple(usable[WITHOUT]),
        graded_both=bool(sides[WITH] and sides[WITHOUT]),
        reasons=tuple(reasons),
    )


def _why_left_out(answer: Answer, on_both: set[Any], fits: Fits) -> str:
    """Returns the reason why a graded answer may not be in a pair; "" where it may."""
    # Coherence is of the first attempt; an answer that was drawn again was graded,
    # which incoherent ones are not.
    if answer.coherent == 0 and answer.attempt == 0:
        return "incoherent"
    if not answer.identity:
        return "empty"
    if answer.ids is not None and not fits(answer.ids):
        return "not_scorable"
    if answer.identity in on_both:
        return "on_both_sides"
    return ""


def pairing_counts(sides: Sequence[PromptSides]) -> dict[str, int]:
    """Counts what prompts gave, and why prompts and answers were left out.

    `both`, `only_with` the behaviour, `only_without`, `neither` count prompts by the
    answers that may be used; `lost_both` those that gave both by the judge's word and
    lost a side; `left_out_<reason>` counts answers.
    """
    counts = {"both": 0, "only_with": 0, "only_without": 0, "neither": 0}
    lost, reasons = 0, Counter()
    for side in sides:
        if side.complete:
            counts["both"] += 1
        elif side.positives:
            counts["only_with"] += 1
        elif side.negatives:
            counts["only_without"] += 1
        else:
            counts["neither"] += 1
        lost += side.graded_both and not side.complete
        reasons.update(side.reasons)
    if lost:
        counts["lost_both"] = lost
    for reason in sorted(reasons):
        counts[f"left_out_{reason}"] = reasons[reason]
    return counts


def jsonl(records: Sequence[dict[str, Any]]) -> str:
    """Returns records as a JSONL file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _record(
    prompt: Prompt,
    positives: Sequence[Answer],
    negatives: Sequence[Answer],
    sampler: str,
) -> dict[str, Any]:
    """Returns a record as `text.pairs` reads it."""
    record: dict[str, Any] = {
        "id": prompt.id,
        "prompt": prompt.prompt,
        "sampler": sampler,
    }
    if prompt.prompt_ids is not None:
        record["prompt_ids"] = [int(i) for i in prompt.prompt_ids]
    for side, answers in (("positive", positives), ("negative", negatives)):
        record[side] = [answer.text for answer in answers]
        ids = [list(answer.ids) for answer in answers if answer.ids is not None]
        if ids:
            record[f"{side}_ids"] = ids
    return record


def _distinct(answers: Sequence[Answer]) -> list[Answer]:
    """Returns the first of every different answer."""
    first: dict[Any, Answer] = {}
    for answer in answers:
        first.setdefault(answer.identity, answer)
    return list(first.values())


def _no_pairs(counts: dict[str, int], prompts: int, samples: int) -> str:
    """Says what the samples gave instead of pairs."""
    left_out = []
    for name, number in counts.items():
        if name.startswith("left_out_"):
            reason = name.removeprefix("left_out_").replace("_", " ")
            left_out.append(f"{number} {reason}")
    lost = ""
    if left_out:
        lost = f" Left out were graded completions: {', '.join(left_out)}."
    return (
        f"no pairs: of {prompts} prompts with {samples} samples each, "
        f"{counts['only_with']} gave the behaviour alone, "
        f"{counts['only_without']} its absence alone, {counts['neither']} nothing that "
        f"could be used, and none both.{lost} "
        "Sample more per prompt (pair_samples), raise the temperature, take prompts on "
        "which the model wavers, or look at the judge's labels"
    )
