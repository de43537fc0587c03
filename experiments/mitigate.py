"""Suppresses the first latents of a finished case study together, beside projecting the
mean-difference direction out; see configs/mitigate.py for the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.analyses.mitigation_case import Mitigation
from sae_attr.analyses.mitigation_results import mitigation_numbers
from sae_attr.analyses.mitigation_settings import MitigationSettings
from sae_attr.analyses.mitigation_stages import mitigation_stages
from sae_attr.report.figures import Drawing, mitigation_figure, render
from sae_attr.report.mitigation_text import mitigation_sentences, mitigation_table
from sae_attr.report.tables import columns_from_rows, csv_text, json_text
from sae_attr.store import Result, Stage, Store, own_workdir, write_atomic
from sae_attr.study.finished_study import open_finished
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._config import settings_of
from ._stages import ALL, run_chosen, start_from_flags, states_text

IGNORED = ("mesh",)  # where, not what
INPUTS = ("study", "case", "mesh")


def opened(config: ConfigDict) -> list[Mitigation]:
    """Opens the cases of the finished study that a config names."""
    _common.require(config, "study")
    settings = settings_of(MitigationSettings, config, leave_out=INPUTS)
    finished = open_finished(
        str(config.study), mesh=str(config.mesh), progress=parallel.is_main()
    )
    mitigations = []
    for case in finished.cases(config.case):
        mitigations.append(Mitigation(finished, case, settings))
    return mitigations


def write(
    workdir: epath.Path,
    config: ConfigDict,
    mitigations: Sequence[Mitigation],
    results: Mapping[str, Result],
) -> None:
    """Writes figures, tables and result.json, and prints what was found."""
    cases: dict[str, Any] = {}
    for m in mitigations:
        numbers = mitigation_numbers(m, results)
        sentences = mitigation_sentences(numbers)
        name = m.case.name
        drawing = Drawing(mitigation_figure, numbers)
        for suffix, data in render(drawing).items():
            write_atomic(workdir / f"figures/{name}.mitigation.{suffix}", data)
        columns = columns_from_rows(numbers["rows"])
        write_atomic(workdir / f"{name}.csv", csv_text(columns))
        cases[name] = {"findings": sentences, **numbers}
        print(f"\n{numbers['title']}\n\n{mitigation_table(numbers)}\n")
        print("\n".join(sentences))
    content = {
        "cases": cases,
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "result.json", json_text(content))
    print(f"\nwrote to {workdir}: result.json, figures/, a table of each case")


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    choice: StageChoice = ALL,
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Runs the stages under the workdir's lock and writes their files.

    Args:
      config: as configs/mitigate.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    mitigations = opened(config)
    stages: list[Stage] = []
    for m in mitigations:
        stages += mitigation_stages(m)
    store = Store(workdir / "store", writer=parallel.is_main())
    if shown:
        print(states_text(store, stages))
        return
    values = config.to_dict()
    with own_workdir(
        workdir,
        values,
        ignore=IGNORED,
        allow_change=allow_change,
        writer=parallel.is_main(),
    ):
        results = run_chosen(store, stages, choice)
        if parallel.is_main() and len(results) == len(stages):
            write(workdir, config, mitigations, results)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
