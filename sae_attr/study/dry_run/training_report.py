"""The dry run of trainings: of language models, whole or by adapter, and of SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from sae_attr.files import checkpoints
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import Lora, init_lora
from sae_attr.lm.next_token import ComputeOptions
from sae_attr.parallel import LM_RULES
from sae_attr.report.tables import text_table
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store import Status
from sae_attr.study.cost import StageCost
from sae_attr.study.dry_run.memory import (
    Held,
    backward_bytes,
    device_bytes,
    param_shapes,
    parameter_count,
    sae_bytes,
)
from sae_attr.study.dry_run.rates import Batch, RatesOf
from sae_attr.study.dry_run.report import DryRun, models_table, size
from sae_attr.study.sae_jobs import SAEJob, SAETrainingSettings

_PASSES = 3  # forward, and backward to inputs and weights
_STATE = 3  # gradient and Adam's two means, beside what is trained
_TRAINING = "a step is taken"


@dataclass(frozen=True)
class LMTraining:
    """A run of next-token training.

    Args:
      name: of the model, for readers.
      cfg: of the model.
      lora: None where all parameters are trained.
      dtype: of the weights.
      compute: how the loss is computed.
      steps: of the optimiser.
      rows, micro: of a step, and the parts that it is cut into.
      width: tokens of a row.
    """

    name: str
    cfg: LMConfig
    lora: Lora | None
    dtype: str
    compute: ComputeOptions
    steps: int
    rows: int
    micro: int
    width: int


def lm_training_dry_run(
    run: LMTraining,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    rates_of: RatesOf,
    report: DryRun,
) -> DryRun:
    """Adds what a training of a language model needs; no weights are loaded.

    Args:
      workdir: of the run, with checkpoints if it was begun.
    """
    report.add("model", models_table({run.name: run.cfg}, run.dtype))
    report.add("training", _trained_table(run))
    report.add_memory("memory", lm_training_memory(run, mesh), mesh)
    name, done = "training", checkpoints.latest(workdir / "checkpoints") or 0
    tokens = (run.steps - min(done, run.steps)) * run.rows * run.width
    layers = run.cfg.n_layers
    passes = _PASSES if run.lora is None else 2
    cost = StageCost(name, read=tokens * layers * passes, heads=tokens * _PASSES)
    rates = rates_of(run.cfg, Batch(), run.compute.dtype or run.dtype)
    report.add_stages([cost], rates, [_status(name, done, run.steps)])
    return report


def lm_training_memory(run: LMTraining, mesh: jax.sharding.Mesh) -> list[Held]:
    """Returns what a training of a language model holds on each device."""
    whole = param_shapes(run.cfg, run.dtype)
    weights = device_bytes(whole, LM_RULES, mesh)
    trained = device_bytes(trained_shapes(run), LM_RULES, mesh)
    parts = [Held("weights", weights)]
    if run.lora is not None:
        parts.append(Held("adapter", trained))
    parts.append(Held("gradient and moments", _STATE * trained))
    products = run.compute.dtype or run.dtype
    if run.compute.dtype and run.compute.dtype != run.dtype:
        cast = device_bytes(param_shapes(run.cfg, products), LM_RULES, mesh)
        parts.append(Held(f"weights in {products}", cast, _TRAINING))
    rows = max(run.rows // run.micro, 1)
    product_bytes = backward_bytes(
        run.cfg,
        mesh,
        products,
        rows=rows,
        width=run.width,
        layers=run.cfg.n_layers,
        remat=run.compute.remat,
    )
    targets = run.compute.loss_chunk or run.width
    logits = 2 * 4 * (rows // mesh.shape["data"]) * targets * run.cfg.vocab
    return [
        *parts,
        Held("products of the backward pass", product_bytes, _TRAINING),
        Held("next-token numbers", logits, _TRAINING),
    ]


def trained_shapes(run: LMTraining) -> Any:
    """Returns the shapes of what is trained: all parameters, or the adapter's."""
    lora, whole = run.lora, param_shapes(run.cfg, run.dtype)
    if lora is None:
        return whole
    return jax.eval_shape(
        lambda: init_lora(
            run.cfg,
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), whole),
            lora,
            jax.random.key(0),
        )
    )


def _trained_table(run: LMTraining) -> str:
    columns = {
        "trained parameters": [parameter_count(trained_shapes(run))],
        "steps": [run.steps],
        "rows a step": [run.rows],
        "in parts": [run.micro],
        "tokens a row": [run.width],
        "tokens in all": [run.steps * run.rows * run.width],
    }
    return text_table(columns, dict.fromkeys(list(columns), ","))


def _status(name: str, done: int, steps: int) -> Status:
    """Returns how far a training is, by its last checkpoint."""
    if done >= steps:
        return Status(name, "done", "")
    return Status(name, "part" if done else "missing", "")


# ---- SAEs ----------------------------------------------------------------------------


def _training_cost(
    settings: SAETrainingSettings, job: SAEJob, folder: epath.Path
) -> tuple[StageCost, Status]:
    """Returns what is left of the training of one SAE, and how far it is.

    Args:
      folder: of the SAE, with checkpoints if its training was begun.
    """
    done = checkpoints.latest(folder / "checkpoints") or 0
    left = max(job.cfg.steps - done, 0) * settings.batch_size
    name = f"training at {job.sites.read}"
    cost = StageCost(name, flops=left * step_flops(job.cfg))
    return cost, _status(name, done, job.cfg.steps)


