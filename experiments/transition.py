"""Follows a rank-1 adapter over its fine-tune: where its path turns, where the
gradient's norm peaks and where the behaviour rises; see configs/transition.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.transition_results import transition_numbers
from sae_attr.analyses.transition_settings import (
    TransitionCase,
    TransitionRuns,
    TransitionSettings,
    transition_cases,
)
from sae_attr.analyses.transition_stages import MEASURED, transition_stages
from sae_attr.analyses.transition_study import StudiedTransition
from sae_attr.report.figures import Drawing, transition_figure
from sae_attr.report.transition_text import transition_text
from sae_attr.store import Result, Store

from . import _common
from ._finished_study import cases_of_finished
from ._organism_study import StudyReport, cases_of_config, run_study, write_report
from ._stages import RunOptions, start_from_flags

STUDY = ("study", "case", "data")  # keys of what is read instead of an organism


def open_cases(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[TransitionCase]:
    """Returns the cases that a config names; nothing is loaded yet."""
    return cases_of_config(
        config,
        TransitionSettings,
        transition_cases,
        store=store,
        workdir=workdir,
        leave_out=STUDY,
    )


def open_study(config: ConfigDict) -> list[StudiedTransition]:
    """Opens the cases of the finished study that a config names.

    Raises ValueError for cases that cannot be fine-tuned so.
    """
    _common.require(config, "data")
    cases = cases_of_finished(
        config,
        TransitionSettings,
        partial(StudiedTransition, data=str(config.data)),
        leave_out=("data", "organism"),
    )
    for case in cases:
        case.check()
    return cases


def report(
    cases: Sequence[TransitionRuns], results: Mapping[str, Result]
) -> StudyReport | None:
    """Returns what the runs that are complete show; None where none is."""
    numbers = transition_numbers(cases, results)
    if not numbers["runs"]:
        return None
    figures = {"transition_figure": Drawing(transition_figure, numbers)}
    return StudyReport(transition_text(numbers), numbers, figures)


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/transition.py makes it.
    """
    store = Store(workdir / "store")
    if config.study:
        cases = open_study(config)
        stages = [stage for case in cases for stage in case.stages()]
    else:
        cases = open_cases(config, store, workdir)
        stages = transition_stages(cases)
    run_study(
        config,
        workdir,
        store,
        stages,
        write=partial(
            write_report, "transition", config, workdir, partial(report, cases)
        ),
        last=(f".{MEASURED}",),
        wrote=f"wrote transition.txt, transition.json and a figure to {workdir}",
        **options,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
