"""Coherence of a case's answers where the judge does not report it: by the unsteered
model's log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_attr.judge import tells_coherence
from sae_attr.parallel import shard_batch, to_host
from sae_attr.steering.coherence import logp_per_token, repetition
from sae_attr.study.case import Case
from sae_attr.text.batching import batches
from sae_attr.text.rows import TokenRow


def measures_coherence(case: Case) -> bool:
    """Returns True if coherence of sampled answers is measured by log-probability,
    since the judge does not report it.
    """
    by = case.study.coherence_by
    if case.study.strengths_by == "exact" or by == "judge":
        return False
    return by == "logp" or not tells_coherence(case.judge)


def no_coherence(case: Case) -> str:
    """Returns the message that says what to do where nothing reports whether answers
    are coherent.
    """
    return (
        f"the judge of case {case.name} does not say whether answers are coherent, "
        "which strengths are chosen by; set "
        "--config.coherence_by=logp, or add a rubric for it, "
        f"--config.cases.{case.name}.judge.coherence=coherence"
    )


def answer_measures(
    case: Case,
    direction: str,
    prompt_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what coherence is decided by, of every answer: the mean log-probability
    under the unsteered model of a direction in nats per token, and repetition; float64
    `[r]` each.

    Args:
      prompt_ids: token ids of every answer's prompt.
      answer_ids: token ids; an answer without any has log-probability NaN.
    """
    rows = []
    for prompt, answer in zip(prompt_ids, answer_ids, strict=True):
        rows.append(_token_row(prompt, answer))
    cfg = case.setup.cfg
    logp_r = np.full(len(rows), np.nan)
    for batch, index_b in batches(
        rows, batch_size=case.runtime.batch_size, context=cfg.max_len
    ):
        placed = shard_batch(batch, case.runtime.mesh)
        logp_b = to_host(logp_per_token(case.params(direction), placed, cfg=cfg))
        filled_b = index_b >= 0
        logp_r[index_b[filled_b]] = logp_b[filled_b]
    return logp_r, np.array([repetition(answer) for answer in answer_ids])


def _token_row(prompt: Sequence[int], answer: Sequence[int]) -> TokenRow:
    """A prompt with its answer, for its log-probability alone: roles do not matter."""
    ids = np.array([*prompt, *answer], np.int32)
    nothing = np.zeros(len(ids), np.int8)
    return TokenRow(
        ids, len(prompt), nothing, nothing.astype(bool), pair=0, side=1, completion=0
    )