def sae_training_dry_run(
    settings: SAETrainingSettings,
    jobs: Sequence[SAEJob],
    cfg: LMConfig,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    rates_of: RatesOf,
    report: DryRun,
) -> DryRun:
    """Adds what a training of SAEs needs; no weights are loaded.

    Args:
      cfg: of the language model.
      workdir: of the run, with checkpoints if it was begun.
      context: tokens of a row.
    """
    models = {str(settings.lm): cfg}
    if settings.lm_base:
        # The base model must have the fine-tuned one's shape: the run checks it.
        models[str(settings.lm_base)] = cfg
    report.add("model", models_table(models, settings.dtype))
    report.add("SAEs", _saes_table(jobs))
    parts = sae_training_memory(settings, jobs, cfg, mesh, context=context)
    report.add_memory("memory", parts, mesh)
    sites = {site for job in jobs for site in (job.sites.read, job.sites.write)}
    if settings.cache:
        width = jobs[0].cfg.streams * sum(cfg.width(site.point) for site in sites)
        report.add("disk", _disk_text(settings, width))
    top = max(site.layer for site in sites) + 1
    costs = [StageCost("activations", read=_models(settings) * settings.tokens * top)]
    statuses = [Status("activations", "missing", "")]
    for job in jobs:
        folder = workdir if len(jobs) == 1 else workdir / str(job.sites.read)
        training, status = _training_cost(settings, job, folder)
        held_out = _held_out_cost(settings, job, cfg)
        costs += [training, held_out]
        statuses += [status, Status(held_out.stage, "missing", "")]
    rates = rates_of(cfg, Batch(), settings.dtype)
    report.add_stages(costs, rates, statuses)
    return report


def _disk_text(settings: SAETrainingSettings, width: int) -> str:
    """Says how much the cache of activations takes.

    Args:
      width: numbers of a token, over sites and models.
    """
    count = settings.tokens * width * jnp.dtype(settings.act_dtype).itemsize
    return (
        f"activations on disk: at most {size(count)} (one epoch, where the corpus "
        "has fewer tokens)"
    )


def _held_out_cost(
    settings: SAETrainingSettings, job: SAEJob, cfg: LMConfig
) -> StageCost:
    """Returns the cost of measuring an SAE on held-out text."""
    tokens, code = settings.eval_tokens, 2 * job.cfg.n_latents * job.cfg.d_in
    name, flops = f"held out at {job.sites.read}", 4 * code * tokens
    if settings.lm_base:
        # Both are read up to the site, and no loss is measured.
        layers = _models(settings) * (job.sites.read.layer + 1)
        return StageCost(name, read=tokens * layers, flops=flops)
    return StageCost(
        name, read=4 * tokens * cfg.n_layers, heads=4 * tokens, flops=flops
    )


def _models(settings: SAETrainingSettings) -> int:
    """Returns how many models read every token."""
    return 2 if settings.lm_base else 1


def step_flops(cfg: TrainConfig) -> float:
    """Returns the operations of an SAE's training for each token, as if every product
    were dense.

    Objectives that rank latents multiply few of them, but look for them among all,
    which took as long on a CPU: 0.5 ms a token for 8,192 latents of width 576 on two
    busy cores, where dense products are 0.24 ms.
    """
    return _PASSES * 2 * cfg.n_latents * (cfg.d_in + (cfg.d_out or cfg.d_in))


def sae_training_memory(
    settings: SAETrainingSettings,
    jobs: Sequence[SAEJob],
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    *,
    context: int,
) -> list[Held]:
    """Returns what a training of SAEs holds on each device; they are trained one after
    another.
    """
    weights = device_bytes(param_shapes(cfg, settings.dtype), LM_RULES, mesh)
    largest = max(jobs, key=lambda job: job.cfg.n_latents)
    n, shards = largest.cfg.n_latents, mesh.shape["model"]
    split = shards if n % shards == 0 else 1
    d_out = largest.cfg.d_out or largest.cfg.d_in
    whole = SAEConfig(d_in=largest.cfg.d_in, d_out=d_out, n_latents=n)
    of_sae = sum(sae_bytes(whole).values()) // split
    rows = settings.batch_size // mesh.shape["data"]
    widths = sum(cfg.width(job.sites.read.point) for job in jobs)
    kept = largest.cfg.streams * widths
    passed = settings.batch_rows // mesh.shape["data"] * context * widths
    passed *= _models(settings)
    collecting = "activations are collected"
    names = ["model", "model before"][: _models(settings)]
    return [
        *(Held(f"weights of the {name}", weights) for name in names),
        Held("SAE", of_sae, _TRAINING),
        Held("gradient and moments", _STATE * of_sae, _TRAINING),
        Held("codes of a step", 2 * 4 * rows * n // split, _TRAINING),
        Held("shuffled tokens", 4 * settings.buffer_tokens * kept, _TRAINING, True),
        Held("activations of a batch", 4 * passed, collecting),
    ]


def _saes_table(jobs: Sequence[SAEJob]) -> str:
    columns = {
        "site": [str(job.sites.read) for job in jobs],
        "objective": [job.cfg.objective for job in jobs],
        "latents": [job.cfg.n_latents for job in jobs],
        "width": [job.cfg.d_in for job in jobs],
        "k": [job.cfg.k for job in jobs],
        "steps": [job.cfg.steps for job in jobs],
        "parameters": [_sae_parameters(job.cfg) for job in jobs],
    }
    counts = ("latents", "width", "steps", "parameters")
    return text_table(columns, {name: "," for name in counts})


def _sae_parameters(cfg: TrainConfig) -> int:
    d_out = cfg.d_out or cfg.d_in
    return cfg.n_latents * (cfg.d_in + d_out + 1) + d_out
