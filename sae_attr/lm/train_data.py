"""Rows by step number: which rows a step trains on, in an order that each epoch draws
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.lm.train import Batch
from sae_attr.text.examples import Example, pack, packed_arrays
from sae_attr.text.token_file import Packing, TokenFile, TokenRows, rows_at

RowsOf = Callable[[np.ndarray], Batch]
"""Row numbers [b], -1 for a row of padding -> the batch `[b, ...]`."""


@dataclass(frozen=True, eq=False)
class Feed:
    """Rows that can be had by number.

    Args:
      count: how many there are.
      rows: numbers -> batch.
      width: tokens of a row, padding included.
    """

    count: int
    rows: RowsOf
    width: int


def drawn(step: int, *, count: int, batch: int, seed: int) -> np.ndarray:
    """Row numbers [batch] of one step: each epoch takes every row once, in its own
    order; epochs follow without a gap.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = places // count
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(count)
        for epoch in np.unique(epochs)
    }
    return np.array(
        [orders[epoch][place % count] for epoch, place in zip(epochs, places)]
    )


def step_batch(
    feed: Feed, step: int, *, batch_size: int, micro: int, seed: int
) -> Batch:
    """The rows of a step as micro-batches `[m, b / m, ...]`.

    Raises:
      ValueError: a batch that cannot be cut into so many.
    """
    if batch_size % micro:
        raise ValueError(
            f"a batch of {batch_size} rows cannot be cut into {micro} micro-batches; "
            "use a divisor"
        )
    rows = feed.rows(drawn(step, count=feed.count, batch=batch_size, seed=seed))
    return jax.tree.map(
        lambda x: x.reshape(micro, batch_size // micro, *x.shape[1:]), rows
    )


def all_batches(feed: Feed, batch_size: int) -> list[Batch]:
    """Every row once, in order, the last batch filled up with padding: for held-out
    losses.
    """
    numbers = np.arange(-(-feed.count // batch_size) * batch_size)
    numbers = np.where(numbers < feed.count, numbers, -1).reshape(-1, batch_size)
    return [feed.rows(index) for index in numbers]


def example_feed(
    rows: Sequence[Example], *, context: int, packed: bool = True, seed: int = 0
) -> Feed:
    """Supervised examples, packed (examples of a row do not see each other) or each in
    a row of its own.
    """
    packs = (
        pack([len(row.ids) for row in rows], context, seed=seed)
        if packed
        else [[i] for i in range(len(rows))]
    )
    longest = max(sum(len(rows[i].ids) for i in members) for members in packs)
    targets = max(
        sum(int(rows[i].loss_mask.sum()) for i in members) for members in packs
    )
    width, targets = min(_up(longest, 32), context), _up(targets, 8)
    at = lambda number: packs[number] if number >= 0 else []
    make = lambda index: Batch(
        **packed_arrays(rows, [at(int(i)) for i in index], width=width, targets=targets)
    )
    return Feed(len(packs), make, width)


def token_feed(file: TokenFile, packing: Packing, *, first: int, stop: int) -> Feed:
    """Rows `first` to `stop` of a token file; every token with something before it in
    its segment is learnt.
    """
    shifted = lambda index: np.where(index >= 0, index + first, -1)
    return Feed(
        stop - first,
        lambda index: _whole(rows_at(file, shifted(index), packing)),
        packing.context,
    )


def _whole(rows: TokenRows) -> Batch:
    valid_bt = np.asarray(rows.valid_bt)
    segment_bt = np.where(valid_bt, rows.segment_bt, -1).astype(np.int32)
    learnt_bt = valid_bt.copy()
    learnt_bt[:, 0] = False
    learnt_bt[:, 1:] &= segment_bt[:, 1:] == segment_bt[:, :-1]
    target_bc = np.broadcast_to(
        np.arange(1, valid_bt.shape[1], dtype=np.int32), learnt_bt[:, 1:].shape
    )
    return Batch(rows.tokens_bt, rows.pos_bt, segment_bt, target_bc, learnt_bt[:, 1:])


def _up(number: Any, multiple: int) -> int:
    return -(-int(number) // multiple) * multiple
