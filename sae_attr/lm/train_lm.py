"""Training of a language model: `training.train` with next-token steps on a mesh, a
held-out loss, and the best step kept beside the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sae_attr.files import checkpoints
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import (
    Assemble,
    ComputeOptions,
    LMMetrics,
    LMState,
    TokenBatch,
    init_state,
    join,
    loss_sum,
    train_steps,
)
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.params import init_params
from sae_attr.parallel import (
    LM_RULES,
    put,
    replicated,
    shard_batch,
    shard_tree,
    shardings,
)
from sae_attr.store.files import PathLike
from sae_attr.store.metrics_log import MetricsLog
from sae_attr.training import (
    Curves,
    LoopOptions,
    Record,
    TrainResult,
    no_action,
    train,
)


def train_lm(
    trained: Params,
    frozen: Params,
    batch_of: Callable[[int], TokenBatch],
    *,
    cfg: LMConfig,
    opt: Optimizer,
    mesh: Mesh,
    options: LoopOptions = LoopOptions(),
    compute: ComputeOptions = ComputeOptions(),
    assemble: Assemble = join,
    held_out: Sequence[TokenBatch] = (),
    folder: PathLike | None = None,
    config: Mapping[str, Any] = MappingProxyType({}),
    metrics_log: MetricsLog | None = None,
    progress: bool = True,
    on_record: Callable[[LMState, Sequence[Record]], None] = no_action,
) -> TrainResult[LMState]:
    """Trains for `opt.steps` steps, from the last checkpoint in `folder` if there is
    one.

    The curves have a record for each step: step, loss, targets, grad_norm, lr, and
    eval_loss where the held-out loss was measured (also before the first step).

    Args:
      trained: leaves to train; taken over (their buffers are donated).
      frozen: the rest of the tree.
      batch_of: step -> its rows `[m, b, ...]` as numpy arrays, m micro-batches.
      assemble: makes the tree that `forward` reads from both.
      held_out: batches `[b, ...]` whose mean loss is the held-out loss.
      folder: of checkpoints; None writes none. The leaves of the step with the lowest
        held-out loss are kept beside it (`best_trained`).
      config: plain values that say what is trained on what; a run that goes on must
        have the same.
      metrics_log: gets every record as it is made.
      on_record: called with the state and the curves after every program: after every
        step with `options.scan` 1. The state's buffers are used again.

    Raises:
      ValueError: checkpoints of another config or of other shapes; rows that the mesh
        cannot split.
      Diverged: a loss or gradient that is not finite; the last checkpoint is whole.
    """
    state = place_state(init_state(trained, opt), mesh)
    frozen = shard_tree(frozen, LM_RULES, mesh)
    run_compiled = compiled_steps(
        state, mesh, cfg=cfg, opt=opt, compute=compute, assemble=assemble
    )

    def run_steps(
        state: LMState, batches: list[TokenBatch]
    ) -> tuple[LMState, LMMetrics]:
        return run_compiled(state, frozen, place_steps(batches, mesh))

    nll_sums = partial(_nll_sums, cfg=cfg, compute=compute, assemble=assemble)
    placed = [shard_batch(batch, mesh) for batch in held_out]

    def recorded(state: LMState, history: list[Record]) -> None:
        _keep_best(folder, state, history)
        on_record(state, history)

    curves = Curves(
        records_of=step_records,
        evaluate=partial(held_out_loss, jax.jit(nll_sums), frozen, placed),
        evaluate_start=bool(placed),
        on_record=recorded,
        shown=_shown,
    )
    return train(
        state,
        run_steps,
        batch_of,
        steps=opt.steps,
        options=options,
        curves=curves,
        folder=folder,
        config=config,
        metrics_log=metrics_log,
        progress=progress,
    )


# ---- devices -------------------------------------------------------------------------


def random_params(
    cfg: LMConfig, mesh: Mesh, *, seed: int = 0, dtype: str = "float32"
) -> Params:
    """Returns `init_params`, with every leaf made on the devices that `LM_RULES` give
    it.
    """
    # Under jit with output shardings, so that no device has to hold the whole model.
    make = partial(init_params, cfg, dtype=dtype)
    places = shardings(jax.eval_shape(make, jax.random.key(0)), LM_RULES, mesh)
    return jax.jit(make, out_shardings=places)(jax.random.key(seed))


def place_state(state: LMState, mesh: Mesh) -> LMState:
    """Places every leaf, the optimiser's among them, as `LM_RULES` place the
    parameter.
    """
    return shard_tree(state, LM_RULES, mesh)


def place_steps(batches: list[TokenBatch], mesh: Mesh) -> TokenBatch:
    """Stacks batches `[m, b, ...]` of several steps to `[k, m, b, ...]`, rows over
    `data`.

    Raises:
      ValueError: the rows of a micro-batch are no multiple of the `data` axis.
    """
    rows, size = np.shape(batches[0].tokens_bt)[1], mesh.shape["data"]
    if rows % size:
        raise ValueError(
            f"micro-batches of {rows} rows cannot be split over data={size}; make them "
            "a multiple of it"
        )
    sharding = jax.NamedSharding(mesh, P(None, None, "data"))
    return jax.tree.map(lambda *leaves: put(np.stack(leaves), sharding), *batches)


def compiled_steps(
    state: LMState,
    mesh: Mesh,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: ComputeOptions = ComputeOptions(),
    assemble: Assemble = join,
) -> Callable[[LMState, Params, TokenBatch], tuple[LMState, LMMetrics]]:
    """Returns `train_steps` jitted: the state's buffers are used again, and its leaves
    stay on their devices.
    """
    steps = partial(train_steps, cfg=cfg, opt=opt, compute=compute, assemble=assemble)
    places = (shardings(state, LM_RULES, mesh), replicated(mesh))
    return jax.jit(steps, donate_argnums=0, out_shardings=places)


# ---- curves --------------------------------------------------------------------------


def step_records(last: Record, window: list[LMMetrics]) -> list[Record]:
    """Returns one record for each step since the record `last`."""
    records = []
    step = int(last["step"])
    for metrics in window:
        for i in range(len(metrics.loss)):
            step += 1
            record = {
                "step": step,
                "loss": float(metrics.loss[i]),
                "targets": int(metrics.targets[i]),
                "grad_norm": float(metrics.grad_norm[i]),
                "lr": float(metrics.lr[i]),
            }
            records.append(record)
    return records


def _nll_sums(
    trained: Params,
    frozen: Params,
    batch: TokenBatch,
    *,
    cfg: LMConfig,
    compute: ComputeOptions,
    assemble: Assemble,
) -> tuple[jax.Array, jax.Array]:
    params = assemble(frozen, trained)
    total = loss_sum(params, batch, cfg=cfg, compute=compute)
    return total, jnp.sum(batch.target_valid_bc)


def held_out_loss(
    nll_sums: Callable[..., Any],
    frozen: Params,
    held_out: Sequence[TokenBatch],
    state: LMState,
) -> Record:
    """Returns `eval_loss`: nats per target over all batches, summed in double
    precision; nothing without batches.
    """
    if not held_out:
        return {}
    totals, targets = [], 0
    for batch in held_out:
        nll, count = jax.device_get(nll_sums(state.trained, frozen, batch))
        totals.append(float(nll))
        targets += int(count)
    return {"eval_loss": sum(totals) / max(targets, 1)}


def _shown(history: Sequence[Record]) -> dict[str, str]:
    numbers = {"loss": f"{history[-1]['loss']:.3f}"}
    held_out = _evaluated(history)
    if held_out:
        numbers["held-out"] = f"{held_out[-1]['eval_loss']:.3f}"
    return numbers


def training_summary(result: TrainResult[LMState]) -> dict[str, Any]:
    """Returns steps, losses at the start and the end, the best step and the speed; the
    held-out ones None without held-out rows.
    """
    losses = [record["loss"] for record in result.history if "loss" in record]
    # A mean over many steps: the loss of one batch says little.
    last_tenth = losses[-max(1, len(losses) // 10) :]
    held_out = [record["eval_loss"] for record in _evaluated(result.history)]
    return {
        "steps": int(result.state.step),
        "continued_from_step": result.started,
        "loss_first": losses[0],
        "loss_last_tenth": float(np.mean(last_tenth)),
        "held_out_first": held_out[0] if held_out else None,
        "held_out_last": held_out[-1] if held_out else None,
        "held_out_best": min(held_out, default=None),
        "best_step": best_step(result.history),
        "tokens_per_second": result.tokens_per_second,
    }


# ---- the best step -------------------------------------------------------------------


def _evaluated(history: Sequence[Record]) -> list[Record]:
    return [record for record in history if "eval_loss" in record]


def best_step(history: Sequence[Record]) -> int | None:
    """Returns the step of the lowest held-out loss, the first of equals; None without
    held-out rows.
    """
    held_out = _evaluated(history)
    if not held_out:
        return None
    best = min(held_out, key=lambda record: record["eval_loss"])
    return int(best["step"])


def best_trained(
    result: TrainResult[LMState], folder: PathLike | None
) -> Params | None:
    """Returns the trained leaves of the best step, which `train_lm` kept beside the
    checkpoints in `folder`; None where the last or no step is the best.
    """
    step = best_step(result.history)
    if folder is None or step in (None, 0, int(result.state.step)):
        return None
    like = result.state.trained
    return checkpoints.restore(_best_folder(folder), like, step=step)[0]


def _best_folder(folder: PathLike) -> epath.Path:
    path = epath.Path(folder)
    return path.with_name(f"{path.name}-best")


def _keep_best(
    folder: PathLike | None, state: LMState, history: Sequence[Record]
) -> None:
    """Saves the trained leaves where this step is the best so far."""
    if folder is None or "eval_loss" not in history[-1]:
        return
    step = int(history[-1]["step"])
    if best_step(history) != step:
        return
    # A run that goes on from an earlier checkpoint meets what it kept before.
    saved = checkpoints.latest(_best_folder(folder))
    if saved is None or saved < step:
        checkpoints.save(_best_folder(folder), step, state.trained, keep=2)
