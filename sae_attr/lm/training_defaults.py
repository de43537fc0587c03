"""Default sizes of a training run, from its number of rows or steps."""

from __future__ import annotations

import math

_STEPS = 100  # that a run should take at least, as far as three epochs allow
_EPOCH_STEPS = 25  # that an epoch should have
_EPOCHS = 3  # more epochs of few rows only memorise them
_EVALUATIONS = 8


def batch_for(packs: int, unit: int) -> int:
    """Returns the rows of a step: 16, or 8 or 4 where an epoch would have fewer than 25 steps; a
    multiple of `unit`.

    Args:
      packs: rows of the training dataset.
      unit: what micro-batches and the mesh ask a batch to be a multiple of.
    """
    batch = 16
    while batch > 4 and packs < batch * _EPOCH_STEPS:
        batch //= 2
    return math.ceil(max(1, min(batch, packs)) / unit) * unit


def epochs_for(packs: int, batch_size: int) -> float:
    """Returns how often every row is seen: 1, or up to 3 where the run would have fewer than
    100 steps.
    """
    steps = math.ceil(packs / batch_size)
    return float(min(_EPOCHS, math.ceil(_STEPS / max(steps, 1))))


def warmup_for(steps: int) -> int:
    """Returns the steps of linear rise: one in twenty, at least one, at most 100; none in a run of
    a single step.
    """
    return min(max(1, min(100, steps // 20)), max(steps - 1, 0))


def pretrain_warmup(steps: int) -> int:
    """Returns the steps of linear rise of a pretraining: 20, at most a quarter of
    them.
    """
    return min(20, steps // 4)


def rank_for(rows: int) -> int:
    """Returns the rank of an adapter: half the square root of the rows, a power of two from 4 to
    32; 8 for 250 rows, 32 for 4,000.
    """
    power = round(math.log2(math.sqrt(max(rows, 1)) / 2))
    return 2 ** min(5, max(2, power))


def evaluate_every(steps: int) -> int:
    """Returns the steps between evaluations on held-out rows: eight in a run, and at least one in
    50 steps.
    """
    return min(50, max(1, steps // _EVALUATIONS))
