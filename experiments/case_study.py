"""Case studies end to end, from sampling to one page; see configs/organism.py and
configs/case_study.py for the commands.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.store import (
    Store,
    own_workdir,
    run_stages,
    select_stages,
    stage_statuses,
    stored_results,
    write_atomic,
)
from sae_attr.study.case import Runtime
from sae_attr.study.cost import case_costs, cost_table
from sae_attr.study.opened import CaseStudy, StageChoice, open_study
from sae_attr.study.showing import Shown

from . import _common
from ._command import command_line
from ._flags import ALLOW_CHANGE, CONFIG, WORKDIR
from ._progress import StageProgress, ending
from ._stages import FORCE, LIST, ONLY, UNTIL

PLAIN = ("mesh", "batch_size", "attribution")  # where and how fast, not what
# Of a judge: where it is served, how it is waited for, and what it may cost. Its
#   identity is its model and rubric.
PLAIN_OF_JUDGE = (
    *(
        "base_url",
        "name",
        "timeout",
        "concurrency",
        "retries",
        "first_wait",
        "longest_wait",
        "failures",
    ),
    *("max_calls", "max_tokens", "batch_size"),
)


def ignored(config: ConfigDict) -> tuple[str, ...]:
    """Keys that may differ between runs in one workdir."""
    return *PLAIN, *(
        f"cases.{case}.judge.{key}" for case in config.cases for key in PLAIN_OF_JUDGE
    )


def show_states(study: CaseStudy) -> None:
    """Prints every stage's state, and what the rest would cost."""
    states = stage_statuses(study.runtime.store, study.stages)
    for status in states:
        print(f"{status.state:<8} {status.name}")
    costs = [cost for case in study.cases for cost in case_costs(case)]
    print(f"\n{cost_table(costs, {status.name: status.state for status in states})}")


def summed_up(names: Sequence[str]) -> list[str]:
    """Files by name, and those of a folder by their number."""
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
    """Checks every input, says what the run costs, then runs the stages under the
    workdir's lock and writes their files.

    Args:
      config: as configs/organism.py makes it.
      only, until, force: as for `run_stages`.
      shown: list the stages and stop.
    """
    _common.fix_day(config, workdir)
    mesh = parallel.make_mesh(str(config.mesh))
    store = Store(workdir / "store", writer=parallel.is_main())
    speed: dict[str, Any] = {
        "batch_size": config.batch_size,
        "attribution": config.attribution.to_dict(),
    }
    runtime = Runtime(store, workdir, mesh, progress=parallel.is_main(), **speed)
    study = open_study(config.to_dict(), runtime)
    if shown:
        show_states(study)
        return
    study.check(StageChoice(only, until, force))
    with own_workdir(
        workdir,
        config.to_dict(),
        ignore=ignored(config),
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        if parallel.is_main():
            show_cost(study)
        force = [*force, *study.unread(StageChoice(only, until))]
        which: dict[str, Any] = {"only": only, "until": until, "force": force}
        study.try_out(StageChoice(only, until, force))
        stages = {
            stage.name for stage in select_stages(study.stages, only=only, until=until)
        }
        course = StageProgress(
            [
                status
                for status in stage_statuses(store, study.stages)
                if status.name in stages
            ]
        )
        told: dict[str, Any] = (
            {"on_start": course.start, "on_end": course.end}
            if parallel.is_main()
            else {}
        )
        results = run_stages(
            store, study.stages, agree=parallel.from_main, **which, **told
        )
        if parallel.is_main():
            found = study.shown(stored_results(store, study.stages) | results)
            names = write(found, workdir)
            print("\n" + "\n\n".join(found.sentences))
            again = command_line(
                [
                    arg
                    for arg in sys.argv
                    if not arg.startswith(("--until", "--only", "--force"))
                ]
            )
            print(
                "\n"
                + ending(
                    stage_statuses(store, study.stages),
                    results,
                    summed_up(names),
                    os.fspath(workdir),
                    again,
                )
            )


def show_cost(study: CaseStudy) -> None:
    """Prints what is left to do, if anything is."""
    states = {
        status.name: status.state
        for status in stage_statuses(study.runtime.store, study.stages)
    }
    costs = [cost for case in study.cases for cost in case_costs(case)]
    if any(states[cost.stage] != "done" for cost in costs):
        print(cost_table(costs, states))


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv)
    start(
        CONFIG.value,
        epath.Path(str(WORKDIR.value)),
        only=ONLY.value,
        until=UNTIL.value,
        force=FORCE.value,
        shown=LIST.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
