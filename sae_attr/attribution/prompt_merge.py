"""Counted tokens merged within each prompt, and Δ per prompt for some latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from sae_attr.attribution.scores import token_scores
from sae_attr.attribution.token_table import (
    BLOCK,
    TokenTable,
    block_length,
    padded,
    token_weights,
    zeros,
)
from sae_attr.text.rows import ROLES, TokenRow


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """Counted tokens with their weights folded into the gradients, prompt tokens shared
    by completions merged.

    On a shared prompt a_t is the same for C and C', so only the weighted sum of
    gradients matters:
    `reads_jd` is what the SAE encodes, the activations unless it is a transcoder.
    `grads_jd` = Σ_rows ± g / (completions of that side · T_row). The mean over prompts
    of the sums of δ is Δ.
    """

    acts_jd: np.ndarray
    grads_jd: np.ndarray
    prompt_j: np.ndarray
    role_j: np.ndarray
    prompts: int
    reads_jd: np.ndarray


def merge(
    table: TokenTable, scope: str, exclude: frozenset[str] = frozenset()
) -> MergedTokens:
    """Merges the tokens of each prompt's completions for one token scope (host arrays)."""
    weights_k = token_weights(table.rows, scope, exclude)
    by_prompt: dict[int, list[int]] = {}
    for index, row in enumerate(table.rows):
        by_prompt.setdefault(row.pair, []).append(index)
    parts = [
        _merge_prompt(table, weights_k * len(by_prompt), members)
        for members in by_prompt.values()
    ]
    acts, grads, roles, reads = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    prompt_j = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    return MergedTokens(acts, grads, prompt_j, roles, len(parts), reads)


def _merge_prompt(
    table: TokenTable, weights_k: np.ndarray, members: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Acts, weighted gradients, roles and inputs of one prompt's tokens: the common
    prefix once, the rest row by row.
    """
    rows = [table.rows[i] for i in members]
    shared = _common_prefix(rows)
    weights = [weights_k[table.tokens_of(i)] for i in members]
    grads = [
        table.grads_kd[table.tokens_of(i)] * w[:, None]
        for i, w in zip(members, weights, strict=True)
    ]
    all_acts = _joined([table.acts_kd[table.tokens_of(i)] for i in members], shared)
    reads = table.inputs_kd
    all_reads = (
        all_acts
        if reads is None
        else _joined([reads[table.tokens_of(i)] for i in members], shared)
    )
    all_grads = np.concatenate(
        [sum(g[:shared] for g in grads), *(g[shared:] for g in grads)]
    )
    all_roles = np.concatenate(
        [rows[0].roles[:shared], *(row.roles[shared:] for row in rows)]
    )
    used = np.concatenate(
        [
            np.any([w[:shared] != 0 for w in weights], axis=0),
            *(w[shared:] != 0 for w in weights),
        ]
    )
    return all_acts[used], all_grads[used], all_roles[used], all_reads[used]


def _joined(arrays: Sequence[np.ndarray], shared: int) -> np.ndarray:
    """The first `shared` entries once, then what follows them in each array."""
    return np.concatenate([arrays[0][:shared], *(a[shared:] for a in arrays)])


def _common_prefix(rows: Sequence[TokenRow]) -> int:
    """How many prompt tokens all rows share: a token that straddles the border can make
    prompts differ at their end.
    """
    length = min(row.n_prompt for row in rows)
    same = np.all([row.ids[:length] == rows[0].ids[:length] for row in rows], axis=0)
    return int(np.argmin(same)) if not same.all() else length


def prompt_scores(
    merged: MergedTokens,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    *,
    gating: str = "both",
    by_role: bool = False,
) -> np.ndarray:
    """Computes Δ within each prompt for some latents: `[p, n]`, or `[p, roles, n]` split
    by the role of the tokens.

    The mean over prompts is the ranking's Δ. `gated` equals `both` here; the gate is
    one decision per latent. Memory is `BLOCK * n` numbers: meant for candidates, or for
    chunks of a dictionary.
    """
    groups = len(ROLES) if by_role else 1
    segment_j = merged.prompt_j * groups + (merged.role_j if by_role else 0)
    total = zeros((merged.prompts * groups, dec_nd.shape[0]))
    block = block_length(len(segment_j), BLOCK)
    for start in range(0, len(segment_j), block):
        part = slice(start, start + block)
        acts, grads = (
            padded(x[part], block) for x in (merged.acts_jd, merged.grads_jd)
        )
        segments = np.pad(segment_j[part], (0, block - len(segment_j[part])))
        total = _add_block(total, acts, grads, segments, dec_nd, mean_d, gating=gating)
    shape = (merged.prompts, groups, -1) if by_role else (merged.prompts, -1)
    return np.asarray(total).reshape(shape)


@partial(jax.jit, static_argnames="gating")
def _add_block(
    total: jax.Array,
    acts: jax.Array,
    grads: jax.Array,
    segments: jax.Array,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    *,
    gating: str,
) -> jax.Array:
    """Adds a block's scores to the sums of their segments `[segments, n]`."""
    scores = token_scores(
        acts, grads, dec_nd, mean_d, gating
    )  # padding has zero gradients, so it adds zero
    return total + jax.ops.segment_sum(scores, segments, num_segments=total.shape[0])
