"""Held-out documents: activations with the masks of training, and whole texts for the
loss; measured again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from sae_attr.activations import ActivationSource, collector, open_source
from sae_attr.activations.blocks import count_tokens
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.sae.metrics import FitSums, fit, reconstruct_tokens
from sae_attr.sae.model import SAE
from sae_attr.sae_check.measure import splice
from sae_attr.sae_check.sample import MIN_TOKENS, SitePair, TextSample, collect_sample
from sae_attr.text.batching import TextBatch
from sae_attr.text.packed_rows import Packing, rows_at

_AT_ONCE = 16  # documents


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The tokens on which one or more SAEs are measured.

    Args:
      acts: site -> `[k, d]`, tokens that count as in training, row j the same token at
        every site.
      samples: what an SAE stands for -> its text with activations at all positions.
      tokens: of the texts, for the loss.
    """

    acts: dict[Site, np.ndarray]
    samples: dict[Site, TextSample]
    tokens: int


class HeldOutFit(NamedTuple):
    """Sums over the counted tokens, and the share of the loss that the reconstruction
    recovers against mean ablation.
    """

    sums: FitSums
    ce_recovered: float


def collect_held_out(
    params: Params,
    source: ActivationSource,
    documents: range,
    places: Sequence[SitePair],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    tokens: int,
    batch_rows: int = 16,
    beside: int = 0,
) -> HeldOut:
    """Collects activations of about `tokens` positions of whole documents, one a row.

    Args:
      source: of the training; its masks and norm limits hold here too.
      documents: of the source's file (see `token_file.hold_out`).
      places: what is read and written by the SAEs.
      tokens: that count, as far as the documents have so many.
      beside: tokens of the samples whose neighbouring sites are collected too, for the
        SAE check.

    Raises:
      ValueError: fewer than `MIN_TOKENS` tokens of the documents count.
    """
    packing = Packing(
        source.packing.context, documents="cut", row_bos=source.packing.row_bos
    )
    rows = documents_with(source, packing, documents, tokens)
    masks = replace(
        source.masks, outlier=None
    )  # its limits were measured on the training text
    measured = open_source(
        params,
        source.file,
        packing,
        source.sites,
        cfg=cfg,
        mesh=mesh,
        masks=masks,
        rows=rows,
    )
    collected = collector(params, measured, cfg=cfg, mesh=mesh, batch_rows=batch_rows)(
        np.asarray(rows)
    )
    counted_k = np.ones(len(collected.ids_k2), bool)
    for site, limit in source.limits.items():
        counted_k &= np.linalg.norm(collected.acts[site], axis=-1) <= limit
    acts = {site: x_kd[counted_k][:tokens] for site, x_kd in collected.acts.items()}
    check_enough(int(counted_k.sum()), len(documents))
    samples = {}
    for place in places:
        samples[place.write] = collect_sample(
            params,
            _texts(source, packing, rows, mesh.shape["data"], batch_rows, tokens),
            cfg=cfg,
            site=place.write,
            read=place.read,
            mesh=mesh,
            beside=beside,
            masks=source.masks,
            limits=source.limits,
        )
    return HeldOut(acts, samples, tokens)


def documents_with(
    source: ActivationSource, packing: Packing, documents: range, tokens: int
) -> range:
    """Returns the first documents that hold `tokens` tokens that count as far as tokens tell:
    one-word documents need many.

    Raises:
      ValueError: all of them together hold fewer than `MIN_TOKENS`.
    """
    measured, counted, stop = replace(source, packing=packing, rows=documents), 0, 0
    while stop < len(documents) and counted < tokens:
        part = documents[stop : stop + _AT_ONCE]
        counted, stop = counted + count_tokens(measured, part), stop + len(part)
    check_enough(counted, len(documents))
    return documents[:stop]


def check_enough(counted: int, documents: int) -> None:
    """Raises ValueError where too few held-out tokens count to measure on."""
    if counted < MIN_TOKENS:
        raise ValueError(
            f"{counted} tokens of {documents} held-out documents count, too few to "
            f"measure on (at least {MIN_TOKENS}); raise "
            "held_out_share, give more text, or exclude fewer tokens"
        )


def _texts(
    source: ActivationSource,
    packing: Packing,
    rows: range,
    data: int,
    batch_rows: int,
    tokens: int,
) -> Iterator[TextBatch]:
    """Yields batches of whole documents until they hold `tokens` valid positions."""
    size, valid = -(-batch_rows // data) * data, 0
    for start in range(0, len(rows), size):
        if valid >= tokens:
            return
        part = np.full(size, -1)
        part[: len(rows[start : start + size])] = rows[start : start + size]
        packed = rows_at(source.file, part, packing)
        valid += int(packed.valid_bt.sum())
        special_bt = np.isin(packed.tokens_bt, source.file.meta["special_ids"])
        yield TextBatch(packed.tokens_bt, packed.valid_bt, special_bt & packed.valid_bt)


def held_out_fit(
    params: Params,
    sae: SAE,
    held: HeldOut,
    place: SitePair,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
) -> HeldOutFit:
    """Measures an SAE of `place` on the held-out documents."""
    sums = fit(sae, held.acts[place.read], held.acts[place.write])
    sample = held.samples[place.write]
    recon_kd = reconstruct_tokens(sae, sample.acts[place.read]).recon_kd
    _, recovered = splice(
        params, sample, recon_kd, cfg=cfg, mesh=mesh, limit=held.tokens
    )
    return HeldOutFit(sums, recovered["mean"])
