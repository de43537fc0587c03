"""A finished case study, read from its workdir: for experiments that go on from one,
and compute nothing of it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sae_attr import parallel
from sae_attr.report.safe_text import one_line
from sae_attr.store import Result, Store, stage_statuses, stored_results
from sae_attr.store.files import PathLike, json_row
from sae_attr.study.case import Case, Runtime
from sae_attr.study.case_study import CaseStudy, open_study


@dataclass(frozen=True, eq=False)
class FinishedStudy:
    """A case study with the results of its stages.

    Args:
      workdir: where it was run.
      results: whole name of a stage -> result, of those that are done.
    """

    workdir: epath.Path
    study: CaseStudy
    results: Mapping[str, Result]

    def cases(self, name: str | None = None) -> tuple[Case, ...]:
        """Returns all cases, or the one of a name; ValueError where there is none."""
        if not name:
            return self.study.cases
        cases = [case for case in self.study.cases if case.name == name]
        if not cases:
            names = ", ".join(case.name for case in self.study.cases)
            raise ValueError(
                f"{self.workdir} has no case {one_line(repr(name))}; its cases are "
                f"{names}"
            )
        return tuple(cases)

    def result(self, case: Case, stage: str) -> Result:
        """Returns the result of a stage of a case.

        Raises ValueError where it is not done, or no longer fits its inputs.
        """
        name = f"{case.name}.{stage}"
        if name in self.results:
            return self.results[name]
        store, stages = self.study.runtime.store, self.study.stages
        states = {row.name: row.state for row in stage_statuses(store, stages)}
        raise ValueError(_not_finished(self.workdir, name, states.get(name)))


@dataclass(frozen=True, eq=False)
class FinishedCase:
    """A case of a finished study; only results that are done are read."""

    finished: FinishedStudy
    case: Case

    def stage_name(self, part: str) -> str:
        """Returns the whole name of a stage of the case, of the study or of another one."""
        return f"{self.case.name}.{part}"

    def result(self, stage: str) -> Result:
        """Returns the result of a stage of the study."""
        return self.finished.result(self.case, stage)


def _not_finished(workdir: epath.Path, name: str, state: str | None) -> str:
    """Says why a stage cannot be read, and what to do."""
    where = one_line(str(workdir))
    if state is None:
        return f"the study in {where} has no stage {name}; its settings leave it out"
    if state == "stale":
        return (
            f"stage {name} of the study in {where} was made with other inputs (model, "
            "SAE, corpus, prompts) or another version; run the study there again, from "
            "the folder that its paths start from"
        )
    return (
        f"the study in {where} is not finished: stage {name} is {state}; run "
        f"experiments.case_study with --workdir={where} to its end"
    )


def open_finished(
    workdir: PathLike, *, mesh: str = "", progress: bool = True
) -> FinishedStudy:
    """Opens the study of a workdir by its config.json; weights are loaded only when they
    are needed, and nothing is written.

    Args:
      workdir: of `experiments.case_study`; paths in its config start from the folder
        that the study was run in.
      mesh: of devices.

    Raises:
      ValueError: no study lies there; its settings cannot be; no stage of it is done.
    """
    folder = epath.Path(workdir)
    values = _config_of(folder)
    runtime = Runtime(
        Store(folder / "store", writer=False),
        folder,
        parallel.make_mesh(mesh),
        batch_size=int(values["batch_size"]),
        progress=progress,
        attribution=values["attribution"],
    )
    study = open_study(values, runtime)
    return FinishedStudy(folder, study, stored_results(runtime.store, study.stages))


_KEYS: Sequence[str] = ("cases", "methods", "batch_size", "attribution")


def _config_of(folder: epath.Path) -> Mapping[str, Any]:
    """Reads config.json of a study's workdir."""
    path, where = folder / "config.json", one_line(str(folder))
    if not path.is_file():
        raise ValueError(
            f"{where} holds no config.json; give the workdir of a finished "
            "experiments.case_study"
        )
    values = json_row(path.read_bytes())
    if values is None:
        raise ValueError(f"{where}/config.json is damaged; run the study there again")
    if any(key not in values for key in _KEYS):
        raise ValueError(
            f"{where} is the workdir of another experiment; give that of a finished "
            "experiments.case_study"
        )
    return values
