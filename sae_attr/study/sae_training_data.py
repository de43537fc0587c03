"""The activations that SAEs share which are trained from one pass of a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from etils import epath

from sae_attr import parallel
from sae_attr.activations import (
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
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import model_fingerprint
from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_lm
from sae_attr.sae_check import HeldOut, SitePair, collect_held_out
from sae_attr.sae_check.measure import TRIAL
from sae_attr.study.model_files import adapted_fingerprint
from sae_attr.study.sae_jobs import SAEJob, SAETrainingSettings
from sae_attr.study.two_model_data import (
    check_base,
    held_out_source,
    join_of,
    joined_held_out,
)
from sae_attr.text.packed_rows import Packing, hold_out
from sae_attr.text.token_file import TokenFile

CACHE = "activations"  # folder in the workdir


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
    lm, adapter = str(settings.lm), settings.adapter
    cfg, params = load_lm(lm, adapter=adapter, mesh=mesh, dtype=settings.dtype)
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
    lm_hash, base_hash = adapted_fingerprint(lm, adapter), ""
    if join:
        base_hash = model_fingerprint(str(settings.lm_base))
    collect, held_out = _collector_and_held_out(
        settings, params, source, documents, pairs, cfg=cfg, mesh=mesh, join=join
    )
    masked, folder = None, workdir / CACHE
    if settings.cache:
        models = f"{lm_hash} {join} {base_hash}".strip()
        _fill_cache(
            settings,
            params,
            source,
            folder,
            cfg=cfg,
            mesh=mesh,
            models=models,
            collect=collect,
        )
        masked = read_index(folder)["counts"]
    blocks = _blocks(
        settings, params, source, folder, cfg=cfg, mesh=mesh, collect=collect
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


def _collector_and_held_out(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    documents: range,
    pairs: Sequence[SitePair],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    join: str,
) -> tuple[Collect | None, HeldOut]:
    """Returns the collector of two models' activations, None for one model, and the
    activations of the held-out text.
    """
    if join:
        collector_of = _joined_collectors(settings, params, source, join, mesh)
        held = held_out_source(source, documents)
        held_out = joined_held_out(
            collector_of(held), held, documents, settings.eval_tokens
        )
        return collector_of(source), held_out
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
    return None, held_out


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


def _fill_cache(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    folder: epath.Path,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    models: str,
    collect: Collect | None,
) -> None:
    """Writes what is missing of the cache of activations.

    Args:
      models: names the weights that the activations are of.
    """
    write_cache(
        folder,
        params,
        source,
        cfg=cfg,
        mesh=mesh,
        lm=models,
        tokens=settings.tokens,
        shard_tokens=settings.shard_tokens,
        batch_rows=settings.batch_rows,
        seed=settings.seed,
        progress=parallel.is_main(),
        collect=collect,
    )


def _blocks(
    settings: SAETrainingSettings,
    params: Params,
    source: ActivationSource,
    folder: epath.Path,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    collect: Collect | None,
) -> BlockStream:
    """Returns the stream of activations, from the cache or from the model."""
    buffer, seed = settings.buffer_tokens, settings.seed
    if settings.cache:
        return cached_blocks(folder, buffer_tokens=buffer, seed=seed)
    return live_blocks(
        params,
        source,
        cfg=cfg,
        mesh=mesh,
        buffer_tokens=buffer,
        batch_rows=settings.batch_rows,
        seed=seed,
        collect=collect,
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
