"""Compares judges with each other and with published scores; see
configs/judge_agreement.py for the command.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.judge import Patience
from sae_attr.judge.missing import MissingGrades
from sae_attr.judge.published import REPLIES, count_replies_read, read_published
from sae_attr.report.tables import columns_from_rows, csv_text, json_text, text_table
from sae_attr.server.budget import CallLimits
from sae_attr.store import digest, own_workdir, write_atomic
from sae_attr.study.judge_agreement import (
    Comparison,
    GradedBy,
    grade_answers,
    judge_specs,
    report_lines,
    sample_answers,
)

from . import _common
from ._dry_run import DryRun, RatesOf, run_dry
from ._flags import ALLOW_CHANGE, CONFIG, DRY_RUN, TOKENS_PER_SECOND, WORKDIR

# Keys of a judge that change where and how fast it works, not its grades.
SPEED = ["batch_size"]
for _settings in (CallLimits, MissingGrades, Patience):
    SPEED += [field.name for field in dataclasses.fields(_settings)]
WHERE = ("mesh", "judges", *(f"judge.{name}" for name in SPEED))


def compare(
    config: ConfigDict, workdir: epath.Path
) -> tuple[Comparison, list[GradedBy]]:
    """Compares the judges of every published file, and those that the config names on a
    sample of its answers.
    """
    choices = config.to_dict()
    mesh = parallel.make_mesh(choices["mesh"])
    specs = judge_specs(choices["judges"], choices["judge"])
    comparison = Comparison()
    judges = []
    folder = Path(choices["published"])
    for answers in read_published(folder, choices["validates_from"]):
        if specs:
            answers = sample_answers(answers, choices["sample"], choices["seed"])
        for spec in specs:
            name = digest([spec["kind"], spec.get("model")])[:12]
            grades = workdir / "grades" / name
            answers, judge = grade_answers(answers, spec, grades, mesh)
            judges.append(judge)
        logging.info(
            "%s: %d answers, %d judges",
            answers.name,
            len(answers.items),
            len(answers.scores),
        )
        comparison.add(answers, resamples=choices["resamples"], seed=choices["seed"])
    return comparison, judges


def require_published(config: ConfigDict) -> None:
    """Raises ValueError for a config without a folder of published scores."""
    if not config.published:
        raise ValueError("the config lacks published; add --config.published=FOLDER")


def start(
    config: ConfigDict, workdir: epath.Path, *, allow_change: bool = False
) -> dict[str, Any]:
    """Compares, prints the tables and writes agreement.csv, rates.csv and result.json;
    returns what result.json holds.

    Raises:
      ValueError: no folder of published scores, or a judge that is not understood.
    """
    require_published(config)
    choices = config.to_dict()
    with own_workdir(workdir, choices, ignore=WHERE, allow_change=allow_change):
        comparison, judges = compare(config, workdir)
        result: dict[str, Any] = {
            "agreement": comparison.agreement,
            "rates": comparison.rates,
            "alpha": comparison.alpha,
            "judges": [dataclasses.asdict(judge) for judge in judges],
        }
        replies = Path(config.published) / REPLIES
        if replies.is_file():
            result["replies"] = count_replies_read(replies)
        result |= {"choices": choices, "versions": _common.versions()}
        files = {
            "agreement.csv": csv_text(columns_from_rows(comparison.agreement)),
            "rates.csv": csv_text(columns_from_rows(comparison.rates)),
            "result.json": json_text(result),
        }
        for name, text in files.items():
            write_atomic(workdir / name, text)
    print(comparison.text(), end="\n\n")
    print(*report_lines(comparison, judges), sep="\n")
    if "replies" in result:
        counts = [f"{value} {name}" for name, value in result["replies"].items()]
        print("published replies: " + ", ".join(counts))
    print(f"\nwrote to {workdir}: {', '.join(files)}")
    return result


def dry_run(config: ConfigDict, workdir: epath.Path, rates_of: RatesOf) -> DryRun:
    """Finds out whether the judges answer, and what they would be asked; nothing is
    written.
    """
    require_published(config)
    choices, report = config.to_dict(), DryRun()
    specs = judge_specs(choices["judges"], choices["judge"])
    files = list(read_published(Path(choices["published"]), choices["validates_from"]))
    sampled = [sample_answers(a, choices["sample"], choices["seed"]) for a in files]
    if specs and sampled:
        rubrics = {"rubric": sampled[0].rubric}
        tried = {str(spec.get("model") or spec["lm"]): spec | rubrics for spec in specs}
        report.add_judges(tried, parallel.make_mesh(choices["mesh"]))
    asked = sampled if specs else files
    columns = {
        "answers": [answers.name for answers in files],
        "in the file": [len(answers.items) for answers in files],
        "judge calls": [len(answers.items) * len(specs) for answers in asked],
    }
    report.add("published answers", text_table(columns))
    return report


def main(argv: list[str]) -> None:
    """Runs `start` with the values of the flags."""
    _common.begin(argv, cluster=False)
    workdir = epath.Path(str(WORKDIR.value))
    if DRY_RUN.value:
        run_dry(dry_run, CONFIG.value, workdir, TOKENS_PER_SECOND.value)
    start(CONFIG.value, workdir, allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
