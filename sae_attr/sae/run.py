"""The training loop of SAEs: batches in, state and curves out; checkpoints, progress,
and a stop where numbers end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sae_attr.files import checkpoints
from sae_attr.parallel import is_main, shard_batch
from sae_attr.sae.metrics import FitSums, explained_variance
from sae_attr.sae.train import (
    Batch,
    Report,
    TrainState,
    as_pair,
    compiled_step,
    init_state,
)
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store.files import PathLike

Row = dict[str, float]


class Trained(NamedTuple):
    """The last state, and the curves: one row per `log_every` steps, from the first
    step of the run on.
    """

    state: TrainState
    rows: list[Row]


def train(
    cfg: TrainConfig,
    batch: Callable[[int], Batch],
    *,
    mesh: Mesh | None = None,
    folder: PathLike | None = None,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    save_every: int = 1000,
    keep: int = 2,
    log_every: int = 50,
    on_row: Callable[[Row], None] = lambda row: None,
    evaluate: Callable[[TrainState], Row] | None = None,
    eval_every: int = 0,
    progress: bool = True,
) -> Trained:
    """Trains, from the last checkpoint in `folder` if there is one; the result does not
    depend on where it was stopped.

    Args:
      cfg: the run.
      batch: step number (from 0) -> raw activations; the same on every call and every
        process, all of one size.
      mesh: `data` splits tokens, `model` latents; None for one device.
      folder: of checkpoints; None for none.
      inputs: plain values that say what the batches are; a run that goes on must have
        the same.
      save_every: steps between checkpoints, a multiple of `log_every`; the last step is
        always saved.
      keep: checkpoints that are left.
      log_every: steps that a row of the curves sums up.
      on_row: is told every new row.
      evaluate: numbers of a state, added to the row of every `eval_every`-th step (a
        multiple of `log_every`) and the last.
      eval_every: 0 for the last step alone.
      progress: show a bar with tokens/s and the time left.

    Raises:
      FloatingPointError: a loss or gradient that is not finite. Checkpoints hold finite
        steps alone.
      ValueError: a folder of another run (see `checkpoints.restore`), batches that do
        not fit the config.
    """
    for name, every in (("save_every", save_every), ("eval_every", eval_every)):
        if every % log_every:
            raise ValueError(
                f"{name}={every} is no multiple of log_every={log_every}; curves would "
                "lose a part"
            )
    identity = {**inputs, **asdict(cfg)}
    state, rows = resume(cfg, batch, mesh, folder, identity)
    step_fn, window = compiled_step(cfg, mesh, state), []
    with _bar(cfg, int(state.step), progress) as bar:
        for step in range(int(state.step), cfg.steps):
            x, y = _placed(batch(step), cfg, mesh)
            state, report = step_fn(state, x, y)
            window.append((len(x), report))
            last = step + 1 == cfg.steps
            if last or (step + 1) % log_every == 0:
                _check_finite(state, batch, cfg, folder)
                rows.append(row_of(step + 1, rows[-1]["tokens"] if rows else 0, window))
                if evaluate is not None and (
                    last or (eval_every and (step + 1) % eval_every == 0)
                ):
                    rows[-1] |= evaluate(state)
                on_row(rows[-1])
                _advance(bar, window, rows[-1])
                window = []
            if folder is not None and (last or (step + 1) % save_every == 0):
                checkpoints.save(
                    folder,
                    step + 1,
                    state,
                    {"config": identity, "rows": rows},
                    keep=keep,
                )
    return Trained(state, rows)


def resume(
    cfg: TrainConfig,
    batch: Callable[[int], Batch],
    mesh: Mesh | None,
    folder: PathLike | None,
    identity: Mapping[str, Any],
) -> tuple[TrainState, list[Row]]:
    """State and curves of the last checkpoint, or of a new run.

    The first batches are read again even where a checkpoint exists: the state's shapes
      and shardings come from them.
    """
    fresh = init_state(cfg, batch, mesh)
    if folder is None or checkpoints.latest(folder) is None:
        return fresh, []
    state, meta = checkpoints.restore(folder, fresh, config=identity)
    return state, meta["rows"]


def row_of(step: int, tokens_before: float, window: list[tuple[int, Report]]) -> Row:
    """One row of the curves: means over the window's steps, explained variance pooled
    over its tokens.
    """
    reports = jax.device_get([report for _, report in window])
    mean = lambda name: float(
        np.mean([getattr(r, name) for r in reports], dtype=np.float64)
    )
    tokens = sum(size for size, _ in window)
    total = [
        float(np.sum([getattr(r, name) for r in reports], dtype=np.float64))
        for name in ("squares", "residual")
    ]
    sum_m = np.asarray(np.sum([r.sum_m for r in reports], axis=0, dtype=np.float64))
    sums = FitSums(tokens, sum_m, total[0], total[1], 0.0, np.zeros(0, np.int64))
    terms = {
        k: float(np.mean([r.terms[k] for r in reports], dtype=np.float64))
        for k in reports[0].terms
    }
    last = {
        k: float(getattr(reports[-1], k))
        for k in ("dead", "lr", "sparsity", "threshold")
    }
    return {
        "step": step,
        "tokens": tokens_before + tokens,
        "loss": sum(terms.values()),
        **terms,
        "explained_variance": explained_variance(sums),
        "l0": mean("l0"),
        **last,
        "grad_norm": mean("grad_norm"),
        "spilled": mean("spilled"),
    }


def _placed(batch: Batch, cfg: TrainConfig, mesh: Mesh | None) -> tuple[Any, Any]:
    x, y = as_pair(batch, cfg)
    if mesh is None:
        return x, y
    return (shard_batch(x, mesh),) * 2 if x is y else shard_batch((x, y), mesh)


def _check_finite(
    state: TrainState,
    batch: Callable[[int], Batch],
    cfg: TrainConfig,
    folder: PathLike | None,
) -> None:
    """Raises where a step since the last check went wrong, and says whether its data or
    its numbers did.
    """
    bad = int(state.bad_step)
    if bad < 0:
        return
    data = all(np.isfinite(np.asarray(part)).all() for part in as_pair(batch(bad), cfg))
    why = "its activations are finite, so the numbers ran away; lower lr, or set clip"
    if not data:
        why = "its activations hold NaN or infinity; look at where they come from"
    saved = None if folder is None else checkpoints.latest(folder)
    left = (
        "no checkpoint was written"
        if saved is None
        else f"the checkpoint of step {saved} is whole"
    )
    raise FloatingPointError(
        f"loss or gradient of step {bad} is not finite: {why}. Training stopped; {left}"
    )


@contextlib.contextmanager
def _bar(cfg: TrainConfig, start: int, show: bool) -> Iterator[Any]:
    """A progress bar in tokens, whose total is known after the first row."""
    with tqdm(
        disable=not (show and is_main()),
        unit="tok",
        unit_scale=True,
        desc=cfg.objective,
    ) as bar:
        bar.start_step, bar.steps = start, cfg.steps  # type: ignore[attr-defined]
        yield bar


def _advance(bar: Any, window: list[tuple[int, Report]], row: Row) -> None:
    bar.total = (bar.steps - bar.start_step) * window[0][0]
    bar.update(sum(size for size, _ in window))
    bar.set_postfix(
        {
            "EV": f"{row['explained_variance']:.4f}",
            "L0": f"{row['l0']:.1f}",
            "dead": f"{row['dead']:.1%}",
        }
    )
