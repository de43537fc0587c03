"""What reads a finished case study, on the command line: its cases from a config, and the
stages that are computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.store import Result, Stage, Store
from sae_attr.study.finished_study import FinishedStudy, open_finished
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._config import settings_of
from ._stages import ALL, run_chosen, states_text

IGNORED = ("mesh",)  # where, not what
INPUTS = ("study", "case", "mesh")
Case = TypeVar("Case")


def finished_of_config(config: ConfigDict) -> FinishedStudy:
    """Opens the finished study that a config names."""
    _common.require(config, "study")
    return open_finished(
        str(config.study), mesh=str(config.mesh), progress=parallel.is_main()
    )


def cases_of_finished(
    config: ConfigDict,
    settings_class: type[Any],
    case_class: Callable[..., Case],
    *,
    leave_out: Sequence[str] = (),
) -> list[Case]:
    """Opens the cases of the finished study that a config names, with its settings.

    Args:
      case_class: from the study, a case of it and the settings.
      leave_out: keys that are no settings, beside those of the study.
    """
    settings = settings_of(settings_class, config, leave_out=(*INPUTS, *leave_out))
    finished = finished_of_config(config)
    return [
        case_class(finished, case, settings) for case in finished.cases(config.case)
    ]


def run_on_finished(
    config: ConfigDict,
    workdir: epath.Path,
    stages: Sequence[Stage],
    write: Callable[[Mapping[str, Result]], None],
    *,
    choice: StageChoice = ALL,
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Runs the stages under the workdir's lock; process 0 writes the files once all
    stages have run.

    Args:
      write: from results by stage.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    store = Store(workdir / "store", writer=parallel.is_main())
    if shown:
        print(states_text(store, stages))
        return
    with _common.own_workdir_of(
        config, workdir, ignore=IGNORED, allow_change=allow_change
    ):
        results = run_chosen(store, stages, choice)
        if parallel.is_main() and len(results) == len(stages):
            write(results)
