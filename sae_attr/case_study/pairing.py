"""Pairs from graded samples: the same prompt answered with the behaviour and without it, both coherent, on-policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_attr.case_study.grading import Graded
from sae_attr.pairs import Prompt


def pair_counts(behaviour_ps: np.ndarray, coherent_ps: np.ndarray) -> dict[str, int]:
    """How many prompts gave what: `both`, `only_with` the behaviour, `only_without`, `neither` (nothing could be graded)."""
    with_p, without_p = (_usable(behaviour_ps, coherent_ps, value).any(1) for value in (1.0, 0.0))
    return {
        "both": int((with_p & without_p).sum()),
        "only_with": int((with_p & ~without_p).sum()),
        "only_without": int((~with_p & without_p).sum()),
        "neither": int((~with_p & ~without_p).sum()),
    }


def _usable(behaviour_ps: np.ndarray, coherent_ps: np.ndarray, value: float) -> np.ndarray:
    """Samples that may stand on one side; incoherent ones never, those of unknown coherence as the behaviour says."""
    return (behaviour_ps == value) & ~(coherent_ps == 0)


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
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Records of a pairs file (see `sae_attr.pairs`), for the first `limit` prompts that gave both, and the counts.

    Token ids are written, so that what was sampled is never encoded again; equal completions of a prompt stand once.

    Args:
      prompt_ids: token ids of the prompts as the sampler saw them.
      graded, texts_r: of `len(prompts) * samples` rows, prompt by prompt.
      sampler: hash of the model that sampled them.

    Raises:
      ValueError: no prompt gave both; says how many of each kind there were and what to change.
    """
    behaviour_ps, coherent_ps = graded.shaped(len(prompts), samples)
    coherent_ps = np.where(
        graded.attempt_r.reshape(behaviour_ps.shape) > 0, np.nan, coherent_ps
    )  # of the first attempt
    counts = pair_counts(behaviour_ps, coherent_ps)
    sides = {name: _usable(behaviour_ps, coherent_ps, value) for name, value in (("positive", 1.0), ("negative", 0.0))}
    chosen = np.flatnonzero(sides["positive"].any(1) & sides["negative"].any(1))[:limit]
    if not len(chosen):
        raise ValueError(
            f"no pairs: of {len(prompts)} prompts with {samples} samples each, {counts['only_with']} gave the behaviour alone, "
            f"{counts['only_without']} its absence alone, {counts['neither']} nothing that could be graded, and none both. "
            "Sample more per prompt (pair_samples), raise the temperature, take prompts on which the model wavers, or look at "
            "the judge's labels"
        )
    records = []
    for p in chosen:
        record: dict[str, Any] = {"id": prompts[p].id, "prompt": prompts[p].prompt, "sampler": sampler}
        record["prompt_ids"] = [int(i) for i in prompt_ids[p]]
        for name, usable_ps in sides.items():
            rows = _distinct(p * samples + np.flatnonzero(usable_ps[p]), graded.tokens_rn)[:per_side]
            record[name] = [texts_r[r] for r in rows]
            record[f"{name}_ids"] = [[int(i) for i in graded.tokens_rn[r] if i >= 0] for r in rows]
        records.append(record)
    return records, counts


def _distinct(rows: np.ndarray, tokens_rn: np.ndarray) -> list[int]:
    """The first row of every different completion; completions without a token are left out."""
    first: dict[bytes, int] = {}
    for r in rows:
        if (tokens_rn[r] >= 0).any():
            first.setdefault(tokens_rn[r].tobytes(), int(r))
    return list(first.values())


def jsonl(records: Sequence[dict[str, Any]]) -> str:
    """Records as a JSONL file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
