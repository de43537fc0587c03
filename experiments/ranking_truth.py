"""Compares every score of latents with ground truth, on organisms where every latent
can be steered with and ablated; see configs/ranking_truth.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.report.ground_truth_table import table_text
from sae_attr.report.tables import (
    column_json_text,
    columns_from_rows,
    csv_text,
    rounded,
)
from sae_attr.store import Result, Store, write_atomic
from sae_attr.study.dry_run.organism_report import evaluation_dry_run
from sae_attr.study.evaluation import Evaluation, EvaluationSettings, evaluations_of
from sae_attr.study.score_ground_truth import evaluation_stages
from sae_attr.study.score_summary import (
    cell_of,
    facts_of,
    is_complete,
    rows_of,
    summary_rows,
)

from . import _common
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR
from ._organism_study import cases_of_config, left_out_text, run_study
from ._stages import RunOptions, start_from_flags

FILES = ("truth.csv", "truth.json", "truth.txt")


def open_evaluations(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[Evaluation]:
    """Returns the evaluations that a config names; nothing is loaded yet."""
    return cases_of_config(
        config, EvaluationSettings, evaluations_of, store=store, workdir=workdir
    )


def write(
    workdir: epath.Path,
    config: ConfigDict,
    evaluations: Sequence[Evaluation],
    results: Mapping[str, Result],
    left_out: Sequence[str] = (),
) -> str:
    """Writes truth.csv, truth.json and truth.txt of the evaluations that are complete,
    the last two also where `publish` says; returns the table, "" where none is.
    """
    complete = [e for e in evaluations if is_complete(e, results)]
    if not complete:
        return ""
    cells = [cell_of(e, results) for e in complete]
    rows = [row for cell in cells for row in rows_of(cell)]
    facts = [facts_of(e, results) for e in complete]
    summary = summary_rows(cells)
    text = table_text(summary, facts, top=int(config.top)) + left_out_text(left_out)
    values = config.to_dict()
    publish = str(values.pop("publish"))
    content = {
        "columns": columns_from_rows(rounded(summary)),
        "runs": columns_from_rows(rounded(facts)),
        "left_out": list(left_out),
        "config": values,
        "versions": _common.versions(),
    }
    json_of_columns = column_json_text(content)
    write_atomic(workdir / "truth.csv", csv_text(columns_from_rows(rows)))
    write_atomic(workdir / "truth.json", json_of_columns)
    write_atomic(workdir / "truth.txt", text)
    if publish:
        write_atomic(f"{publish}.json", json_of_columns)
        write_atomic(f"{publish}.txt", text)
    return text


def start(
    config: ConfigDict, workdir: epath.Path, **options: Unpack[RunOptions]
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/ranking_truth.py makes it.
    """
    store = Store(workdir / "store")
    evaluations = open_evaluations(config, store, workdir)
    run_study(
        config,
        workdir,
        store,
        evaluation_stages(evaluations),
        write=partial(write, workdir, config, evaluations),
        last=(".agreement",),
        wrote=f"wrote to {workdir}: {', '.join(FILES)}",
        **options,
    )


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what the evaluations need; nothing is built or written."""
    store = Store(workdir / "store")
    return evaluation_dry_run(open_evaluations(config, store, workdir), store, rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    if DRY_RUN.value:
        workdir = epath.Path(str(WORKDIR.value))
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start_from_flags(start)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
