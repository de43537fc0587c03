"""Runs case studies end to end, from sampling to one page; see configs/organism.py and
configs/case_study.py for the commands.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.store import (
    Result,
    Store,
    stage_statuses,
    stored_results,
    write_atomic,
)
from sae_attr.study.case import Runtime
from sae_attr.study.case_study import CaseStudy, open_study
from sae_attr.study.cost import case_costs, cost_table
from sae_attr.study.dry_run.case_report import case_study_dry_run
from sae_attr.study.outputs import Shown
from sae_attr.study.stage_choice import StageChoice
from sae_attr.study.stored_drawings import StoredDrawings

from . import _common
from ._command import command_line
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR
from ._progress import ending
from ._stages import FORCE, LIST, ONLY, UNTIL, run_chosen, states_text

PLAIN = ("mesh", "batch_size", "attribution")  # where and how fast, not what
# Of a judge or server: where it is served, how it is waited for, and what it may cost. Its
# identity is its model and rubric.
PLAIN_OF_JUDGE = (
    "base_url", "name", "timeout", "concurrency", "retries", "first_wait", "longest_wait", "failures",
    "max_calls", "max_tokens", "batch_size",
)  # fmt: skip
DRAWINGS = ".drawings"  # pictures of the last run, in the workdir


def ignored(config: ConfigDict) -> tuple[str, ...]:
    """Returns the keys that may differ between runs in one workdir."""
    keys = list(PLAIN)
    for case in config.cases:
        for part in ("judge", "reader", "server"):
            keys += [f"cases.{case}.{part}.{key}" for key in PLAIN_OF_JUDGE]
    return tuple(keys)


def costs_text(study: CaseStudy, *, always: bool = False) -> str:
    """Returns what the stages that are left would cost; "" where none is left.

    Args:
      always: return the table also where none is left.
    """
    states = {}
    for status in stage_statuses(study.runtime.store, study.stages):
        states[status.name] = status.state
    costs = [cost for case in study.cases for cost in case_costs(case)]
    left = [cost for cost in costs if states.get(cost.stage) != "done"]
    return cost_table(costs, states) if left or always else ""


def show_states(study: CaseStudy) -> None:
    """Prints every stage's state, and what the rest would cost."""
    print(states_text(study.runtime.store, study.stages))
    print(f"\n{costs_text(study, always=True)}")


def summed_up(names: Sequence[str]) -> list[str]:
    """Returns files by name, and those of a folder by their number."""
    inside = Counter(name.split("/")[0] for name in names if "/" in name)
    alone = [name for name in names if "/" not in name]
    return [*alone, *(f"{folder}/ ({count})" for folder, count in inside.items())]


def write(shown: Shown, workdir: epath.Path) -> list[str]:
    """Writes the files of a study where they differ from what lies there; returns their
    names.
    """
    for name, content in shown.files.items():
        path = workdir / name
        data = content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)
    return sorted(shown.files)


def opened(config: ConfigDict, workdir: epath.Path) -> CaseStudy:
    """Opens the study that a config states."""
    runtime = Runtime(
        Store(workdir / "store", writer=parallel.is_main()),
        workdir,
        parallel.make_mesh(str(config.mesh)),
        batch_size=config.batch_size,
        progress=parallel.is_main(),
        attribution=config.attribution.to_dict(),
    )
    return open_study(config.to_dict(), runtime)


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    only: Sequence[str] = (),
    until: str | None = None,
    force: Sequence[str] = (),
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Checks every input, prints what the run costs, then runs the stages under the
    workdir's lock and writes their files.

    Args:
      config: as configs/organism.py makes it.
      only, until, force: as for `run_stages`.
      shown: list the stages and stop.
      allow_change: use a workdir that was made with another config.
    """
    _common.fix_day(config, workdir)
    study = opened(config, workdir)
    if shown:
        show_states(study)
        return
    choice = StageChoice(only, until, force)
    study.check(choice)
    with _common.own_workdir_of(
        config, workdir, ignore=ignored(config), allow_change=allow_change
    ):
        costs = costs_text(study)
        if parallel.is_main() and costs:
            print(costs)
        choice = StageChoice(only, until, [*force, *study.unread(choice)])
        study.try_out(choice)
        results = run_chosen(study.runtime.store, study.stages, choice)
        if parallel.is_main():
            finish(study, results)


def finish(study: CaseStudy, results: Mapping[str, Result]) -> None:
    """Writes the files of a study, and prints its findings, what ran and what is left.

    Args:
      results: of the stages that ran now, or were read by one.
    """
    store, workdir = study.runtime.store, study.runtime.workdir
    drawings = StoredDrawings.read(workdir / DRAWINGS)
    results_by_name = stored_results(store, study.stages) | dict(results)
    page = study.shown(results_by_name, drawings.draw)
    names = write(page, workdir)
    drawings.write()
    print("\n" + "\n\n".join(page.sentences))
    choosing = ("--until", "--only", "--force")
    arguments = [arg for arg in sys.argv if not arg.startswith(choosing)]
    statuses = stage_statuses(store, study.stages)
    again, folder = command_line(arguments), os.fspath(workdir)
    print("\n" + ending(statuses, results, summed_up(names), folder, again))


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what a study needs, without its weights; nothing is written."""
    _common.fix_day(config, workdir)
    return case_study_dry_run(opened(config, workdir), rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with the command line's flags."""
    _common.begin(argv)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(
        CONFIG.value,
        workdir,
        only=ONLY.value,
        until=UNTIL.value,
        force=FORCE.value,
        shown=LIST.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
