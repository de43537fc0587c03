"""Training of an SAE or transcoder: `training.train` with SAE steps on a mesh, and the
records of its curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sae_attr.parallel import is_main, shard_batch
from sae_attr.sae.metrics import FitSums, explained_variance
from sae_attr.sae.train_config import TrainConfig, recorded
from sae_attr.sae.train_state import ActBatch, SAEState, as_pair, init_state
from sae_attr.sae.update import SAEMetrics, compiled_step
from sae_attr.store.files import PathLike
from sae_attr.store.metrics_log import MetricsLog
from sae_attr.training import Curves, LoopOptions, Record, TrainResult, train

OPTIONS = LoopOptions(log_every=50, save_every=1000)


def train_sae(
    cfg: TrainConfig,
    batch_of: Callable[[int], ActBatch],
    *,
    mesh: Mesh | None = None,
    folder: PathLike | None = None,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    options: LoopOptions = OPTIONS,
    on_record: Callable[[SAEState, list[Record]], None] = lambda state, history: None,
    evaluate: Callable[[SAEState], Record] = lambda state: {},
    metrics_log: MetricsLog | None = None,
    progress: bool = True,
) -> TrainResult[SAEState]:
    """Trains, from the last checkpoint in `folder` if there is one; the result does not
    depend on where it was stopped.

    The curves have a record for each `log_every` steps.

    Args:
      cfg: the run.
      batch_of: step number (from 0) -> raw activations; the same on every call and
        every process, all of one size.
      mesh: `data` splits tokens, `model` latents; None for one device.
      folder: of checkpoints; None writes none.
      inputs: plain values that say what the batches are; a run that goes on must have
        the same.
      options: when things happen. A program has one step, whatever `scan` says: it
        takes long enough, and its batch fills the memory.
      on_record: called with the state and the whole curve after every new record.
      evaluate: measures a state; its numbers are added to the record of that step.
      metrics_log: gets every record as it is made.
      progress: show a bar with the speed and the time left.

    Raises:
      Diverged: a loss or gradient that is not finite. Checkpoints hold finite steps
        alone.
      ValueError: a folder of another run (see `checkpoints.restore`), batches that do
        not fit the config.
    """
    # A run that goes on needs the first state too: its shapes and shardings are those
    # of the checkpoint.
    state = init_state(cfg, batch_of, mesh)
    step = compiled_step(cfg, mesh, state)

    def run_step(
        state: SAEState, batches: list[ActBatch]
    ) -> tuple[SAEState, SAEMetrics]:
        (batch,) = batches
        return step(state, *_placed(batch, cfg, mesh))

    curves = Curves(
        records_of=window_record, evaluate=evaluate, on_record=on_record, shown=_shown
    )
    return train(
        state,
        run_step,
        batch_of,
        steps=cfg.steps,
        options=replace(options, scan=1),
        curves=curves,
        folder=folder,
        config={**inputs, **recorded(cfg)},
        metrics_log=metrics_log,
        progress=progress and is_main(),
    )


def window_record(last: Record, window: list[SAEMetrics]) -> list[Record]:
    """Returns one record: means over the window's steps, explained variance pooled over
    its tokens.
    """

    def mean(values: Sequence[Any]) -> float:
        return float(np.mean(values, dtype=np.float64))

    terms = {}
    for name in window[0].terms:
        terms[name] = mean([metrics.terms[name] for metrics in window])
    tokens = sum(int(metrics.tokens) for metrics in window)
    end = window[-1]
    record = {
        "step": int(last["step"]) + len(window),
        "tokens": int(last.get("tokens", 0)) + tokens,
        "loss": sum(terms.values()),
        **terms,
        "explained_variance": explained_variance(_window_sums(window, tokens)),
        "l0": mean([metrics.l0 for metrics in window]),
        "dead": float(end.dead),
        "lr": float(end.lr),
        "sparsity": float(end.sparsity),
        "threshold": float(end.threshold),
        "grad_norm": mean([metrics.grad_norm for metrics in window]),
        "spilled": mean([metrics.spilled for metrics in window]),
    }
    return [record]


def _window_sums(window: Sequence[SAEMetrics], tokens: int) -> FitSums:
    """Returns the sums that the explained variance needs; the others are 0."""
    squares = np.sum([metrics.squares for metrics in window], dtype=np.float64)
    residual = np.sum([metrics.residual for metrics in window], dtype=np.float64)
    sum_m = np.sum([metrics.sum_m for metrics in window], axis=0, dtype=np.float64)
    return FitSums(
        tokens=tokens,
        sum_d=np.asarray(sum_m),
        squares=float(squares),
        residual=float(residual),
        active=0.0,
        fired_n=np.zeros(0, np.int64),
    )


def _placed(batch: ActBatch, cfg: TrainConfig, mesh: Mesh | None) -> tuple[Any, Any]:
    x, y = as_pair(batch, cfg)
    if mesh is None:
        return x, y
    # Compared before the arrays move: an autoencoder's batch is put on the devices once.
    if x is y:
        return (shard_batch(x, mesh),) * 2
    return shard_batch((x, y), mesh)


def _shown(history: Sequence[Record]) -> dict[str, str]:
    last = history[-1]
    return {
        "EV": f"{last['explained_variance']:.4f}",
        "L0": f"{last['l0']:.1f}",
        "dead": f"{last['dead']:.1%}",
    }
