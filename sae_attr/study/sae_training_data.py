"""SAEs to be trained from one pass of a language model: their settings, and the
activations that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from etils import epath

from sae_attr import parallel
from sae_attr.activations import (
    SIDE_BY_SIDE,
    ActivationSource,
    BlockStream,
    Masks,
    cached_blocks,
    collector,
    describe,
    joined_collector,
    live_blocks,
    open_source,
    read_index,
    write_cache,
)
from sae_attr.activations.blocks import Collect, measure_limits
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import model_fingerprint
from sae_attr.lm.model import Params
from sae_attr.lm.sites import site_named
from sae_attr.lm.weights import load_lm
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae_check import HeldOut, SitePair, collect_held_out
from sae_attr.sae_check.measure import TRIAL
from sae_attr.settings import settings_from
from sae_attr.study.two_model_data import (
    check_base,
    held_out_source,
    join_of,
    joined_held_out,
)
from sae_attr.text.packed_rows import Packing, hold_out
from sae_attr.text.token_file import TokenFile

CACHE = "activations"  # folder in the workdir


@dataclass(frozen=True)
class SAETrainingSettings:
    """Sets what is trained on.

    Args:
      lm: a Hugging Face folder or hub id.
      lm_base: the model that `lm` was fine-tuned from, read on the same tokens: the
        objectives crosscoder and crosscoder_l1 reconstruct both, any other one the
        difference lm - lm_base.
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
    lm_base: str | None = None
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
    join = join_of(str(sae.get("objective", TrainConfig.objective)), settings.lm_base)
    if join and settings.site_out:
        raise ValueError(
            f"site_out={settings.site_out!r} with lm_base: two models are compared at "
            "one site; leave one of the two out"
        )
    models = 2 if join == SIDE_BY_SIDE else 1
    jobs = []
    for read in sites:
        write = read
        if settings.site_out:
            write = site_named(cfg, settings.site_out)
        fields = {
            **sae,
            "d_in": models * cfg.width(read.point),
            "d_out": models * cfg.width(write.point),
            "transcoder": read != write,
            "streams": models,
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
      join: how activations of two models are joined; "" for one model.
      base_hash: fingerprint of the model before the fine-tune, or "".
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
    join: str = ""
    base_hash: str = ""


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
    join = join_of(jobs[0].cfg.objective, settings.lm_base)
    if join:
        tuned = load_config(str(settings.lm))
        check_base(str(settings.lm_base), tuned, str(settings.lm), file)
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
    lm_hash = model_fingerprint(str(settings.lm))
    collect, base_hash = None, ""
    if join:
        base_hash = model_fingerprint(str(settings.lm_base))
        collector_of = _joined_collectors(settings, params, source, join, mesh)
        collect = collector_of(source)
        held = held_out_source(source, documents)
        held_out = joined_held_out(
            collector_of(held), held, documents, settings.eval_tokens
        )
    else:
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
    masked = None
    if settings.cache:
        folder = workdir / CACHE
        both = f"{lm_hash} {join} {base_hash}".strip()
        blocks = _cached(
            settings,
            params,
            source,
            folder,
            cfg=cfg,
            mesh=mesh,
            lm_hash=both,
            collect=collect,
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
            collect=collect,
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
        join=join,
        base_hash=base_hash,
    )


def _joined_collectors(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    join: str,
    mesh: jax.sharding.Mesh,
) -> Callable[[ActivationSource], Collect]:
    """Returns what makes the collector of both models from a source of the fine-tuned
    one; the base model has norm limits of its own.
    """
    cfg, base_params = load_lm(str(settings.lm_base), mesh=mesh, dtype=settings.dtype)
    limits = measure_limits(
        base_params,
        source,
        cfg=cfg,
        mesh=mesh,
        batch_rows=settings.batch_rows,
        seed=settings.seed,
    )

    def collector_of(source: ActivationSource) -> Collect:
        one = partial(collector, cfg=cfg, mesh=mesh, batch_rows=settings.batch_rows)
        base = one(base_params, replace(source, limits=limits))
        return joined_collector(base, one(params, source), join)

    return collector_of


def _cached(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    folder: epath.Path,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    lm_hash: str,
    collect: Collect | None,
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
        collect=collect,
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
    two_models = {}
    if data.join:
        two_models = {"lm_base": data.base_hash, "join": data.join}
    return {
        **facts,
        **two_models,
        "masks": masks,
        "lm": data.lm_hash,
        "lm_dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "cache": settings.cache,
        "buffer_tokens": settings.buffer_tokens,
        "shard_tokens": settings.shard_tokens,
    }
