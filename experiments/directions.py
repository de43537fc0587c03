"""Finds the directions of narrow fine-tunes at every layer, projects those of each out of
all, and compares them; see configs/directions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.direction_numbers import direction_numbers
from sae_attr.analyses.direction_settings import (
    DirectionCase,
    DirectionSettings,
    direction_cases,
)
from sae_attr.analyses.direction_study import StudiedDirections, study_numbers
from sae_attr.analyses.direction_transfer import direction_stages
from sae_attr.report.direction_text import directions_text
from sae_attr.report.figures import Drawing
from sae_attr.report.figures.directions import directions_figure
from sae_attr.store import Result, Store

from . import _common
from ._config import settings_of
from ._finished_study import finished_of_config
from ._organism_study import StudyReport, cases_of_config, run_study, write_report
from ._stages import RunOptions, start_from_flags

STUDY = ("study", "case")  # keys of what is read instead of an organism


def open_cases(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[DirectionCase]:
    """Returns the cases that a config names; nothing is loaded yet."""
    return cases_of_config(
        config,
        DirectionSettings,
        direction_cases,
        store=store,
        workdir=workdir,
        leave_out=STUDY,
    )


def open_study(config: ConfigDict) -> StudiedDirections:
    """Opens the cases of the finished study that a config names.

    Raises ValueError for cases that cannot be compared.
    """
    settings = settings_of(
        DirectionSettings, config, leave_out=(*STUDY, "organism", "mesh")
    )
    finished = finished_of_config(config)
    studied = StudiedDirections(finished, finished.cases(config.case), settings)
    studied.check()
    return studied


def report(
    numbers_of: Callable[[Mapping[str, Result]], dict[str, Any]],
    results: Mapping[str, Result],
) -> StudyReport | None:
    """Returns what is complete; None where nothing is.

    Args:
      numbers_of: rows of the tables, from the results that are there.
    """
    numbers = numbers_of(results)
    if not numbers:
        return None
    figures = {"directions_figure": Drawing(directions_figure, numbers)}
    return StudyReport(directions_text(numbers), numbers, figures)


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/directions.py makes it.
    """
    store = Store(workdir / "store")
    if config.study:
        studied = open_study(config)
        stages, last = studied.stages(), ".transfer"
        numbers_of = partial(study_numbers, studied)
    else:
        cases = open_cases(config, store, workdir)
        stages, last = direction_stages(cases), ".adapters"
        numbers_of = partial(direction_numbers, cases)
    run_study(
        config,
        workdir,
        store,
        stages,
        write=partial(
            write_report, "directions", config, workdir, partial(report, numbers_of)
        ),
        last=(last,),
        wrote=f"wrote directions.txt, directions.json and a figure to {workdir}",
        **options,
    )


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
