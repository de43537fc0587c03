"""The training loop that language models and SAEs share.

The batch of a step follows from its number alone, and the curves lie in the
checkpoint beside the state. A run that was killed therefore goes on as if it had not
been, and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.files import checkpoints
from sae_attr.store.files import PathLike
from sae_attr.store.metrics_log import MetricsLog

Record = dict[str, float]
"""One row of the curves; `step` counts the steps that were made by then."""


class State(Protocol):
    """A pytree with everything that the next step depends on beside its batch."""

    step: Any


class Metrics(Protocol):
    """Numbers of the steps of one program: scalars, or arrays `[k]` for k steps.

    `tokens` counts the tokens of the batches without padding.
    """

    loss: Any
    grad_norm: Any
    lr: Any
    tokens: Any


S = TypeVar("S", bound=State)
M = TypeVar("M", bound=Metrics)
B = TypeVar("B")


class Diverged(RuntimeError):
    """A loss or a gradient that is not finite."""


@dataclass(frozen=True)
class LoopOptions:
    """Sets when things happen, in steps.

    Args:
      scan: steps in one program at most; no number depends on it beyond float
        rounding. 0: as many as lie between two evaluations or checkpoints.
      log_every: steps that one record of the curves sums up; 0: the loop asks for
        records after each program.
      eval_every: steps between evaluations, beside the one at the end; 0: only there.
      save_every: steps between checkpoints, beside the one at the end; 0: only there.
      keep: how many of the last checkpoints stay on the disk.

    Raises:
      ValueError: `eval_every` or `save_every` is no multiple of `log_every`.
    """

    scan: int = 10
    log_every: int = 0
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        if not self.log_every:
            return
        for name in ("save_every", "eval_every"):
            every = getattr(self, name)
            if every % self.log_every:
                raise ValueError(
                    f"{name}={every} is no multiple of log_every={self.log_every}; "
                    "curves would lose a part"
                )


def no_action(state: Any, history: Sequence[Record]) -> None:
    """Does nothing with a state and its curves."""


def _no_numbers(state: Any) -> Record:
    return {}


def _nothing_shown(history: Sequence[Record]) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Curves(Generic[S, M]):
    """Holds what is measured during training.

    Args:
      records_of: sums up metrics since the last record as new records. Its first
        argument is that record, `{"step": 0}` before there is one.
      evaluate: measures a state; its numbers are added to the record of that step.
      evaluate_start: also measure the state before the first step.
      on_record: called with the state and the whole curve after every new record.
      shown: numbers for the progress bar.
    """

    records_of: Callable[[Record, list[M]], list[Record]]
    evaluate: Callable[[S], Record] = _no_numbers
    evaluate_start: bool = False
    on_record: Callable[[S, list[Record]], None] = no_action
    shown: Callable[[Sequence[Record]], Mapping[str, str]] = _nothing_shown


@dataclass
class TrainResult(Generic[S]):
    """The end of a run.

    Args:
      state: after the last step.
      history: the curves, from the first step of the run on.
      started: the step at which this process began, above 0 after a kill.
      seconds, tokens: of the steps of this process, without those that compiled.
    """

    state: S
    history: list[Record]
    started: int = 0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Returns the speed; None where nothing was timed."""
        return self.tokens / self.seconds if self.seconds else None


def train(
    state: S,
    run_steps: Callable[[S, list[B]], tuple[S, M]],
    batch_of: Callable[[int], B],
    *,
    steps: int,
    options: LoopOptions,
    curves: Curves[S, M],
    folder: PathLike | None = None,
    config: Mapping[str, Any] = MappingProxyType({}),
    metrics_log: MetricsLog | None = None,
    progress: bool = True,
) -> TrainResult[S]:
    """Trains until `steps` steps are made, from the last checkpoint if there is one.

    Args:
      state: before the first step; its shapes and shardings are those of checkpoints.
      run_steps: makes one step with each batch, in one program; may donate the state.
      batch_of: returns the batch of a step, counted from 0; the same on every call and
        in every process.
      steps: of the whole run.
      folder: of checkpoints; None writes none.
      config: plain values that say what is trained on what; a run that goes on must
        have the same.
      metrics_log: gets every record of the curves as it is made.

    Raises:
      Diverged: a loss or gradient that is not finite. Checkpoints hold finite steps
        alone.
      ValueError: checkpoints of another config, of other shapes, or of an older
        version.
    """
    log = metrics_log or MetricsLog(None)
    state, history = resume(folder, state, config)
    result = TrainResult(state, history, started=int(state.step))
    log.start(history)
    if curves.evaluate_start and not history:
        history.append({"step": 0, **curves.evaluate(state)})
    window: list[M] = []
    clock = time.perf_counter()
    with _progress_bar(result.started, steps, progress) as bar, log:
        for first, stop in spans(result.started, steps, options):
            batches = [batch_of(step) for step in range(first, stop)]
            result.state, metrics = run_steps(result.state, batches)
            window.append(metrics)
            if not _due(stop, steps, options.log_every or 1):
                continue
            # Only here does the host wait for the devices.
            last = _last_record(history)
            first_in_window = int(last["step"])
            window = jax.device_get(window)
            # Before the checkpoint: a run must never go on from a state of NaN.
            _check_finite(first_in_window, window, batch_of, folder)
            _add_speed(result, first_in_window, window, clock)
            history += curves.records_of(last, window)
            if _due(stop, steps, options.eval_every):
                history[-1] |= curves.evaluate(result.state)
            curves.on_record(result.state, history)
            log.follow(history)
            if folder is not None and _due(stop, steps, options.save_every):
                log.flush()
                _save(folder, stop, result, config, options.keep)
            _advance(bar, stop, curves.shown(history), result.tokens_per_second)
            window, clock = [], time.perf_counter()
    return result


