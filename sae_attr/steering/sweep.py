"""Running the rows of a plan batch by batch, in one compiled program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.sample import Sampling, check_prompts, make_prompts, prompt_width
from sae_attr.parallel import shard_batch
from sae_attr.sae.model import SAE
from sae_attr.steering.plan import NONE, Row, batches, row_keys
from sae_attr.steering.steered import steer


@dataclass(frozen=True)
class Done:
    """One completion that was made.

    Args:
      ids: token ids, without the stop token that ended it.
      stopped: whether a stop token ended it; else it is cut at the limit.
      logp: log-probability in nats of all drawn tokens, the stop token's among them,
        under the steered model.
    """

    row: Row
    ids: tuple[int, ...]
    stopped: bool
    logp: float


def sweep(
    params: Params,
    rows: Sequence[Row],
    prompts: Mapping[str, Sequence[int]],
    vectors: Mapping[int, Any] | SAE,
    key: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    mode: str = "add",
    sampling: Sampling = Sampling(),
    unit: float = 1.0,
    skip: int = 0,
) -> Iterator[list[Done]]:
    """Completions of the rows, a batch at a time, in the order of `plan.batches`.

    Args:
      prompts: token ids by prompt id; all batches are as wide as the longest of them,
        whichever rows are left, so that a continued run computes what an uninterrupted
        one would.
      vectors: direction `[d]` of every latent that occurs; or an SAE, for its unit
        decoder rows, and for mode clamp.
      batch_size: rows at a time; a multiple of the mesh's data axis.
      mode, unit, skip: as for `steer`.

    Raises:
      ValueError: from `steer`; a latent without a vector.
    """
    width = prompt_width(
        [len(ids) for ids in prompts.values()], cfg=cfg, sampling=sampling
    )
    for batch in batches(rows, batch_size):
        latents_b = np.array([row.latent if row else NONE for row in batch])
        table = make_prompts(
            [list(prompts[row.prompt]) if row else [] for row in batch], width=width
        )
        check_prompts(cfg, table)
        strengths_b = np.array(
            [row.strength if row else 0.0 for row in batch], np.float32
        )
        directions = (
            latents_b
            if isinstance(vectors, SAE)
            else _stacked(vectors, latents_b, cfg.width(site.point))
        )
        placed = shard_batch((table, strengths_b, row_keys(key, batch)), mesh)
        out = steer(
            params,
            placed[0],
            directions,
            placed[1],
            placed[2],
            cfg=cfg,
            site=site,
            mode=mode,
            tokens=next(row.tokens for row in batch if row) or "all",
            sampling=sampling,
            unit=unit,
            skip=skip,
            sae=vectors if isinstance(vectors, SAE) else None,
            names=[row and row.id for row in batch],
        )
        text_b = out.length_b - out.stopped_b  # without the stop token
        yield [
            Done(
                row,
                tuple(out.tokens_bn[b, :n].tolist()),
                bool(out.stopped_b[b]),
                float(out.logp_bn[b].sum()),
            )
            for b, (row, n) in enumerate(zip(batch, text_b, strict=True))
            if row
        ]


def _stacked(
    vectors: Mapping[int, Any], latents_b: np.ndarray, width: int
) -> np.ndarray:
    absent = sorted({int(latent) for latent in latents_b} - {NONE, *vectors})
    if absent:
        raise ValueError(
            f"latent {absent[0]} has no vector; there are "
            f"{', '.join(map(str, sorted(vectors))) or 'none'}"
        )
    nought = np.zeros(width, np.float32)
    return np.stack(
        [
            nought if latent == NONE else np.asarray(vectors[int(latent)], np.float32)
            for latent in latents_b
        ]
    )
