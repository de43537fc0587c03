"""Log-probabilities of continuations, under an edit or without one: what benchmarks of
language models compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits


class Scored(NamedTuple):
    """The score of a continuation.

    Args:
      logp: summed log-probability of its tokens, in nats.
      greedy: whether each of them was the most probable one.
    """

    logp: float
    greedy: bool


def continuation_scores(
    params: Params,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    cfg: LMConfig,
    edits: Mapping[Site, Edit] | None = None,
    batch_size: int = 8,
    multiple: int = 32,
) -> list[Scored]:
    """Scores continuations of contexts.

    Args:
      rows: token ids of a context, at least one, and of its continuation.
      edits: applied at every row alike.
      batch_size: rows that are computed together.
      multiple: lengths are padded to one, so that few shapes are compiled.

    Raises:
      ValueError: a context without a token.
    """
    for number, (context, _) in enumerate(rows):
        if not len(context):
            raise ValueError(
                f"row {number} has no context: begin it with BOS, so that its first "
                "token has a probability"
            )
    lengths = [len(context) + len(continuation) for context, continuation in rows]
    # Rows of like lengths together: a batch is as wide as its longest row.
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    scores: dict[int, Scored] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        width = -(-lengths[members[0]] // multiple) * multiple
        arrays = _arrays([rows[i] for i in members], batch_size, width)
        logp_b, greedy_b = _scores(params, *arrays, edits, cfg=cfg)
        for place, i in enumerate(members):
            scores[i] = Scored(float(logp_b[place]), bool(greedy_b[place]))
    return [scores[i] for i in range(len(rows))]


def _arrays(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, valid and scored, `[b, t]`; rows that are wanting stay empty but
    for one token.
    """
    tokens_bt = np.zeros((batch_size, width), np.int32)
    valid_bt = np.zeros((batch_size, width), bool)
    scored_bt = np.zeros((batch_size, width), bool)
    valid_bt[:, 0] = True
    for b, (context, continuation) in enumerate(rows):
        length = len(context) + len(continuation)
        tokens_bt[b, :length] = [*context, *continuation]
        valid_bt[b, :length] = True
        scored_bt[b, len(context) : length] = True
    return tokens_bt, valid_bt, scored_bt


@partial(jax.jit, static_argnames=("cfg",))
def _scores(
    params: Params,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    scored_bt: jax.Array,
    edits: Mapping[Site, Edit] | None,
    *,
    cfg: LMConfig,
) -> tuple[jax.Array, jax.Array]:
    out = forward(params, tokens_bt, cfg=cfg, valid_bt=valid_bt, edits=edits)

    def one_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden_td, tokens_t, scored_t = row
        # The state of a token predicts the next one.
        logits_tv = logits(params, hidden_td[:-1], cfg=cfg)
        next_t1 = tokens_t[1:, None]
        logp_t = jnp.take_along_axis(jax.nn.log_softmax(logits_tv), next_t1, 1)[:, 0]
        greedy_t = jnp.argmax(logits_tv, axis=-1) == tokens_t[1:]
        logp = jnp.sum(jnp.where(scored_t[1:], logp_t, 0.0))
        return logp, jnp.all(greedy_t | ~scored_t[1:])

    # One row at a time: logits of a whole batch may not fit.
    return jax.lax.map(one_row, (out.hidden_btd, tokens_bt, scored_bt))
