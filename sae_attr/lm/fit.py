"""The training loop: data by step number, many steps a call, evaluation, checkpoints,
exact continuation.

The batch of a step is a function of its number alone and checkpoints lie at fixed
steps, so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from sae_attr.files import checkpoints
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.train import (
    Assemble,
    Batch,
    Compute,
    Optimizer,
    State,
    init_state,
    join,
    loss_sum,
    train_steps,
)
from sae_attr.parallel import (
    LM_RULES,
    is_main,
    put,
    replicated,
    shard_batch,
    shard_tree,
    shardings,
)
from sae_attr.store import write_atomic
from sae_attr.store.files import Meta, PathLike

BatchOf = Callable[[int], Batch]
"""Step -> its rows `[m, b, ...]` as numpy arrays, m micro-batches."""

HISTORY = "history.json"


@dataclass(frozen=True)
class Loop:
    """When things happen; all in steps.

    Args:
      scan: steps in one program at most; no number depends on it beyond float rounding.
      eval_every: held-out loss after every so many steps, and always at the start and
        the end; 0: only there.
      save_every: checkpoint after every so many, and at the end; 0: only there.
      keep: checkpoints that are kept.
    """

    scan: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2


@dataclass
class Fitted:
    """The end of a run.

    Args:
      state: trained leaves, optimiser state, step.
      history: one record a step: step (made by then), loss, targets, grad_norm, lr; and
        {"step", "eval_loss"}.
      started: step at which this process began, above 0 after a kill.
      seconds, tokens: of training in this process, compilation apart: tokens of the
        rows, padding apart.
    """

    state: State
    history: list[dict[str, float]]
    started: int = 0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def best_step(self) -> int | None:
        """The step of the lowest held-out loss, the first of equals; None without
        held-out rows.
        """
        held = [record for record in self.history if "eval_loss" in record]
        return (
            int(min(held, key=lambda record: record["eval_loss"])["step"])
            if held
            else None
        )

    def best_trained(self, folder: PathLike | None) -> Params | None:
        """The trained leaves of the best step, from where `fit` kept them; None where
        the last or no step is the best.
        """
        best = self.best_step
        if folder is None or best in (None, 0, int(self.state.step)):
            return None
        return checkpoints.restore(best_folder(folder), self.state.trained, step=best)[
            0
        ]


def fit(
    trained: Params,
    frozen: Params,
    batch_of: BatchOf,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    mesh: jax.sharding.Mesh,
    loop: Loop = Loop(),
    compute: Compute = Compute(),
    assemble: Assemble = join,
    held_out: Iterable[Batch] = (),
    folder: PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Fitted:
    """Trains for `opt.steps` steps, from the last checkpoint in `folder` if there is
    one.

    Args:
      trained: leaves to train; taken over (their buffers are donated).
      frozen: the rest of the tree.
      batch_of: rows of a step; called once for each, in order.
      assemble: makes the tree that `forward` reads from both.
      held_out: batches `[b, ...]` whose mean loss is the held-out loss.
      folder: for checkpoints and the history; None keeps none. The leaves of the step
        with the lowest held-out loss are kept beside it (`best_folder`).
      config: plain values that a continued run must share.

    Raises:
      ValueError: another config or other shapes than those of the checkpoint; rows that
        the mesh cannot split.
      RuntimeError: a loss or gradient that is not finite; the last checkpoint is as it
        was.
    """
    state = place_state(init_state(trained, opt), mesh)
    frozen = shard_tree(frozen, LM_RULES, mesh)
    held_out = [shard_batch(batch, mesh) for batch in held_out]
    state, history = _continued(folder, state, config)
    out = Fitted(state, history, started=int(state.step))
    run = compiled_steps(
        state, mesh, cfg=cfg, opt=opt, compute=compute, assemble=assemble
    )
    sums = jax.jit(partial(_sums, cfg=cfg, compute=compute, assemble=assemble))
    evaluate = partial(evaluated, sums, frozen, held_out)
    if not history and held_out:
        history.append({"step": 0, "eval_loss": evaluate(state.trained)})
    with tqdm(
        total=opt.steps,
        initial=out.started,
        desc="train",
        unit="step",
        disable=not progress,
    ) as bar:
        for start, stop in spans(out.started, opt.steps, loop):
            began = time.perf_counter()
            batches = [batch_of(step) for step in range(start, stop)]
            out.state, metrics = run(out.state, frozen, place_steps(batches, mesh))
            records = _records(start, jax.device_get(metrics))
            _check_finite(records, folder)
            history += records
            if start > out.started:  # the first call compiles
                out.seconds += time.perf_counter() - began
                out.tokens += sum(
                    int((np.asarray(b.segment_bt) >= 0).sum()) for b in batches
                )
            if held_out and (stop == opt.steps or _due(stop, loop.eval_every)):
                history.append({"step": stop, "eval_loss": evaluate(out.state.trained)})
                _keep_best(folder, out)
            if folder is not None and (
                stop == opt.steps or _due(stop, loop.save_every)
            ):
                _save(folder, out.state, history, config, loop.keep)
            _show(bar, stop - start, history, out)
    return out


def spans(start: int, stop: int, loop: Loop) -> list[tuple[int, int]]:
    """Half-open ranges of steps that run in one program; their borders depend on step
    numbers alone, not on `start`.
    """
    every = [n for n in (loop.scan, loop.eval_every, loop.save_every) if n]
    borders = sorted(
        {k for n in every for k in range(n, stop, n)} | {0, stop} | {start}
    )
    return [(a, b) for a, b in pairwise(borders) if a >= start]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


# ---- devices -------------------------------------------------------------------------


def place_state(state: State, mesh: jax.sharding.Mesh) -> State:
    """The state with every leaf, the optimiser's among them, where `LM_RULES` puts the
    parameter.
    """
    return shard_tree(state, LM_RULES, mesh)


def place_steps(batches: list[Batch], mesh: jax.sharding.Mesh) -> Batch:
    """Batches `[m, b, ...]` of several steps as one of `[k, m, b, ...]`, rows over
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
    state: State,
    mesh: jax.sharding.Mesh,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: Compute = Compute(),
    assemble: Assemble = join,
) -> Any:
    """`train_steps` jitted: the state's buffers are used again, and it stays where it
    lies.
    """
    steps = partial(train_steps, cfg=cfg, opt=opt, compute=compute, assemble=assemble)
    return jax.jit(
        steps,
        donate_argnums=0,
        out_shardings=(shardings(state, LM_RULES, mesh), replicated(mesh)),
    )


