"""The stage graph: keys, states, selection by name, and running what is not
done.

A stage's key is made of names and config fields alone (its own and those of what it
reads), never of contents, so the state of a whole graph is known before anything is
computed or loaded.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from etils import epath

from sae_attr.store.entries import Store
from sae_attr.store.files import Arrays, Meta
from sae_attr.store.manifest import Damaged
from sae_attr.store.names import digest
from sae_attr.store.progress import Progress

Computed: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Arrays by name, and meta: plain values that become JSON."""


class NothingToCompute(ValueError):
    """Raised by a stage whose inputs leave it nothing to compute, with the reason. What
    does not read it can go on; see `on_skip` of `run_stages`.
    """


class InputAwaited(Exception):
    """Raised by a stage that wrote what another program must answer, and has no answer
    yet. What does not read the stage goes on; then the run ends with this error.
    """


class StageOutput(NamedTuple):
    """Holds what a stage returns that also leaves files, which others read by their
    path.

    Args:
      arrays, meta: as of any stage.
      write: fills the folder of the stage's entry; the files are published with it,
        whole or not at all, and found under `Result.folder`.
    """

    arrays: Mapping[str, Any]
    meta: Mapping[str, Any]
    write: Callable[[epath.Path], None] | None = None


class Result(NamedTuple):
    """A stage's result, computed or loaded.

    Args:
      arrays: by name; memory-mapped where they were loaded from a local disk.
      meta: plain values; `seconds` is what computing took (of a continued stage, since
        it was continued).
      key: names its entry in the store.
      seconds: what this run spent on computing or loading it.
      cached: it only had to be loaded.
      folder: of its entry, where its files lie.
    """

    arrays: Arrays
    meta: Meta
    key: str
    seconds: float
    cached: bool
    folder: epath.Path


StageRun: TypeAlias = Callable[
    [Mapping[str, Result], Progress], "Computed | StageOutput"
]


@dataclass(frozen=True)
class Stage:
    """One step of a graph.

    Args:
      name: unique; parts are joined with dots, as in `misalignment.steer.away`.
      run: `(results of its needs in their order, progress) -> (arrays, meta)`, or a
        `StageOutput`. A long one asks `progress` what was finished before a kill.
      fields: the config fields that the result depends on, beside those of its needs.
      needs: names of the stages that it reads, which come before it.
      version: raised when the stage's code gives other numbers than before.
      calls: versions, by name, of other packages' stages that `run` calls; part of the
        key, as the stage's own version is.
      accept: called with the result whenever it is computed or loaded; raises where a
        run must not go on with it. What decides may be no part of the key, so that a
        refused result is kept and a later run can accept it.
    """

    name: str
    run: StageRun
    fields: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1
    calls: Mapping[str, int] = field(default_factory=dict)
    accept: Callable[[Result], None] = lambda result: None

    @property
    def declared(self) -> dict[str, Any]:
        """Returns what the key holds beside name, version and inputs."""
        if not self.calls:
            return dict(self.fields)
        return {**self.fields, "calls": dict(self.calls)}


@dataclass(frozen=True)
class Status:
    """A stage's state: `done`, `stale` (stored for another config or version, or for
    other inputs), `part` (a run of it was stopped) or `missing`.
    """

    name: str
    state: str
    key: str


# ---- keys and states -----------------------------------------------------------------


