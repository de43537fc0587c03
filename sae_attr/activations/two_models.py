"""Activations of two models on the same tokens, joined: side by side for a crosscoder,
or their difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_attr.activations.blocks import Collect, CountedTokens
from sae_attr.text.masks import REASONS

SIDE_BY_SIDE, DIFFERENCE = "side_by_side", "difference"
JOINS = (SIDE_BY_SIDE, DIFFERENCE)
_KEPT, _OUTLIER = REASONS[0], "norm_outlier"


def joined_collector(base: Collect, tuned: Collect, join: str) -> Collect:
    """Returns a function from row numbers to the tokens that count in both models.

    Args:
      base, tuned: collectors of the two models on one token file, packing and sites.
        Norm limits may differ: a token that is an outlier in one does not count.
      join: "side_by_side" for [base | tuned], twice as wide; "difference" for
        tuned - base.

    Raises:
      ValueError: another join, or activations of different widths.
    """
    if join not in JOINS:
        raise ValueError(f"join {join!r} is unknown; give one of {', '.join(JOINS)}")

    def collect(index: Sequence[int] | np.ndarray) -> CountedTokens:
        first, second = base(index), tuned(index)
        in_first, in_second = _shared(first.ids_k2, second.ids_k2)
        acts = {}
        for site, tuned_kd in second.acts.items():
            base_kd = first.acts[site][in_first]
            acts[site] = joined(base_kd, tuned_kd[in_second], join)
        counts = dict(second.counts)
        lost = int(np.sum(~in_second))
        counts[_KEPT] -= lost
        counts[_OUTLIER] += lost
        return CountedTokens(acts, second.ids_k2[in_second], counts)

    return collect


def joined(base_kd: np.ndarray, tuned_kd: np.ndarray, join: str) -> np.ndarray:
    """Returns the activations of the same tokens as one array, in their dtype.

    Raises:
      ValueError: arrays of different shapes.
    """
    if base_kd.shape != tuned_kd.shape:
        raise ValueError(
            f"activations of the base model have shape {base_kd.shape}, of the "
            f"fine-tuned one {tuned_kd.shape}; the two need one width"
        )
    if join == SIDE_BY_SIDE:
        return np.concatenate([base_kd, tuned_kd], axis=1)
    # In float32: both are long, and their difference is short.
    wide_kd = tuned_kd.astype(np.float32) - base_kd.astype(np.float32)
    return wide_kd.astype(tuned_kd.dtype)


def _shared(first_k2: np.ndarray, second_k2: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns which tokens of each are in both; they are in one order."""
    # One integer a token: rows in the upper half.
    first, second = (
        ids_k2[:, 0] << 32 | ids_k2[:, 1] for ids_k2 in (first_k2, second_k2)
    )
    return np.isin(first, second), np.isin(second, first)
