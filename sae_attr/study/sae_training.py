"""Training of one SAE on a language model's activations, and what is measured of it on
held-out documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
from etils import epath

from sae_attr import parallel
from sae_attr.activations import (
    DIFFERENCE,
    SIDE_BY_SIDE,
    batch_function,
    describe,
    inputs,
)
from sae_attr.files.hub import public_name
from sae_attr.lm.gguf_weights import quantisation_note
from sae_attr.sae.metrics import (
    FitSums,
    dead_share,
    explained_variance,
    fit,
    l0,
    summary,
)
from sae_attr.sae.model import SAE
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import SAEState, finished
from sae_attr.sae_check import (
    StatedMetrics,
    check_record,
    held_out_fit,
    judge_sae,
    measure_sample,
)
from sae_attr.site_names import lens_name
from sae_attr.store import Store, fingerprint
from sae_attr.store.metrics_log import MetricsLog
from sae_attr.study.sae_jobs import SAEJob
from sae_attr.study.sae_training_data import SAETrainingData, stream_identity
from sae_attr.training import LoopOptions, Record


@dataclass(frozen=True, eq=False)
class TrainedSAE:
    """An SAE at the end of its training.

    Args:
      history: the curves.
      check: record of the SAE check on held-out texts.
    """

    sae: SAE
    history: Sequence[Record]
    check: dict[str, Any]


def train_job(
    data: SAETrainingData,
    job: SAEJob,
    ledger: Store,
    folder: epath.Path,
    options: LoopOptions,
    metrics_log: MetricsLog | None = None,
) -> TrainedSAE:
    """Trains one SAE, from its last checkpoint in `folder` if there is one, and checks
    it; called on every process alike.

    Args:
      ledger: where sizes of blocks are noted, as for `batch_function`.
      folder: of checkpoints.
      metrics_log: gets every record of the curves as it is made.
    """
    settings = data.settings
    stream = batch_function(
        data.blocks, batch_size=settings.batch_size, seed=settings.seed, ledger=ledger
    )
    result = train_sae(
        job.cfg,
        inputs(stream, job.sites.read, job.target),
        mesh=data.mesh,
        folder=folder,
        inputs=stream_identity(data),
        options=options,
        evaluate=partial(held_out_record, data, job),
        metrics_log=metrics_log,
        progress=parallel.is_main(),
    )
    state = jax.tree.map(parallel.to_host, result.state)
    sae = finished(job.cfg, state, **sae_fields(data, job))
    # The check runs the model over the mesh, so that no process may leave it out.
    return TrainedSAE(sae, result.history, check_trained(data, job, sae))


def sae_fields(data: SAETrainingData, job: SAEJob) -> dict[str, Any]:
    """Returns the fields of `SAEConfig` that record the training."""
    source = data.source
    site_out = None
    if job.target:
        site_out = lens_name(job.sites.write)
    names = ("base", "fine_tuned") if data.join == SIDE_BY_SIDE else ()
    # No site of one model has what a difference's SAE reads: a user has to name one.
    site = None if data.join == DIFFERENCE else lens_name(job.sites.read)
    return {
        "site": site,
        "stream_names": names,
        "site_out": site_out,
        "layer": job.sites.read.layer,
        "model_name": public_name(str(data.settings.lm)),
        "context_size": source.packing.context,
        "prepend_bos": bool(source.file.meta["prepend_bos"]),
        "exclude_special": bool({"bos", "special"} & source.masks.exclude),
        "masks": source.masks,
    }


def held_out_record(data: SAETrainingData, job: SAEJob, state: SAEState) -> Record:
    """Measures a state of training on the held-out documents; of two models without the
    loss, which would be of neither.
    """
    if data.join:
        sums = held_out_sums(data, job, finished(job.cfg, state))
        return _fit_record(sums, float("nan"))
    measured = held_out_fit(
        data.params,
        finished(job.cfg, state),
        data.held_out,
        job.sites,
        cfg=data.cfg,
        mesh=data.mesh,
    )
    return _fit_record(measured.sums, measured.ce_recovered)


def _fit_record(sums: FitSums, ce_recovered: float) -> Record:
    return {
        "held_out_explained_variance": explained_variance(sums),
        "held_out_l0": l0(sums),
        "held_out_dead_share": dead_share(sums),
        "held_out_ce_recovered": ce_recovered,
    }


def held_out_sums(data: SAETrainingData, job: SAEJob, sae: SAE) -> FitSums:
    """Returns the sums of the SAE's fit on the held-out tokens."""
    acts = data.held_out.acts
    return fit(sae, acts[job.sites.read], acts[job.sites.write])


def check_trained(data: SAETrainingData, job: SAEJob, sae: SAE) -> dict[str, Any]:
    """Measures the SAE on the held-out texts as every later run of it does, and judges
    it; returns what is recorded.
    """
    if data.join:
        why = "one model's loss does not say how well two models are reconstructed"
        return {"verdict": "left out", "why": why}
    stated_metrics = StatedMetrics(
        l0=sae.cfg.expected_l0, excludes_special=sae.cfg.exclude_special
    )
    measurement = measure_sample(
        data.params,
        sae,
        data.held_out.samples[job.sites.write],
        cfg=data.cfg,
        mesh=data.mesh,
        stated_l0=stated_metrics.l0,
    )
    return check_record(judge_sae(measurement, stated_metrics, counts_special=False))


def training_facts(
    data: SAETrainingData, job: SAEJob, trained: TrainedSAE, sums: FitSums
) -> dict[str, Any]:
    """Returns sites, measurements and settings of one SAE, as result.json holds them.

    Args:
      sums: of `held_out_sums`.
    """
    settings, cfg = data.settings, job.cfg
    dead_tokens = cfg.dead_after(settings.batch_size)
    evaluated = [record for record in trained.history if "held_out_l0" in record]
    return {
        "site": str(job.sites.read),
        "site_out": str(job.sites.write),
        "held_out": {
            **summary(trained.sae, sums),
            "ce_recovered": evaluated[-1]["held_out_ce_recovered"],
        },
        "train": {
            **asdict(cfg),
            "lr": cfg.learning_rate,
            "warmup": cfg.warmup_steps,
            "dead_tokens": dead_tokens,
        },
        # A short run sees fewer tokens than the span after which a latent is dead.
        "silent_share": {
            "share": trained.history[-1]["dead"],
            "tokens": min(dead_tokens, cfg.steps * settings.batch_size),
        },
        "activations": describe(data.source),
        "masked": data.masked,
        "held_out_documents": [data.documents.start, data.documents.stop],
        "join": data.join,
        "inputs": {
            "lm": data.lm_hash,
            "lm_base": data.base_hash,
            "corpus": fingerprint(str(settings.corpus)),
        },
        **quantisation_note(str(settings.lm)),
    }