def stage_key(
    name: str, version: int, fields: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """Returns the key of a stage's entry, which starts with the stage's name."""
    return f"{name}-{digest([name, version, dict(fields), dict(inputs)])}"


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Returns name -> key of every stage's entry.

    Raises:
      ValueError: two stages of one name, or a stage that needs one that does not come
        before it.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        if stage.name in keys:
            raise ValueError(f"two stages are called {stage.name!r}; rename one")
        for need in stage.needs:
            if need not in keys:
                raise ValueError(
                    f"stage {stage.name!r} needs {need!r}, which does not come before "
                    "it"
                )
        inputs = {need: keys[need] for need in stage.needs}
        keys[stage.name] = stage_key(stage.name, stage.version, stage.declared, inputs)
    return keys


def stage_statuses(store: Store, stages: Sequence[Stage]) -> list[Status]:
    """Returns the state of every stage; nothing is computed or loaded."""
    root = epath.Path(store.root)
    entries = root.iterdir() if root.exists() else ()
    stored_names = {entry.name.rpartition("-")[0] for entry in entries}
    statuses = []
    for name, key in stage_keys(stages).items():
        if store.has(key):
            state = "done"
        elif store.progress(key).folder.exists():
            state = "part"
        else:
            state = "stale" if name in stored_names else "missing"
        statuses.append(Status(name, state, key))
    return statuses


# ---- selection -----------------------------------------------------------------------


def matching_names(stages: Sequence[Stage], words: Iterable[str]) -> set[str]:
    """Returns the names of the stages that words stand for.

    A word is a whole name, the beginning of some (`misalignment`, `misalignment.steer`)
    or, where no name begins with it, one or more dotted parts inside (`steer`,
    `steer.away`).

    Raises:
      ValueError: a word that stands for no stage.
    """
    names = [stage.name for stage in stages]
    matches: set[str] = set()
    for word in words:
        # Beginnings come first: a case may have the name of a part of other stages, and
        # its name alone must not force those.
        hits = {name for name in names if f"{name}.".startswith(f"{word}.")}
        hits = hits or {name for name in names if f".{word}." in f".{name}."}
        if not hits:
            raise ValueError(
                f"no stage is called {word!r}; the stages are {', '.join(names)}"
            )
        matches |= hits
    return matches


def select_stages(
    stages: Sequence[Stage], *, only: Sequence[str] = (), until: str | None = None
) -> list[Stage]:
    """Returns the stages that `only` names, or all up to the last that `until` names;
    all of them without either.

    Raises:
      ValueError: both are set, or a word stands for no stage.
    """
    if only and until:
        raise ValueError(
            f"only={','.join(only)} and until={until} are both given; choose one"
        )
    if only:
        names = matching_names(stages, only)
        return [stage for stage in stages if stage.name in names]
    if not until:
        return list(stages)
    names = matching_names(stages, [until])
    last = max(i for i, stage in enumerate(stages) if stage.name in names)
    return list(stages[: last + 1])


def with_readers(stages: Sequence[Stage], names: set[str]) -> set[str]:
    """Returns these stages and all that read them, directly or not."""
    readers = set(names)
    for stage in stages:  # in order, so one pass is enough
        if readers & set(stage.needs):
            readers.add(stage.name)
    return readers


# ---- running -------------------------------------------------------------------------


def run_stages(
    store: Store,
    stages: Sequence[Stage],
    *,
    only: Sequence[str] = (),
    until: str | None = None,
    force: Sequence[str] = (),
    agree: Callable[[bool], bool] = bool,
    on_start: Callable[[Status], None] = lambda status: None,
    on_end: Callable[[Status, Result], None] = lambda status, result: None,
    on_skip: Callable[[Status, str], None] | None = None,
) -> dict[str, Result]:
    """Loads every stage that is done and computes the others, in order.

    Args:
      only: run just the stages that these words name; their needs must be done.
      until: stop after the last stage that this word names.
      force: compute these again, and what reads them.
      agree: with several processes, process 0's answer for all (`parallel.from_main`).
      on_start, on_end: called around every stage.
      on_skip: called with the reason for a stage that has nothing to compute; those
        that read it are left out, and the others go on. Without it the run ends.

    Returns:
      name -> result of every stage that ran, or was read by one.

    Raises:
      ValueError: a word that stands for no stage; `only` a stage whose needs are not
        done.
      NothingToCompute: by a stage, without `on_skip`.
      InputAwaited: by stages; names all of them, after the others have run.
    """
    selected = select_stages(stages, only=only, until=until)
    statuses = {status.name: status for status in stage_statuses(store, stages)}
    _check_needs(selected, statuses)
    forced = with_readers(stages, matching_names(stages, force))
    _discard(
        store, [statuses[stage.name] for stage in selected if stage.name in forced]
    )
    run = _Run(store, {stage.name: stage for stage in stages}, statuses, agree)
    left_out: set[str] = set()
    awaited: list[str] = []
    for stage in selected:
        status = statuses[stage.name]
        if left_out & set(stage.needs):
            left_out.add(stage.name)
            continue
        on_start(status)
        try:
            result = run.result_of(stage.name)
        except NothingToCompute as error:
            if on_skip is None:
                raise
            left_out.add(stage.name)
            on_skip(status, str(error))
            continue
        except InputAwaited as error:
            left_out.add(stage.name)
            awaited.append(f"{stage.name}: {error}")
            continue
        on_end(status, result)
    if awaited:
        raise InputAwaited("\n".join(awaited))
    return run.results


@dataclass(frozen=True)
class _Run:
    """A run of some stages, with the results that it has so far."""

    store: Store
    stages: Mapping[str, Stage]
    statuses: Mapping[str, Status]
    agree: Callable[[bool], bool]
    results: dict[str, Result] = field(default_factory=dict)

    def result_of(self, name: str) -> Result:
        """Loads or computes; needs are looked at only where it must be computed, so
        that a finished graph loads no more than was selected.
        """
        if name in self.results:
            return self.results[name]
        stage = self.stages[name]

        def compute(progress: Progress) -> StageOutput:
            inputs = {need: self.result_of(need) for need in stage.needs}
            start = time.perf_counter()
            output = _as_output(stage.run(inputs, progress))
            seconds = round(time.perf_counter() - start, 3)
            return output._replace(meta={**output.meta, "seconds": seconds})

        key = self.statuses[name].key
        result = _load_or_compute(self.store, key, compute, self.agree)
        self.results[name] = result
        stage.accept(result)
        return result


def _discard(store: Store, statuses: Iterable[Status]) -> None:
    """Removes what is stored of stages, and what a stopped run left of them."""
    if store.writer:
        for status in statuses:
            store.discard(status.key)
            store.progress(status.key).clear()


def run_stage(
    store: Store,
    name: str,
    version: int,
    fields: Mapping[str, Any],
    inputs: Mapping[str, str],
    fn: Callable[[Progress], Computed | StageOutput],
    agree: Callable[[bool], bool] = bool,
) -> Result:
    """Loads or computes one stage whose inputs are known by their keys alone.

    Args:
      store: where entries lie.
      name, version, fields: as of a `Stage`.
      inputs: name -> key (or fingerprint) of what the stage reads.
      fn: `progress -> (arrays, meta)`.
      agree: as for `run_stages`.
    """
    return _load_or_compute(store, stage_key(name, version, fields, inputs), fn, agree)


def stored_results(
    store: Store,
    stages: Sequence[Stage],
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Result]:
    """Returns name -> result of every wanted stage that is done; none is computed, and
    damaged ones are passed over.
    """
    results: dict[str, Result] = {}
    for name, key in stage_keys(stages).items():
        if wanted(name) and store.has(key):
            try:
                arrays, meta = store.load(key)
            except (KeyError, Damaged):
                continue
            results[name] = Result(arrays, meta, key, 0.0, True, store.path(key))
    return results


def _check_needs(selected: Sequence[Stage], statuses: Mapping[str, Status]) -> None:
    """Raises ValueError for a stage that reads one which is neither selected nor done."""
    names = {stage.name for stage in selected}
    for stage in selected:
        for need in stage.needs:
            if need not in names and statuses[need].state != "done":
                raise ValueError(
                    f"stage {stage.name!r} reads {need!r}, which is "
                    f"{statuses[need].state}; run that too, or leave out --only"
                )


def _as_output(computed: Computed | StageOutput) -> StageOutput:
    """Returns what a stage computed, with or without files, in one form."""
    if isinstance(computed, StageOutput):
        return computed
    arrays, meta = computed
    return StageOutput(arrays, meta)


def _load_or_compute(
    store: Store,
    key: str,
    compute: Callable[[Progress], Computed | StageOutput],
    agree: Callable[[bool], bool],
) -> Result:
    """Loads the entry of a key, or computes and publishes it.

    All processes must compute, or none: a stage may be a collective program.
    """
    start = time.perf_counter()
    # What process 0 found decides: on a network disk another may not see it yet.
    entry = _load_or_warn(store, key)
    if agree(entry is not None):
        arrays, meta = entry or store.load(key)
        seconds = time.perf_counter() - start
        return Result(arrays, meta, key, seconds, True, store.path(key))
    progress = store.progress(key)
    output = _as_output(compute(progress))
    store.publish(key, output.arrays, output.meta, output.write)
    if store.writer:
        # What was written is read back, so that a first run goes on with exactly what a
        # second one would see.
        arrays, meta = store.load(key)
    else:
        arrays = {name: np.asarray(array) for name, array in output.arrays.items()}
        meta = dict(output.meta)
    progress.clear()
    seconds = time.perf_counter() - start
    return Result(arrays, meta, key, seconds, False, store.path(key))


def _load_or_warn(store: Store, key: str) -> tuple[Arrays, Meta] | None:
    """Loads an entry; None where it is absent, or damaged, which is warned of and its
    remains removed.
    """
    try:
        return store.load(key)
    except KeyError:
        return None
    except Damaged as error:
        warnings.warn(f"{error}; it is computed again", RuntimeWarning, stacklevel=4)
        store.discard(key)
        return None
