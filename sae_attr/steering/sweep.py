"""Sampling the rows of a plan, one taking the place of another that ended, and going
on after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.lm.cache import check_room
from sae_attr.lm.decode import Rows, check_finite
from sae_attr.lm.params import Params, room_for_copy, unstacked, weights_dtype
from sae_attr.parallel import from_main, shard_batch, to_host
from sae_attr.steering.plan import SweepRow, row_keys
from sae_attr.steering.rolling import admit, decode, empty_rows
from sae_attr.steering.sampler import Sampler
from sae_attr.steering.waiting import Waiting
from sae_attr.store import Progress

_REFILL = 8  # a sweep stops to fill its places when one in so many is free


@dataclass(frozen=True)
class SampledRow:
    """One completion.

    Args:
      ids: token ids, without the stop token that ended it.
      stopped: a stop token ended it; else it is cut at the limit.
      logp: log-probability in nats of all drawn tokens, the stop token's among them,
        under the steered model.
    """

    row: SweepRow
    ids: tuple[int, ...]
    stopped: bool
    logp: float


SampleBatches = Callable[[Sequence[SweepRow]], Iterable[list[SampledRow]]]
"""Samples rows in any order, a batch at a time; `sample_batches` of a `Sampler`."""


def sample_batches(
    sampler: Sampler, rows: Sequence[SweepRow]
) -> Iterator[list[SampledRow]]:
    """Yields the completions of rows, as they end: the place of one that ended is taken
    by the next, so that a long answer keeps no others waiting.

    Rows are taken prompt by prompt. A prompt is read once below the edited layer, and
    once from there on for all samples of an arm.

    Raises:
      ValueError: from `steer`; a latent without a vector; a batch that the mesh does
        not divide; a cache that its devices cannot hold.
    """
    if not rows:
        return
    programs = sampler.programs
    places: list[SweepRow | None] = [None] * sampler.batch_size
    dtype = weights_dtype(sampler.params)
    check_room(
        sampler.cfg,
        rows=len(places),
        slots=programs.slots,
        dtype=dtype,
        mesh=sampler.mesh,
    )
    state = empty_rows(programs, rows=len(places), dtype=dtype)
    params = _for_steps(sampler)
    waiting = Waiting(sampler, rows)
    while True:
        state = _fill(sampler, state, places, waiting)
        if not any(places):
            return
        # With rows that wait, some free places are worth a stop; else all must end.
        few = len(places) - max(1, len(places) // _REFILL) if waiting else 0
        steering = sampler.steering(places)
        state = decode(params, state, steering, few, programs=programs)
        ended = _ended(state, places)
        if ended:
            yield ended


def _for_steps(sampler: Sampler) -> Params:
    """The parameters that steps of one token run with: a copy with each layer's arrays
    by themselves, where the devices have room for it.
    """
    size = 0
    for leaf in jax.tree.leaves(sampler.params["blocks"]):
        shape = leaf.sharding.shard_shape(leaf.shape)
        size += math.prod(shape) * leaf.dtype.itemsize
    if room_for_copy(size, sampler.mesh):
        return unstacked(sampler.params, cfg=sampler.cfg)
    return sampler.params


def _fill(
    sampler: Sampler, state: Rows, places: list[SweepRow | None], waiting: Waiting
) -> Rows:
    """Returns the state with waiting rows in all free places; `places` says which."""
    free = [b for b, row in enumerate(places) if row is None]
    while free and waiting:
        arms, taken = waiting.take(len(free))
        fresh_b = np.zeros(len(places), bool)
        arm_b = np.zeros(len(places), np.int32)
        for row, arm in taken:
            b = free.pop(0)
            places[b], fresh_b[b], arm_b[b] = row, True, arm
        keys_b = row_keys(sampler.key, places)
        state = admit(
            state,
            arms,
            sampler.placed(places),
            *shard_batch((keys_b, fresh_b, arm_b), sampler.mesh),
            programs=sampler.programs,
        )
    return state


def _ended(state: Rows, places: list[SweepRow | None]) -> list[SampledRow]:
    """Returns the completions of rows that ended, whose places are free from now on."""
    done, alive_b = to_host((state.done, state.alive_b))
    ended_b = [row is not None and not alive_b[b] for b, row in enumerate(places)]
    names = []
    for row, ended in zip(places, ended_b, strict=True):
        names.append(row.id if row is not None and ended else None)
    check_finite(done, names)
    sampled = []
    for b, row in enumerate(places):
        if row is not None and ended_b[b]:
            stopped = bool(done.stopped_b[b])
            length = int(done.length_b[b]) - stopped  # without the stop token
            ids = tuple(done.tokens_bn[b, :length].tolist())
            logp = float(done.logp_bn[b].sum())
            sampled.append(SampledRow(row, ids, stopped, logp))
            places[b] = None
    return sampled


# ---- going on after a kill -----------------------------------------------------------


def sample_rows(
    rows: Sequence[SweepRow],
    sample: SampleBatches,
    progress: Progress,
    *,
    name: str = "sample",
    bar: bool = True,
) -> list[SampledRow]:
    """Samples rows and returns them in order; those that were finished before a kill
    are not sampled again.

    A row's completion depends on the row alone, so it does not matter in which batch it
    is sampled.

    Args:
      sample: `functools.partial(sample_batches, sampler)`.
      progress: of the stage; a batch is kept there as soon as it is sampled.
      name: of the bar.
      bar: show it.
    """
    ids = [row.id for row in rows]
    finished = {}
    for record in progress.rows(("id", "ids", "stopped", "logp")):
        finished[record["id"]] = record
    done = _agreed([name in finished for name in ids])
    left = []
    for row, is_done in zip(rows, done, strict=True):
        if not is_done:
            left.append(row)
    total = len(rows)
    with tqdm(
        total=total, initial=total - len(left), desc=name, unit="row", disable=not bar
    ) as shown:
        for batch in sample(left) if left else ():
            records = [record_of(sampled) for sampled in batch]
            progress.append(records)
            finished |= {record["id"]: record for record in records}
            shown.update(len(records))
    return [
        sampled_of(row, finished[name]) for row, name in zip(rows, ids, strict=True)
    ]


def _agreed(done: Sequence[bool]) -> list[bool]:
    """Returns which rows process 0 found done: processes that see a file at different times
    must not go different ways.
    """
    # One question settles the usual case, in which nothing was stored before.
    if not from_main(any(done)):
        return [False] * len(done)
    return [from_main(is_done) for is_done in done]


def record_of(sampled: SampledRow) -> dict[str, Any]:
    """Returns a completion as progress keeps it."""
    return {
        "id": sampled.row.id,
        "ids": list(sampled.ids),
        "stopped": sampled.stopped,
        "logp": sampled.logp,
    }


def sampled_of(row: SweepRow, record: Mapping[str, Any]) -> SampledRow:
    """Returns a completion from its record; the inverse of `record_of`."""
    return SampledRow(row, tuple(record["ids"]), record["stopped"], record["logp"])
