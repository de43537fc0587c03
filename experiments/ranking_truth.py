"""Compares every score of latents with ground truth, on organisms where every latent
can be steered with and ablated; see configs/ranking_truth.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.report.ground_truth_table import summary_rows, table_text
from sae_attr.report.tables import csv_text, json_text
from sae_attr.store import Result, Store, write_atomic
from sae_attr.study.dry_run.organism_report import evaluation_dry_run
from sae_attr.study.score_ground_truth import (
    Evaluation,
    EvaluationSettings,
    evaluation_stages,
    evaluations_of,
    facts_of,
    is_complete,
    rows_of,
)
from sae_attr.study.stage_choice import StageChoice

from . import _common
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR
from ._organism_study import cases_of_config, run_study
from ._stages import ALL, start_from_flags

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
) -> str:
    """Writes truth.csv, truth.json and truth.txt of the evaluations that are complete;
    returns the table, "" where none is.
    """
    complete = [e for e in evaluations if is_complete(e, results)]
    if not complete:
        return ""
    rows = [row for e in complete for row in rows_of(e, results)]
    facts = [facts_of(e, results) for e in complete]
    summary = summary_rows(rows)
    text = table_text(summary, facts)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    content = {
        "rows": summary,
        "runs": facts,
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "truth.csv", csv_text(columns))
    write_atomic(workdir / "truth.json", json_text(content))
    write_atomic(workdir / "truth.txt", text)
    return text


def start(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    choice: StageChoice = ALL,
    shown: bool = False,
    allow_change: bool = False,
) -> None:
    """Runs the stages and writes their files.

    Args:
      config: as configs/ranking_truth.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    store = Store(workdir / "store")
    evaluations = open_evaluations(config, store, workdir)
    run_study(
        config,
        workdir,
        store,
        evaluation_stages(evaluations),
        write=lambda results: write(workdir, config, evaluations, results),
        last=(".agreement",),
        wrote=f"wrote to {workdir}: {', '.join(FILES)}",
        choice=choice,
        shown=shown,
        allow_change=allow_change,
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
