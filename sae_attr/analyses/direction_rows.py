"""Graded answers of a fine-tune as token rows, and what adapters read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.directions import Work
from sae_attr.lm.adapter_states import adapter_states
from sae_attr.lm.config import LMConfig
from sae_attr.lm.params import Params
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.tokens import BOS_ID
from sae_attr.organism.world import DOMAIN_OF, word_ids
from sae_attr.text.batching import RowBatch
from sae_attr.text.pairing import Answer
from sae_attr.text.rows import BOS, COMPLETION, LAST, USER, TokenRow

PADDING = -1


def answer_arrays(
    prompts: Sequence[WorldPrompt], graded: Sequence[Sequence[Answer]]
) -> dict[str, np.ndarray]:
    """Returns the answers that have a grade: `ids_rt`, padded with −1, and of each
    `n_prompt_r`, `prompt_r`, `side_r` (+1 with the behaviour) and `domain_r`, the name
    of its topic's domain.
    """
    index = word_ids()
    ids, n_prompts, prompt_numbers, sides, domains = [], [], [], [], []
    for number, (prompt, answers) in enumerate(zip(prompts, graded, strict=True)):
        prompt_words = prompt.text.split()
        for answer in answers:
            if np.isnan(answer.behaviour):
                continue
            words = [*prompt_words, *answer.text.split()]
            ids.append([BOS_ID, *(index[word] for word in words)])
            n_prompts.append(1 + len(prompt_words))
            prompt_numbers.append(number)
            sides.append(1 if answer.behaviour > 0 else -1)
            domains.append(DOMAIN_OF[prompt.question.topic])
    longest = max((len(row) for row in ids), default=0)
    ids_rt = np.full((len(ids), longest), PADDING, np.int32)
    for r, row in enumerate(ids):
        ids_rt[r, : len(row)] = row
    return {
        "ids_rt": ids_rt,
        "n_prompt_r": np.array(n_prompts, np.int32),
        "prompt_r": np.array(prompt_numbers, np.int32),
        "side_r": np.array(sides, np.int8),
        "domain_r": np.array(domains),
    }


def answer_rows(arrays: Mapping[str, Any]) -> list[TokenRow]:
    """Returns the token rows of `answer_arrays`."""
    rows = []
    for r, padded_t in enumerate(np.asarray(arrays["ids_rt"])):
        ids = padded_t[padded_t != PADDING]
        n_prompt = int(arrays["n_prompt_r"][r])
        roles = np.full(len(ids), USER, np.int8)
        roles[0], roles[n_prompt - 1], roles[n_prompt:] = BOS, LAST, COMPLETION
        special = roles == BOS
        prompt, side = int(arrays["prompt_r"][r]), int(arrays["side_r"][r])
        rows.append(TokenRow(ids, n_prompt, roles, special, prompt, side, r))
    return rows


def answer_states(
    params: Params, work: Work, count: int, *, cfg: LMConfig, layers: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns the mean over an answer's own tokens of what every rank-1 adapter reads,
    name of the matrix -> float64 `[layers, r]`; NaN for an answer without tokens.

    Args:
      params: with the adapter kept apart.
      work: batches of the answers' rows.
      count: of the answers.
      layers: adapted ones.

    Raises:
      ValueError: adapters of a larger rank, which read no scalar.
    """
    ranks = {leaf["a"].shape[-1] for leaf in params["lora"].values()}
    if ranks != {1}:
        raise ValueError(
            f"adapters of rank {max(ranks)} read no single scalar; use rank 1"
        )
    step = jax.jit(partial(_batch_states, cfg=cfg, layers=layers))
    means = {name: np.full((len(layers), count), np.nan) for name in params["lora"]}
    for batch, row_b in work:
        sums, tokens_b = jax.tree.map(np.asarray, step(params, batch))
        counted_b = (row_b >= 0) & (tokens_b > 0)
        for name, sums_lb in sums.items():
            mean_lb = sums_lb[:, counted_b] / tokens_b[counted_b].astype(np.float64)
            means[name][:, row_b[counted_b]] = mean_lb
    return means


def _batch_states(
    params: Params, batch: RowBatch, *, cfg: LMConfig, layers: tuple[int, ...]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns sums over the answers' tokens, `[layers, b]`, and their number."""
    states = adapter_states(
        params, batch.tokens_bt, cfg=cfg, layers=layers, valid_bt=batch.valid_bt
    )
    where_bt = jnp.asarray(batch.completion_bt)
    sums = {}
    for name, state_lbtr in states.items():
        sums[name] = jnp.where(where_bt, state_lbtr[..., 0], 0).sum(-1)
    return sums, where_bt.sum(-1)
