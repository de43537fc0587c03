"""Prompts of a batch: tokens and masks of one width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling


@struct.dataclass
class Prompts:
    """Prompts of different lengths: `tokens_bt` int32, and `valid_bt`, True at the
    tokens of each row, which lie together.

    Where they lie does not matter. A row without a token is none, and gets an empty
    completion.
    """

    tokens_bt: Any
    valid_bt: Any


def prompt_width(
    lengths: Sequence[int], *, cfg: LMConfig, sampling: Sampling, multiple: int = 16
) -> int:
    """Returns the slots for prompts of these lengths: the longest, rounded up so that
    few shapes are compiled.

    Where that and `max_new` would pass a model's learned positions, as many slots as
    those leave.
    """
    longest = max(lengths, default=0)
    width = -(-longest // multiple) * multiple
    room = cfg.max_len - sampling.max_new + 1
    return max(longest, min(width, room)) if cfg.learned_pos else width


def make_prompts(
    rows: Sequence[Sequence[int]], *, width: int | None = None, multiple: int = 16
) -> Prompts:
    """Packs token lists into one batch of numpy arrays, padded on the left.

    Args:
      rows: token ids; an empty list makes a row that is none.
      width: slots; None takes the longest row, rounded up to `multiple`, so that few
        shapes are compiled.

    Raises:
      ValueError: no row, or one that is longer than `width`.
    """
    longest = max((len(row) for row in rows), default=0)
    if not longest:
        raise ValueError(
            "no prompt has a token; begin a prompt with BOS where there is no text"
        )
    width = -(-longest // multiple) * multiple if width is None else width
    if longest > width:
        raise ValueError(
            f"a prompt of {longest} tokens does not fit a width of {width}; make it "
            "wider"
        )
    tokens_bt = np.zeros((len(rows), width), np.int32)
    valid_bt = np.zeros((len(rows), width), bool)
    for b, row in enumerate(rows):
        tokens_bt[b, width - len(row) :] = row
        valid_bt[b, width - len(row) :] = True
    return Prompts(tokens_bt, valid_bt)


def prompt_lengths(prompts: Prompts) -> jax.Array:
    """Counts the tokens of each prompt, `[b]`; also the position of the first
    generated token.
    """
    return jnp.sum(jnp.asarray(prompts.valid_bt), axis=1, dtype=jnp.int32)


def check_prompts(cfg: LMConfig, prompts: Prompts) -> None:
    """Raises ValueError for token ids that the embedding lacks; a gather would take
    another row without a word.

    Within jit there is nothing to look at.
    """
    if isinstance(prompts.tokens_bt, Tracer):
        return
    tokens_bt = np.asarray(prompts.tokens_bt)
    wrong_bt = (tokens_bt < 0) | (tokens_bt >= cfg.vocab)
    if wrong_bt.any():
        row, place = (int(i) for i in np.argwhere(wrong_bt)[0])
        raise ValueError(
            f"row {row} has token id {int(prompts.tokens_bt[row, place])}, beyond the "
            f"model's embedding of {cfg.vocab} rows"
        )


def left_padded(prompts: Prompts) -> Prompts:
    """Returns the same rows with padding on their left only, wherever it was."""
    tokens_bt = jnp.asarray(prompts.tokens_bt)
    valid_bt = jnp.asarray(prompts.valid_bt, bool)
    behind_b = jnp.argmax(valid_bt[:, ::-1], axis=1)
    index_bt = (jnp.arange(valid_bt.shape[1]) - behind_b[:, None]) % valid_bt.shape[1]
    moved = partial(jnp.take_along_axis, indices=index_bt, axis=1)
    return Prompts(moved(tokens_bt), moved(valid_bt))
