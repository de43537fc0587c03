"""Suppresses the first latents of a finished case study together, beside projecting the
mean-difference direction out; see configs/mitigate.py for the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.mitigation_case import Mitigation
from sae_attr.analyses.mitigation_results import mitigation_numbers
from sae_attr.analyses.mitigation_settings import MitigationSettings
from sae_attr.analyses.mitigation_stages import mitigation_stages
from sae_attr.report.figures import Drawing, mitigation_figure, render
from sae_attr.report.mitigation_text import mitigation_sentences, mitigation_table
from sae_attr.report.tables import columns_from_rows, csv_text, json_text
from sae_attr.store import Result, Stage, write_atomic

from . import _common
from ._finished_study import cases_of_finished, run_on_finished
from ._stages import RunOptions, start_from_flags


def opened(config: ConfigDict) -> list[Mitigation]:
    """Opens the cases of the finished study that a config names."""
    return cases_of_finished(config, MitigationSettings, Mitigation)


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
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages under the workdir's lock and writes their files.

    Args:
      config: as configs/mitigate.py makes it.
    """
    mitigations = opened(config)
    stages: list[Stage] = []
    for m in mitigations:
        stages += mitigation_stages(m)
    write_cases = partial(write, workdir, config, mitigations)
    run_on_finished(config, workdir, stages, write_cases, **options)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
