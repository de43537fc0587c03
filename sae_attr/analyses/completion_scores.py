"""Scores of every latent on every completion by itself: Δ of any set of pairs is then a
mean of rows, so that one pass over the tokens serves thousands of drawn sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from sae_attr.attribution.prompt_merge import MergedTokens, prompt_scores
from sae_attr.attribution.token_table import TokenTable, counted
from sae_attr.text.rows import TokenRow

CHUNK = 512  # latents that are scored at a time


class ScoreKind(NamedTuple):
    """A score that is a sum over completions.

    Args:
      name: both | active (sign gatings of Δ) | gradient.
      scope: of tokens: prompt | completion | all.
    """

    name: str
    scope: str

    @property
    def label(self) -> str:
        """Names it in tables and files."""
        return f"{self.name}_{self.scope}"


@dataclass(frozen=True, eq=False)
class SidedScores:
    """Scores within each prompt of the two sides apart: mean over a side's completions
    of their mean over tokens.

    `positive_pn`, `negative_pn`: float32; Δ of the prompts is the mean of the
      differences.
    """

    positive_pn: np.ndarray
    negative_pn: np.ndarray

    def __post_init__(self) -> None:
        if self.positive_pn.shape != self.negative_pn.shape:
            raise ValueError(
                f"positives are {self.positive_pn.shape}, negatives "
                f"{self.negative_pn.shape}; give one row per prompt for either side"
            )

    def __len__(self) -> int:
        return len(self.positive_pn)

    @property
    def difference_pn(self) -> np.ndarray:
        """Δ within each prompt."""
        return self.positive_pn - self.negative_pn


def completion_scores(
    table: TokenTable,
    dec_nd: jax.Array,
    mean_d: jax.Array,
    kind: ScoreKind,
    exclude: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Computes the mean over tokens of a score for every completion, float32 `[r, n]`.

    Args:
      dec_nd: unit decoder rows.
      mean_d: ā.
      exclude: kinds of tokens that count nowhere.

    Raises:
      ValueError: an unknown score or scope, or a completion of which no token counts.
    """
    if kind.name not in ("both", "active", "gradient"):
        raise ValueError(
            f"score {kind.name!r} is no sum over completions; choose both, active or "
            "gradient"
        )
    tokens = _row_tokens(table, kind.scope, exclude)
    if kind.name == "gradient":
        grads_rd = np.zeros((tokens.prompts, dec_nd.shape[1]))
        np.add.at(grads_rd, tokens.prompt_j, tokens.grads_jd)
        return (-grads_rd @ np.asarray(dec_nd, np.float64).T).astype(np.float32)
    parts = []
    for start in range(0, len(dec_nd), CHUNK):
        dec_cd = dec_nd[start : start + CHUNK]
        parts.append(prompt_scores(tokens, dec_cd, mean_d, gating=kind.name))
    return np.concatenate(parts, axis=1)


def _row_tokens(table: TokenTable, scope: str, exclude: frozenset[str]) -> MergedTokens:
    """Returns the counted tokens of every row, each divided by their number in its
    row; a row stands where `prompt_scores` has a prompt.
    """
    masks = counted(table.rows, scope, exclude)
    weights_k = np.concatenate([mask / mask.sum() for mask in masks])
    row_k = np.repeat(np.arange(len(table.rows)), np.diff(table.start_r))
    used = np.flatnonzero(weights_k)
    acts_jd = np.asarray(table.acts_kd[used])
    grads_jd = np.asarray(table.grads_kd[used]) * weights_k[used, None]
    roles_j = np.concatenate([row.roles for row in table.rows])[used]
    return MergedTokens(
        acts_jd,
        grads_jd.astype(np.float32),
        row_k[used],
        roles_j,
        len(table.rows),
        acts_jd,
    )


def token_means(
    rows: Sequence[TokenRow],
    values_kn: np.ndarray,
    scope: str,
    exclude: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Returns the mean over a row's counted tokens of values of every token, `[r, n]`."""
    masks = counted(rows, scope, exclude)
    means, start = [], 0
    for mask in masks:
        means.append(values_kn[start : start + len(mask)][mask].mean(0))
        start += len(mask)
    return np.stack(means)


def sided(scores_rn: np.ndarray, rows: Sequence[TokenRow]) -> SidedScores:
    """Averages the scores of completions within each prompt and side; prompts in the
    order of their pairs.

    Raises:
      ValueError: a prompt without a completion on one side.
    """
    prompts = sorted({row.pair for row in rows})
    means = {}
    for side, name in ((1, "positive"), (-1, "negative")):
        of_side = []
        for pair in prompts:
            members = [
                i for i, row in enumerate(rows) if (row.pair, row.side) == (pair, side)
            ]
            if not members:
                raise ValueError(
                    f"pair {pair} (counted from 0) has no {name}; leave it out"
                )
            of_side.append(scores_rn[members].mean(0))
        means[side] = np.stack(of_side)
    return SidedScores(means[1], means[-1])