def _sums(
    trained: Params,
    frozen: Params,
    batch: Batch,
    *,
    cfg: LMConfig,
    compute: Compute,
    assemble: Assemble,
) -> tuple[jax.Array, jax.Array]:
    return loss_sum(
        assemble(frozen, trained), batch, cfg=cfg, compute=compute
    ), jnp.sum(batch.target_valid_bc)


def evaluated(
    sums: Any, frozen: Params, held_out: Iterable[Batch], trained: Params
) -> float:
    """Mean loss in nats per target over all batches; sums are added in double
    precision.
    """
    pairs = [jax.device_get(sums(trained, frozen, batch)) for batch in held_out]
    return float(
        sum(float(total) for total, _ in pairs)
        / max(sum(int(count) for _, count in pairs), 1)
    )


# ---- history and checkpoints ---------------------------------------------------------


def _records(start: int, metrics: Any) -> list[dict[str, float]]:
    return [
        {
            "step": start + i + 1,
            "loss": float(metrics.loss[i]),
            "targets": int(metrics.targets[i]),
            "grad_norm": float(metrics.grad_norm[i]),
            "lr": float(metrics.lr[i]),
        }
        for i in range(len(metrics.loss))
    ]


def best_folder(folder: PathLike) -> epath.Path:
    """Where the leaves of the best step lie, beside the checkpoints in `folder`."""
    path = epath.Path(folder)
    return path.with_name(f"{path.name}-best")


def _keep_best(folder: PathLike | None, out: Fitted) -> None:
    """Saves the trained leaves where this step is the best so far; a continued run
    finds those that it saved before.
    """
    step = int(out.state.step)
    if folder is None or out.best_step != step:
        return
    saved = checkpoints.latest(best_folder(folder))
    if saved is None or saved < step:
        checkpoints.save(best_folder(folder), step, out.state.trained, keep=2)


def _check_finite(records: list[dict[str, float]], folder: PathLike | None) -> None:
    for record in records:
        if not np.isfinite([record["loss"], record["grad_norm"]]).all():
            last = checkpoints.latest(folder) if folder is not None else None
            kept = (
                f"the checkpoint of step {last} is intact"
                if last is not None
                else "no checkpoint was written yet"
            )
            raise RuntimeError(
                f"step {record['step']} has loss {record['loss']} and gradient norm "
                f"{record['grad_norm']} at learning "
                f"rate {record['lr']:.3g}; {kept}. Lower the learning rate, clip the "
                "gradient, or look for damaged rows"
            )


def _save(
    folder: PathLike,
    state: State,
    history: list[dict[str, float]],
    config: Mapping[str, Any] | None,
    keep: int,
) -> None:
    """The history goes first: it may be ahead of a checkpoint, which a continued run
    cuts off, but never behind.
    """
    if is_main():
        write_atomic(epath.Path(folder) / HISTORY, json.dumps(history))
    meta: Meta = {"config": dict(config or {})}
    checkpoints.save(folder, int(state.step), state, meta, keep=keep)


def _continued(
    folder: PathLike | None, state: State, config: Mapping[str, Any] | None
) -> tuple[State, list[dict[str, float]]]:
    """State and history of the last checkpoint, or `state` and no history where there
    is none.
    """
    if folder is None or checkpoints.latest(folder) is None:
        return state, []
    state, _ = checkpoints.restore(folder, state, config=config)
    records = json.loads((epath.Path(folder) / HISTORY).read_text())
    return state, [record for record in records if record["step"] <= int(state.step)]


def _show(bar: Any, steps: int, history: list[dict[str, float]], out: Fitted) -> None:
    shown = {"loss": f"{next(r['loss'] for r in reversed(history) if 'loss' in r):.3f}"}
    held = [r["eval_loss"] for r in history if "eval_loss" in r]
    if held:
        shown["held-out"] = f"{held[-1]:.3f}"
    if out.seconds:
        shown["tokens/s"] = f"{out.tokens / out.seconds:,.0f}"
    bar.update(steps)
    bar.set_postfix(shown)