def spans(start: int, stop: int, options: LoopOptions) -> Iterator[tuple[int, int]]:
    """Yields half-open ranges of steps that run in one program.

    Their borders depend on step numbers alone, not on `start`: a run that goes on
    makes the same programs as one that was never stopped.
    """
    intervals = (
        options.scan,
        options.log_every,
        options.eval_every,
        options.save_every,
    )
    while start < stop:
        borders = [start - start % every + every for every in intervals if every]
        end = min([stop, *borders])
        yield start, end
        start = end


def _due(step: int, steps: int, every: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


# ---- checkpoints ---------------------------------------------------------------------


def resume(
    folder: PathLike | None, state: S, config: Mapping[str, Any]
) -> tuple[S, list[Record]]:
    """Returns state and curves of the last checkpoint, or `state` and no curves.

    Raises:
      ValueError: checkpoints of another config, of other shapes, or of an older
        version.
    """
    if folder is None or checkpoints.latest(folder) is None:
        return state, []
    if "history" not in checkpoints.read_meta(folder):
        raise ValueError(
            f"the checkpoints in {folder} are of an older version, which kept its "
            "curves elsewhere; remove that folder, and the run begins anew"
        )
    state, meta = checkpoints.restore(folder, state, config=config)
    return state, meta["history"]


def _save(
    folder: PathLike,
    step: int,
    result: TrainResult[Any],
    config: Mapping[str, Any],
    keep: int,
) -> None:
    # Curves lie in the checkpoint: in a file of their own a kill could leave them ahead
    # of the state.
    meta = {"config": dict(config), "history": result.history}
    checkpoints.save(folder, step, result.state, meta, keep=keep)


def _last_record(history: Sequence[Record]) -> Record:
    return history[-1] if history else {"step": 0}


def _check_finite(
    first: int,
    window: Sequence[Metrics],
    batch_of: Callable[[int], Any],
    folder: PathLike | None,
) -> None:
    """Raises where a step is not finite, and says whether its data or its numbers are
    at fault.
    """
    loss = np.concatenate([np.atleast_1d(metrics.loss) for metrics in window])
    norm = np.concatenate([np.atleast_1d(metrics.grad_norm) for metrics in window])
    rate = np.concatenate([np.atleast_1d(metrics.lr) for metrics in window])
    bad = np.flatnonzero(~(np.isfinite(loss) & np.isfinite(norm)))
    if not bad.size:
        return
    i = int(bad[0])
    if _is_finite(batch_of(first + i)):
        cause = (
            "its batch is finite, so training diverged: lower the learning rate, or "
            "clip the gradient"
        )
    else:
        cause = "its batch holds NaN or infinity: look at where it comes from"
    saved = None if folder is None else checkpoints.latest(folder)
    left = f"the checkpoint of step {saved} is whole"
    if saved is None:
        left = "no checkpoint was written"
    raise Diverged(
        f"step {first + i + 1} has loss {loss[i]:g} and gradient norm {norm[i]:g} at "
        f"learning rate {rate[i]:.3g}; {cause}. Training stopped; {left}"
    )


def _is_finite(batch: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(batch))


# ---- progress ------------------------------------------------------------------------


def _add_speed(
    result: TrainResult[Any], first: int, window: Sequence[Metrics], clock: float
) -> None:
    """Counts the window's time and tokens, unless it began with the compilation."""
    # Compilation would count as slow steps.
    if first == result.started:
        return
    result.seconds += time.perf_counter() - clock
    result.tokens += sum(int(np.sum(metrics.tokens)) for metrics in window)


def _progress_bar(started: int, steps: int, progress: bool) -> Any:
    return tqdm(
        total=steps, initial=started, desc="train", unit="step", disable=not progress
    )


def _advance(
    bar: Any, step: int, numbers: Mapping[str, str], speed: float | None
) -> None:
    bar.update(step - bar.n)
    if speed is not None:
        numbers = {**numbers, "tokens/s": f"{speed:,.0f}"}
    bar.set_postfix(numbers)
