"""Stages that read each other: what is done, stale or missing, and running what is not
done, in order.

A stage's key is made of names and config fields alone (its own and those of what it
reads), never of contents, so the state of a whole chain is known before anything is
computed or loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from sae_attr.store.entries import Store
from sae_attr.store.manifest import Damaged
from sae_attr.store.progress import Progress
from sae_attr.store.stages import Result, run_stage, stage_key

Made = tuple[Mapping[str, Any], Mapping[str, Any]]
"""What a stage gives: arrays, meta."""

Compute = Callable[[Mapping[str, Result], Progress], Made]


@dataclass(frozen=True)
class Stage:
    """One step of a chain.

    Args:
      name: unique; parts are joined with dots, as in `misalignment.steer.away`.
      run: `(results of what it needs, progress) -> (arrays, meta)`.
      fields: the config fields that the result depends on, beside those of what it
        needs.
      needs: names of the stages that it reads, which come before it.
      version: raised when the stage's code gives other numbers than before.
      calls: versions, by name, of other packages' stages that `run` calls; part of the
        key, as the stage's own version is.
    """

    name: str
    run: Compute
    fields: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1
    calls: Mapping[str, int] = field(default_factory=dict)

    @property
    def declared(self) -> dict[str, Any]:
        """What the key holds beside name, version and inputs."""
        return (
            {**self.fields, "calls": dict(self.calls)}
            if self.calls
            else dict(self.fields)
        )


@dataclass(frozen=True)
class Status:
    """A stage's state: `done`, `stale` (stored for another config or version, or for
    other inputs), `part` (a run of it was stopped) or `missing`.
    """

    name: str
    state: str
    key: str


def stage_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Name -> key under which each stage's artefact lies.

    Raises:
      ValueError: a name that stands twice, or a stage that needs one that does not come
        before it.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        if stage.name in keys:
            raise ValueError(f"two stages are called {stage.name!r}; rename one")
        if absent := [name for name in stage.needs if name not in keys]:
            raise ValueError(
                f"stage {stage.name!r} needs {absent[0]!r}, which does not come before "
                "it"
            )
        keys[stage.name] = stage_key(
            stage.name, stage.version, stage.declared, {n: keys[n] for n in stage.needs}
        )
    return keys


def listing(store: Store, stages: Sequence[Stage]) -> list[Status]:
    """The state of every stage; nothing is computed or loaded."""
    root = epath.Path(store.root)
    found = (
        {p.name.rpartition("-")[0] for p in root.iterdir()} if root.exists() else set()
    )
    out = []
    for name, key in stage_keys(stages).items():
        if store.has(key):
            state = "done"
        elif store.progress(key).folder.exists():
            state = "part"
        else:
            state = "stale" if name in found else "missing"
        out.append(Status(name, state, key))
    return out


def named(stages: Sequence[Stage], words: Iterable[str]) -> set[str]:
    """The stages that words name: a whole name, or one or more of its dotted parts
    (`steer`, `steer.away`).

    Raises:
      ValueError: a word that names none.
    """
    chosen: set[str] = set()
    for word in words:
        hits = {s.name for s in stages if f".{word}." in f".{s.name}."}
        if not hits:
            raise ValueError(
                f"no stage is called {word!r}; the stages are "
                f"{', '.join(s.name for s in stages)}"
            )
        chosen |= hits
    return chosen


def chosen_stages(
    stages: Sequence[Stage], *, only: Sequence[str] = (), until: str | None = None
) -> list[Stage]:
    """The stages that `only` names, or all up to the last that `until` names; all of
    them without either.

    Raises:
      ValueError: both are given, or a word names no stage.
    """
    if only and until:
        raise ValueError(
            f"only={','.join(only)} and until={until} are both given; choose one"
        )
    if only:
        names = named(stages, only)
        return [stage for stage in stages if stage.name in names]
    last = (
        max(i for i, s in enumerate(stages) if s.name in named(stages, [until]))
        if until
        else len(stages)
    )
    return list(stages[: last + 1])


def with_readers(stages: Sequence[Stage], names: set[str]) -> set[str]:
    """These stages and all that read them, directly or not."""
    out = set(names)
    for stage in stages:  # in order, so one pass is enough
        if out & set(stage.needs):
            out.add(stage.name)
    return out


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
) -> dict[str, Result]:
    """Loads every stage that is done and computes the others, in order.

    Args:
      only: run just the stages that these words name; what they need must be done.
      until: stop after the stage (the last one) that this word names.
      force: compute these again, and what reads them.
      agree: with several processes, process 0's answer for all (`parallel.from_main`).
      on_start, on_end: are told of every stage.

    Returns:
      name -> result of every stage that ran, or was read by one.

    Raises:
      ValueError: a word that names no stage; `only` a stage whose inputs are not done.
    """
    chosen = chosen_stages(stages, only=only, until=until)
    states = {status.name: status for status in listing(store, stages)}
    _check_inputs(chosen, states)
    for name in with_readers(stages, named(stages, force)) & {
        stage.name for stage in chosen
    }:
        if store.writer:
            store.discard(states[name].key)
            store.progress(states[name].key).clear()
    results: dict[str, Result] = {}
    by_name = {stage.name: stage for stage in stages}

    def result(name: str) -> Result:
        """Loaded or computed; what it reads is looked at only if it must be computed."""
        if name not in results:
            stage = by_name[name]
            inputs = {need: states[need].key for need in stage.needs}
            compute = lambda progress: stage.run(
                {need: result(need) for need in stage.needs}, progress
            )
            results[name] = run_stage(
                store, name, stage.version, stage.declared, inputs, compute, agree=agree
            )
        return results[name]

    for stage in chosen:
        on_start(states[stage.name])
        on_end(states[stage.name], result(stage.name))
    return results


def stored_results(
    store: Store,
    stages: Sequence[Stage],
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Result]:
    """Returns name -> result of every wanted stage that is done; none is computed, and
    damaged ones are passed over.
    """
    out: dict[str, Result] = {}
    for name, key in stage_keys(stages).items():
        if wanted(name) and store.has(key):
            try:
                arrays, meta = store.load(key)
            except (KeyError, Damaged):
                continue
            out[name] = Result(arrays, meta, key, 0.0, True)
    return out


def _check_inputs(chosen: Sequence[Stage], states: Mapping[str, Status]) -> None:
    names = {stage.name for stage in chosen}
    for stage in chosen:
        for name in stage.needs:
            if name not in names and states[name].state != "done":
                raise ValueError(
                    f"stage {stage.name!r} reads {name!r}, which is "
                    f"{states[name].state}; run that too, or do not say only"
                )
