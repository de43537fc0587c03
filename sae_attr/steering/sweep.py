"""Sampling the rows of a plan, batch by batch in one compiled program, and going on
after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.sample import check_prompts, make_prompts, prompt_width
from sae_attr.parallel import from_main, shard_batch
from sae_attr.sae.model import SAE
from sae_attr.steering.plan import NO_LATENT, SweepRow, batches, row_keys
from sae_attr.steering.steered import steer
from sae_attr.store import Progress


@dataclass(frozen=True, eq=False)
class Sampler:
    """What turns rows into completions.

    Args:
      prompts: token ids by prompt id; all batches are as wide as the longest of them,
        whichever rows are left, so that a continued run computes what an uninterrupted
        one would.
      vectors: direction `[d]` of every latent that occurs; or an SAE, for its unit
        decoder rows, and for modes that set latent activations.
      key: typed random key; a row folds its own numbers into it.
      batch_size: rows at a time; a multiple of the mesh's data axis.
      mode, unit, skip: as for `steer`.
    """

    params: Params
    prompts: Mapping[str, Sequence[int]]
    vectors: Mapping[int, Any] | SAE
    key: jax.Array
    cfg: LMConfig
    site: Site
    mesh: jax.sharding.Mesh
    batch_size: int
    mode: str = "add"
    sampling: Sampling = Sampling()
    unit: float = 1.0
    skip: int = 0


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
    """Yields the completions of rows, a batch at a time, in the order of
    `plan.batches`.

    Raises:
      ValueError: from `steer`; a latent without a vector.
    """
    # Of all prompts, not of those in the batch: one width is one compiled program, and
    # sums over another width differ in their last bits, which can change a drawn token.
    width = prompt_width(
        [len(ids) for ids in sampler.prompts.values()],
        cfg=sampler.cfg,
        sampling=sampler.sampling,
    )
    for batch in batches(rows, sampler.batch_size):
        yield _sampled_batch(sampler, batch, width)


def _sampled_batch(
    sampler: Sampler, batch: Sequence[SweepRow | None], width: int
) -> list[SampledRow]:
    """Samples the completions of one batch, `width` tokens of prompt wide."""
    prompts = [list(sampler.prompts[row.prompt]) if row else [] for row in batch]
    table = make_prompts(prompts, width=width)
    check_prompts(sampler.cfg, table)
    latents_b = np.full(len(batch), NO_LATENT)
    strengths_b = np.zeros(len(batch), np.float32)
    scope = ""
    for b, row in enumerate(batch):
        if row is not None:
            latents_b[b] = row.condition.latent
            strengths_b[b] = row.condition.strength
            scope = scope or row.condition.tokens  # one per batch: `plan.batches`
    sae = sampler.vectors if isinstance(sampler.vectors, SAE) else None
    directions = latents_b if sae is not None else _stacked(sampler, latents_b)
    table, strengths_b, keys_b = shard_batch(
        (table, strengths_b, row_keys(sampler.key, batch)), sampler.mesh
    )
    out = steer(
        sampler.params,
        table,
        directions,
        strengths_b,
        keys_b,
        cfg=sampler.cfg,
        site=sampler.site,
        mode=sampler.mode,
        tokens=scope or "all",
        sampling=sampler.sampling,
        unit=sampler.unit,
        skip=sampler.skip,
        sae=sae,
        names=[row and row.id for row in batch],
    )
    sampled = []
    for b, row in enumerate(batch):
        if row is not None:
            stopped = bool(out.stopped_b[b])
            length = int(out.length_b[b]) - stopped  # without the stop token
            ids = tuple(out.tokens_bn[b, :length].tolist())
            sampled.append(SampledRow(row, ids, stopped, float(out.logp_bn[b].sum())))
    return sampled


def _stacked(sampler: Sampler, latents_b: np.ndarray) -> np.ndarray:
    """Returns the direction of every row `[b, d]`, zeros where nothing is steered."""
    vectors = sampler.vectors
    assert not isinstance(vectors, SAE)  # _sampled_batch
    absent = sorted(set(latents_b.tolist()) - {NO_LATENT, *vectors})
    if absent:
        names = ", ".join(map(str, sorted(vectors)))
        raise ValueError(
            f"latent {absent[0]} has no vector; there are {names or 'none'}"
        )
    width = sampler.cfg.width(sampler.site.point)
    rows_bd = np.zeros((len(latents_b), width), np.float32)
    for b, latent in enumerate(latents_b.tolist()):
        if latent != NO_LATENT:
            rows_bd[b] = vectors[latent]
    return rows_bd


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
            records = [_record(sampled) for sampled in batch]
            progress.append(records)
            finished |= {record["id"]: record for record in records}
            shown.update(len(records))
    return [_sampled(row, finished[name]) for row, name in zip(rows, ids, strict=True)]


def _agreed(done: Sequence[bool]) -> list[bool]:
    """Returns which rows process 0 found done: processes that see a file at different times
    must not go different ways.
    """
    # One question settles the usual case, in which nothing was stored before.
    if not from_main(any(done)):
        return [False] * len(done)
    return [from_main(is_done) for is_done in done]


def _record(sampled: SampledRow) -> dict[str, Any]:
    """Returns a completion as progress keeps it."""
    return {
        "id": sampled.row.id,
        "ids": list(sampled.ids),
        "stopped": sampled.stopped,
        "logp": sampled.logp,
    }


def _sampled(row: SweepRow, record: Mapping[str, Any]) -> SampledRow:
    """Returns a completion from its record; the inverse of `_record`."""
    return SampledRow(row, tuple(record["ids"]), record["stopped"], record["logp"])
