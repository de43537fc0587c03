"""Compares every score of latents with ground truth, on organisms where every latent
can be steered with and ablated; see configs/ranking_truth.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.report.ground_truth_table import summary_rows, table_text
from sae_attr.report.tables import csv_text, json_text
from sae_attr.settings import settings_from
from sae_attr.store import (
    Result,
    Status,
    Store,
    own_workdir,
    stored_results,
    write_atomic,
)
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
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR
from ._stages import LIST, choice_of_flags, run_chosen, states_text

ALL = StageChoice()
IGNORED = ("mesh", "batch_size")  # where and how fast, not what
FILES = ("truth.csv", "truth.json", "truth.txt")


def open_evaluations(
    config: ConfigDict, store: Store, workdir: epath.Path
) -> list[Evaluation]:
    """Returns the evaluations that a config names; nothing is loaded yet."""
    values = config.to_dict()
    organism, mesh = values.pop("organism"), values.pop("mesh")
    settings = settings_from(EvaluationSettings, values)
    mesh = parallel.make_mesh(str(mesh))
    return evaluations_of(settings, organism, store=store, workdir=workdir, mesh=mesh)


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
    """Runs the stages under the workdir's lock; files are written anew after every
    evaluation, so that the first is seen early.

    Args:
      config: as configs/ranking_truth.py makes it.
      choice: the stages that run.
      shown: list the stages and stop.
    """
    store = Store(workdir / "store")
    evaluations = open_evaluations(config, store, workdir)
    stages = evaluation_stages(evaluations)
    if shown:
        print(states_text(store, stages))
        return

    def write_stored() -> str:
        return write(workdir, config, evaluations, stored_results(store, stages))

    def on_end(status: Status, result: Result) -> None:
        if status.name.endswith(".agreement") and not result.cached:
            write_stored()
            logging.info("%s is done", status.name.removesuffix(".agreement"))

    values = config.to_dict()
    with own_workdir(workdir, values, ignore=IGNORED, allow_change=allow_change):
        run_chosen(store, stages, choice, on_end=on_end)
        text = write_stored()
        if text:
            print(f"{text}\nwrote to {workdir}: {', '.join(FILES)}")


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out what the evaluations need; nothing is built or written."""
    store = Store(workdir / "store")
    return evaluation_dry_run(open_evaluations(config, store, workdir), store, rates_of)


def main(argv: list[str]) -> None:
    """Runs `start` with the flags' values."""
    _common.begin(argv, cluster=False)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(
        CONFIG.value,
        workdir,
        choice=choice_of_flags(),
        shown=LIST.value,
        allow_change=ALLOW_CHANGE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
