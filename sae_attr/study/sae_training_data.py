"""SAEs to be trained from one pass of a language model: their settings, and the
activations that they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sae_attr import parallel
from sae_attr.activations import (
    ActivationSource,
    BlockStream,
    Masks,
    cached_blocks,
    describe,
    live_blocks,
    open_source,
    read_index,
    write_cache,
)
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_folder import model_fingerprint
from sae_attr.lm.model import Params
from sae_attr.lm.sites import site_named
from sae_attr.lm.weights import load_lm
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae_check import HeldOut, SitePair, collect_held_out
from sae_attr.sae_check.measure import TRIAL
from sae_attr.settings import settings_from
from sae_attr.text.packed_rows import Packing, hold_out
from sae_attr.text.token_file import TokenFile

CACHE = "activations"  # folder in the workdir


@dataclass(frozen=True)
class SAETrainingSettings:
    """What is trained on.

    Args:
      lm: a Hugging Face folder or hub id.
      corpus: text, or a folder that `write_tokens` made.
      site: where the SAE reads, for instance layer2.resid_post; several, separated by
        commas, get an SAE each.
      site_out: where a transcoder writes.
      tokens: that are trained on; more than the corpus has: several epochs.
      batch_size: tokens a step.
      column: of tables.
      split: of dataset folders.
      append_eos: to documents.
      prepend_bos: to documents; None: as the tokenizer does.
      max_tokens: of the corpus.
      held_out_share: of the rows, at the end; they are what the results are measured
        on.
      eval_tokens: held-out tokens that are measured.
      cache: activations on disk, no more than `tokens` need; False: the model runs while the SAE trains.
      buffer_tokens: that are shuffled.
      shard_tokens: of a file of the cache.
      batch_rows: rows of a forward pass.
      act_dtype: of cached activations: float32 | bfloat16 | float16.
      dtype: of the language model.
      seed: of weights and order.
    """

    lm: str | None = None
    corpus: str | None = None
    site: str | None = None
    site_out: str | None = None
    tokens: int = 10_000_000
    batch_size: int = 4096
    column: str = "text"
    split: str | None = None
    append_eos: bool = False
    prepend_bos: bool | None = None
    max_tokens: int | None = None
    held_out_share: float = 0.05
    eval_tokens: int = 8192
    cache: bool = True
    buffer_tokens: int = 1 << 18
    shard_tokens: int = 1 << 16
    batch_rows: int = 16
    act_dtype: str = "float32"
    dtype: str = "float32"
    seed: int = 0


# ---- the SAEs ------------------------------------------------------------------------


@dataclass(frozen=True)
class SAEJob:
    """One SAE to train: the sites that it reads and stands for, and its settings."""

    sites: SitePair
    cfg: TrainConfig

    @property
    def target(self) -> Site | None:
        """Returns the other site of a transcoder."""
        return self.sites.write if self.cfg.transcoder else None


def sae_jobs(
    settings: SAETrainingSettings, sae: Mapping[str, Any], cfg: LMConfig
) -> list[SAEJob]:
    """Returns the SAEs that the settings describe, in the order of their sites.

    Args:
      sae: fields of `TrainConfig`, less those that follow from the settings.
      cfg: of the language model.

    Raises:
      ValueError: sites or sizes that cannot be.
    """
    names = str(settings.site).split(",")
    sites = [site_named(cfg, name.strip()) for name in names]
    if len(set(sites)) < len(sites) or (len(sites) > 1 and settings.site_out):
        raise ValueError(
            f"site={settings.site!r}, site_out={settings.site_out!r}: each site once, "
            "and one for a transcoder"
        )
    if settings.tokens < settings.batch_size or settings.batch_size < 1:
        raise ValueError(
            f"{settings.tokens} tokens are no batch of {settings.batch_size}; give "
            "more tokens"
        )
    jobs = []
    for read in sites:
        write = read
        if settings.site_out:
            write = site_named(cfg, settings.site_out)
        fields = {
            **sae,
            "d_in": cfg.width(read.point),
            "d_out": cfg.width(write.point),
            "transcoder": read != write,
            "steps": settings.tokens // settings.batch_size,
            "seed": settings.seed,
        }
        train_cfg = settings_from(TrainConfig, fields, where="config.sae")
        jobs.append(SAEJob(SitePair(read, write), train_cfg))
    return jobs


# ---- what they share -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SAETrainingData:
    """The model, its activations, and the held-out text.

    Args:
      lm_hash: fingerprint of the model.
      source: tokens, sites and masks of the activations.
      blocks: the stream of activations.
      masked: counts of tokens by mask; None where activations are not stored.
      documents: of the corpus that are held out.
    """

    settings: SAETrainingSettings
    cfg: LMConfig
    params: Params
    mesh: jax.sharding.Mesh
    lm_hash: str
    source: ActivationSource
    blocks: BlockStream
    masked: dict[str, int] | None
    documents: range
    held_out: HeldOut


def open_training_data(
    settings: SAETrainingSettings,
    jobs: Sequence[SAEJob],
    file: TokenFile,
    workdir: epath.Path,
    *,
    masks: Masks,
    packing: Packing,
    mesh: jax.sharding.Mesh,
) -> SAETrainingData:
    """Loads the model, holds out documents and collects activations.

    Args:
      file: tokens of the corpus.
      workdir: where the cache of activations lies, if there is one.
    """
    rows, documents = hold_out(file, packing, settings.held_out_share)
    cfg, params = load_lm(str(settings.lm), mesh=mesh, dtype=settings.dtype)
    pairs = [job.sites for job in jobs]
    # Not a set: the order is part of `stream_identity`, and must not change from run to
    # run.
    sites = dict.fromkeys(site for pair in pairs for site in pair)
    source = open_source(
        params,
        file,
        packing,
        tuple(sites),
        cfg=cfg,
        mesh=mesh,
        masks=masks,
        rows=rows,
        dtype=settings.act_dtype,
        batch_rows=settings.batch_rows,
        seed=settings.seed,
    )
    held_out = collect_held_out(
        params,
        source,
        documents,
        pairs,
        cfg=cfg,
        mesh=mesh,
        tokens=settings.eval_tokens,
        batch_rows=settings.batch_rows,
        beside=TRIAL,
    )
    lm_hash = model_fingerprint(str(settings.lm))
    masked = None
    if settings.cache:
        folder = workdir / CACHE
        blocks = _cached(
            settings, params, source, folder, cfg=cfg, mesh=mesh, lm_hash=lm_hash
        )
        masked = read_index(folder)["counts"]
    else:
        blocks = live_blocks(
            params,
            source,
            cfg=cfg,
            mesh=mesh,
            buffer_tokens=settings.buffer_tokens,
            batch_rows=settings.batch_rows,
            seed=settings.seed,
        )
    return SAETrainingData(
        settings=settings,
        cfg=cfg,
        params=params,
        mesh=mesh,
        lm_hash=lm_hash,
        source=source,
        blocks=blocks,
        masked=masked,
        documents=documents,
        held_out=held_out,
    )


def _cached(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    folder: epath.Path,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    lm_hash: str,
) -> BlockStream:
    """Writes what is missing of the cache of activations, and returns its stream."""
    write_cache(
        folder,
        params,
        source,
        cfg=cfg,
        mesh=mesh,
        lm=lm_hash,
        tokens=settings.tokens,
        shard_tokens=settings.shard_tokens,
        batch_rows=settings.batch_rows,
        seed=settings.seed,
        progress=parallel.is_main(),
    )
    return cached_blocks(
        folder, buffer_tokens=settings.buffer_tokens, seed=settings.seed
    )


def stream_identity(data: SAETrainingData) -> dict[str, Any]:
    """Returns everything that determines the batches; a run that goes on must have the
    same.
    """
    facts = describe(data.source)
    # Norm limits are measured, and their last bits follow the mesh; a run may go on on
    # another mesh.
    masks = dict(facts["masks"])
    masks.pop("norm_limits", None)
    settings = data.settings
    return {
        **facts,
        "masks": masks,
        "lm": data.lm_hash,
        "lm_dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "cache": settings.cache,
        "buffer_tokens": settings.buffer_tokens,
        "shard_tokens": settings.shard_tokens,
    }
