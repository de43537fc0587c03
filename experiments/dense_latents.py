"""Sorts the dense latents of a finished case study's SAE, and asks whether its result
holds without them; see configs/dense_latents.py for the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.analyses.dense_case import DenseCase
from sae_attr.analyses.dense_results import dense_numbers
from sae_attr.analyses.dense_settings import DenseSettings
from sae_attr.analyses.dense_stages import RETRAINING, dense_stages
from sae_attr.report.dense_text import (
    dense_sentences,
    dense_tables,
    retraining_table,
)
from sae_attr.report.figures import Drawing, dense_figure, render
from sae_attr.report.tables import csv_text, json_text
from sae_attr.store import Result, write_atomic
from sae_attr.study.columns import schema, written

from . import _common
from ._finished_study import cases_of_finished, run_on_finished
from ._stages import RunOptions, start_from_flags


def opened(config: ConfigDict) -> list[DenseCase]:
    """Opens the cases of the finished study that a config names."""
    return cases_of_finished(config, DenseSettings, DenseCase)


def write(
    workdir: epath.Path,
    config: ConfigDict,
    cases: Sequence[DenseCase],
    results: Mapping[str, Result],
) -> None:
    """Writes figures, tables and result.json, and prints what was found."""
    contents: dict[str, Any] = {}
    texts = []
    for case in cases:
        numbers = dense_numbers(case, results)
        name = case.case.name
        for suffix, data in render(Drawing(dense_figure, numbers)).items():
            write_atomic(workdir / f"figures/{name}.dense.{suffix}", data)
        write_atomic(workdir / f"{name}/latents.csv", _latents_csv(numbers["rows"]))
        sentences = dense_sentences(numbers)
        contents[name] = {"findings": sentences, **numbers}
        text = [numbers["title"], dense_tables(numbers), "\n".join(sentences)]
        texts.append("\n\n".join(text))
    retraining = []
    if RETRAINING in results:
        retraining = results[RETRAINING].meta["rows"]
        texts.append(retraining_table(retraining))
    content = {
        "cases": contents,
        "retraining": retraining,
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    text = "\n\n\n".join(texts) + "\n"
    write_atomic(workdir / "dense_latents.txt", text)
    write_atomic(workdir / "result.json", json_text(content))
    print(f"\n{text}")
    print(f"wrote to {workdir}: result.json, dense_latents.txt, figures/, latents.csv")


def _latents_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the latents that were looked at as latents.csv has them."""
    columns = {}
    for name in schema():
        if any(name in row for row in rows):
            columns[name] = [row.get(name) for row in rows]
    return csv_text(written(columns))


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages under the workdir's lock and writes their files.

    Args:
      config: as configs/dense_latents.py makes it.
    """
    cases = opened(config)
    stages = dense_stages(cases, cases[0].settings)
    write_cases = partial(write, workdir, config, cases)
    run_on_finished(config, workdir, stages, write_cases, **options)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
