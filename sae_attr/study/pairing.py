"""Pairs out of graded samples: completions of one prompt with the behaviour and without
it, both coherent, on-policy.

What may stand in a pair is decided for every completion before prompts are chosen, on
both sides alike, so that a prompt that is chosen always has a completion on either
side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.study.grading import Graded
from sae_attr.text.pairs import Prompt

WITH, WITHOUT = 1.0, 0.0
_SIDES = (("positive", WITH), ("negative", WITHOUT))

Fits = Callable[[Sequence[int]], bool]
"""Whether the attribution can score a completion of these token ids."""


def any_tokens(ids: Sequence[int]) -> bool:
    """Returns whether a completion has a token at all."""
    return len(ids) > 0


@dataclass(frozen=True, eq=False)
class Sides:
    """Which graded completions may stand on which side of a pair.

    Args:
      value_ps: `WITH`, `WITHOUT`, or NaN for a completion that may stand on neither;
        prompts, samples.
      graded_ps: the same before anything was left out: what the judge said.
      reason_ps: why a graded completion may not stand in a pair; "" where it may, or
        where it was not graded.
    """

    value_ps: np.ndarray
    graded_ps: np.ndarray
    reason_ps: np.ndarray

    def complete(self, values_ps: np.ndarray) -> np.ndarray:
        """Prompts `[p]` that have a completion on both sides."""
        return (values_ps == WITH).any(1) & (values_ps == WITHOUT).any(1)

    def counts(self) -> dict[str, int]:
        """How many prompts gave what, and why prompts and completions were left out.

        `both`, `only_with` the behaviour, `only_without`, `neither` count prompts by
        the completions that may be used; `lost_both` those that gave both by the
        judge's word and lost a side; `left_out_<reason>` counts completions.
        """
        with_p = (self.value_ps == WITH).any(1)
        without_p = (self.value_ps == WITHOUT).any(1)
        both_p = self.complete(self.value_ps)
        out = {
            "both": int(both_p.sum()),
            "only_with": int((with_p & ~without_p).sum()),
            "only_without": int((~with_p & without_p).sum()),
            "neither": int((~with_p & ~without_p).sum()),
        }
        lost = int((self.complete(self.graded_ps) & ~both_p).sum())
        if lost:
            out["lost_both"] = lost
        for reason, number in zip(
            *np.unique(self.reason_ps[self.reason_ps != ""], return_counts=True),
            strict=True,
        ):
            out[f"left_out_{reason}"] = int(number)
        return out


def sides_of(
    graded: Graded, prompts: int, samples: int, fits: Fits = any_tokens
) -> Sides:
    """Decides for every completion whether it may stand in a pair, and on which side.

    Left out are completions that are incoherent, that the attribution cannot score
    (`fits`: none without a token), and those that a judge put on both sides of one
    prompt, which differ in nothing. Where coherence is unknown the grade counts.

    Args:
      graded: of `prompts * samples` rows, prompt by prompt.
    """
    graded_ps, coherent_ps = graded.shaped(prompts, samples)
    attempt_ps = graded.attempt_r.reshape(prompts, samples)
    # Coherence is of the first attempt; a completion sampled again was graded, which
    # incoherent ones are not.
    incoherent_ps = (coherent_ps == 0) & (attempt_ps == 0)
    ids_ps = [tuple(int(i) for i in row[row >= 0]) for row in graded.tokens_rn]
    reason_ps = np.full((prompts, samples), "", dtype="<U16")
    for p in range(prompts):
        row_ids = ids_ps[p * samples : (p + 1) * samples]
        twice = _on_both_sides(row_ids, graded_ps[p])
        for s in range(samples):
            if np.isnan(graded_ps[p, s]):
                continue
            if incoherent_ps[p, s]:
                reason_ps[p, s] = "incoherent"
            elif not row_ids[s]:
                reason_ps[p, s] = "empty"
            elif not fits(row_ids[s]):
                reason_ps[p, s] = "not_scorable"
            elif row_ids[s] in twice:
                reason_ps[p, s] = "on_both_sides"
    return Sides(np.where(reason_ps == "", graded_ps, np.nan), graded_ps, reason_ps)


def _on_both_sides(
    ids_s: Sequence[tuple[int, ...]], graded_s: np.ndarray
) -> set[tuple[int, ...]]:
    """Completions of one prompt that were graded both ways."""
    sides = []
    for value in (WITH, WITHOUT):
        sides.append(
            {ids for ids, grade in zip(ids_s, graded_s, strict=True) if grade == value}
        )
    return sides[0] & sides[1]


def make_pairs(
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    graded: Graded,
    texts_r: Sequence[str],
    *,
    samples: int,
    sampler: str,
    limit: int,
    per_side: int,
    fits: Fits = any_tokens,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Returns records of a pairs file (see `text.pairs`), for the first `limit` prompts
    that gave both, and the counts.

    Token ids are written, so that what was sampled is never encoded again; equal
    completions of a prompt stand once.

    Args:
      prompt_ids: token ids of the prompts as the sampler saw them.
      graded, texts_r: of `len(prompts) * samples` rows, prompt by prompt.
      sampler: hash of the model that sampled them.
      fits: whether the attribution can score a completion.

    Raises:
      ValueError: no prompt gave both; says how many of each kind there were, why they
        were left out and what to change.
    """
    sides = sides_of(graded, len(prompts), samples, fits)
    counts = sides.counts()
    paired = np.flatnonzero(sides.complete(sides.value_ps))[:limit]
    if not len(paired):
        raise ValueError(_no_pairs(counts, len(prompts), samples))
    records = []
    for p in paired:
        record: dict[str, Any] = {
            "id": prompts[p].id,
            "prompt": prompts[p].prompt,
            "sampler": sampler,
        }
        record["prompt_ids"] = [int(i) for i in prompt_ids[p]]
        for name, value in _SIDES:
            rows = p * samples + np.flatnonzero(sides.value_ps[p] == value)
            rows = _distinct(rows, graded.tokens_rn)[:per_side]
            record[name] = [texts_r[r] for r in rows]
            record[f"{name}_ids"] = [
                [int(i) for i in graded.tokens_rn[r] if i >= 0] for r in rows
            ]
        records.append(record)
    return records, counts


def _no_pairs(counts: dict[str, int], prompts: int, samples: int) -> str:
    """Says what the samples gave instead of pairs."""
    left_out = [
        f"{number} {name.removeprefix('left_out_').replace('_', ' ')}"
        for name, number in counts.items()
        if name.startswith("left_out_")
    ]
    lost = (
        f" Left out were graded completions: {', '.join(left_out)}." if left_out else ""
    )
    return (
        f"no pairs: of {prompts} prompts with {samples} samples each, "
        f"{counts['only_with']} gave the behaviour alone, "
        f"{counts['only_without']} its absence alone, {counts['neither']} nothing that "
        f"could be used, and none both.{lost} "
        "Sample more per prompt (pair_samples), raise the temperature, take prompts on "
        "which the model wavers, or look at "
        "the judge's labels"
    )


def _distinct(rows: np.ndarray, tokens_rn: np.ndarray) -> list[int]:
    """The first row of every different completion."""
    first: dict[bytes, int] = {}
    for r in rows:
        first.setdefault(tokens_rn[r].tobytes(), int(r))
    return list(first.values())


def jsonl(records: Sequence[dict[str, Any]]) -> str:
    """Records as a JSONL file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
