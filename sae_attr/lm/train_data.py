"""Rows by step number: which rows a step trains on, in an order that each epoch draws
anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np

from sae_attr.lm.next_token import TokenBatch
from sae_attr.text.example_records import Example
from sae_attr.text.packed_rows import PackedRows, Packing, row_count, rows_at
from sae_attr.text.packing import pack, packed_arrays
from sae_attr.text.token_file import TokenFile

R = TypeVar("R")
_ROW_MULTIPLE = 32  # of the tokens of a row of examples
_TARGET_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class RowDataset:
    """Token rows that are read by number.

    Args:
      count: how many there are.
      rows: row numbers [b], -1 for a row of padding -> the batch `[b, ...]`.
      width: tokens of a row, padding included.
    """

    count: int
    rows: Callable[[np.ndarray], TokenBatch]
    width: int


def row_numbers(step: int, *, count: int, batch: int, seed: int) -> np.ndarray:
    """Returns the row numbers [batch] of one step.

    Each epoch takes every row once, in an order of its own; epochs follow without a
    gap.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = places // count
    numbers = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        # A generator of the epoch's own, not one that runs on: a run that was killed
        # draws the same rows without drawing those before.
        order = np.random.default_rng([seed, int(epoch)]).permutation(count)
        inside = epochs == epoch
        numbers[inside] = order[places[inside] % count]
    return numbers


def step_batch(
    dataset: RowDataset, step: int, *, batch_size: int, micro: int, seed: int
) -> TokenBatch:
    """Returns the rows of a step as micro-batches `[m, b / m, ...]`.

    Raises:
      ValueError: a batch that cannot be cut into so many.
    """
    if batch_size % micro:
        raise ValueError(
            f"a batch of {batch_size} rows cannot be cut into {micro} micro-batches; "
            "use a divisor"
        )
    numbers = row_numbers(step, count=dataset.count, batch=batch_size, seed=seed)

    def cut(x: np.ndarray) -> np.ndarray:
        return x.reshape(micro, batch_size // micro, *x.shape[1:])

    return jax.tree.map(cut, dataset.rows(numbers))


def all_batches(dataset: RowDataset, batch_size: int) -> list[TokenBatch]:
    """Returns every row once, in order, the last batch filled up with padding: for
    held-out losses.
    """
    batches = []
    for first in range(0, dataset.count, batch_size):
        numbers = np.arange(first, first + batch_size)
        numbers = np.where(numbers < dataset.count, numbers, -1)
        batches.append(dataset.rows(numbers))
    return batches


def split_rows(
    rows: Sequence[R], held_out_share: float, seed: int
) -> tuple[list[R], list[R]]:
    """Returns the rows to train on and the held-out ones, drawn at random, both in the
    order of the file.

    Raises:
      ValueError: no row is left to train on.
    """
    count = math.ceil(held_out_share * len(rows))
    if count >= len(rows):
        raise ValueError(
            f"held_out_share={held_out_share} leaves no row of {len(rows)} to train "
            "on; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    is_held_out = np.zeros(len(rows), bool)
    is_held_out[order[:count]] = True
    train = [row for row, held_out in zip(rows, is_held_out) if not held_out]
    return train, [row for row, held_out in zip(rows, is_held_out) if held_out]


def example_dataset(
    examples: Sequence[Example], *, context: int, packed: bool = True, seed: int = 0
) -> RowDataset:
    """Returns rows of supervised examples: several in one row, which do not see each
    other, or with `packed=False` a row for each.
    """
    if packed:
        lengths = [len(example.ids) for example in examples]
        packs = pack(lengths, context, seed=seed)
    else:
        packs = [[i] for i in range(len(examples))]
    tokens = max(sum(len(examples[i].ids) for i in members) for members in packs)
    targets = 0
    for members in packs:
        targets = max(targets, sum(int(examples[i].loss_mask.sum()) for i in members))
    # One shape for all batches, so that one program is compiled; rounded, so that a few
    # examples more or less do not make another.
    width = min(_rounded_up(tokens, _ROW_MULTIPLE), context)
    targets = _rounded_up(targets, _TARGET_MULTIPLE)

    def rows(numbers: np.ndarray) -> TokenBatch:
        members = [packs[number] if number >= 0 else [] for number in numbers]
        arrays = packed_arrays(examples, members, width=width, targets=targets)
        return TokenBatch(**arrays)

    return RowDataset(len(packs), rows, width)


def token_dataset(
    file: TokenFile, packing: Packing, *, first: int, stop: int
) -> RowDataset:
    """Returns rows `first` to `stop` of a token file; every token with something before
    it in its segment is a target.
    """

    def rows(numbers: np.ndarray) -> TokenBatch:
        inside = np.where(numbers >= 0, numbers + first, -1)
        return _predict_all(rows_at(file, inside, packing))

    return RowDataset(stop - first, rows, packing.context)


def split_tokens(
    file: TokenFile, packing: Packing, held_out_share: float
) -> tuple[RowDataset, RowDataset | None]:
    """Returns the rows of a token file to train on, and its last ones as held-out rows;
    None where the share is 0.

    Raises:
      ValueError: no row is left to train on.
    """
    count = row_count(file, packing)
    held_out = math.ceil(held_out_share * count)
    if held_out >= count:
        raise ValueError(
            f"held_out_share={held_out_share} leaves none of {count} rows to train on; "
            "lower it"
        )
    first = count - held_out
    train = token_dataset(file, packing, first=0, stop=first)
    if not held_out:
        return train, None
    return train, token_dataset(file, packing, first=first, stop=count)


def _predict_all(rows: PackedRows) -> TokenBatch:
    valid_bt = np.asarray(rows.valid_bt)
    segment_bt = np.where(valid_bt, rows.segment_bt, -1).astype(np.int32)
    same_segment = segment_bt[:, 1:] == segment_bt[:, :-1]
    target_valid_bc = valid_bt[:, 1:] & same_segment
    positions = np.arange(1, valid_bt.shape[1], dtype=np.int32)
    target_bc = np.broadcast_to(positions, target_valid_bc.shape)
    return TokenBatch(
        rows.tokens_bt, rows.pos_bt, segment_bt, target_bc, target_valid_bc
    )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
