"""The stages of a run on the command line: which of them, how they go, what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from absl import flags
from etils import epath

from sae_attr import parallel
from sae_attr.store import (
    Result,
    Stage,
    Status,
    Store,
    run_stages,
    select_stages,
    stage_statuses,
)
from sae_attr.study.stage_choice import StageChoice

from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR, reads
from ._progress import StageMetrics, StageProgress

ONLY = flags.DEFINE_list(
    "only",
    [],
    "Run just these stages; a word names a stage or a part of its name (steer, away).",
)
UNTIL = flags.DEFINE_string("until", None, "Stop after this stage.")
FORCE = flags.DEFINE_list(
    "force", [], "Compute these stages again, and what reads them."
)
LIST = flags.DEFINE_bool(
    "list",
    False,
    "Say which stages are done, stale, in part or missing, and what is left; run "
    "nothing.",
)
ALL = StageChoice()


class RunOptions(TypedDict, total=False):
    """How the stages of a program run, as the flags state it: those that are chosen;
    whether they are only listed; whether a workdir of another config is taken over.
    """

    choice: StageChoice
    shown: bool
    allow_change: bool


@reads(CONFIG, WORKDIR, ONLY, UNTIL, FORCE, LIST, ALLOW_CHANGE)
def start_from_flags(start: Callable[..., None]) -> None:
    """Calls a program's `start` with the config, the workdir and the stages that the
    flags state.
    """
    start(
        CONFIG.value,
        epath.Path(str(WORKDIR.value)),
        choice=choice_of_flags(),
        shown=LIST.value,
        allow_change=ALLOW_CHANGE.value,
    )


@reads(ONLY, UNTIL, FORCE)
def choice_of_flags() -> StageChoice:
    """Returns the choice that the flags --only, --until and --force state."""
    return StageChoice(ONLY.value, UNTIL.value, FORCE.value)


def states_text(store: Store, stages: Sequence[Stage]) -> str:
    """Returns every stage with its state, a line each."""
    statuses = stage_statuses(store, stages)
    return "\n".join(f"{status.state:<8} {status.name}" for status in statuses)


def run_chosen(
    store: Store,
    stages: Sequence[Stage],
    choice: StageChoice,
    on_end: Callable[[Status, Result], None] = lambda status, result: None,
    on_skip: Callable[[Status, str], None] | None = None,
) -> dict[str, Result]:
    """Runs the chosen stages, and shows on the main process how they go; what each took
    is written to metrics.jsonl beside the store.

    Args:
      on_end: called after every stage, on the main process.
      on_skip: see `run_stages`; called on every process.
    """
    names = {
        stage.name
        for stage in select_stages(stages, only=choice.only, until=choice.until)
    }
    hooks: dict[str, Any] = {}
    if parallel.is_main():
        statuses = stage_statuses(store, stages)
        course = StageProgress([status for status in statuses if status.name in names])
        keys = {status.name: status.key for status in statuses}
        metrics = StageMetrics(epath.Path(store.root).parent, keys)

        def end(status: Status, result: Result) -> None:
            course.end(status, result)
            metrics.end(status, result)
            on_end(status, result)

        hooks = {"on_start": course.start, "on_end": end}
    return run_stages(
        store,
        stages,
        agree=parallel.from_main,
        on_skip=on_skip,
        **choice.options(),
        **hooks,
    )
