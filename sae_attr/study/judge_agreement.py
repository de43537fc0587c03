"""Compares judges with published scores and with each other: grades a sample, and makes
the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from sae_attr.comparison_records import Estimate
from sae_attr.judge import JudgeStopped, counts, judge_name, values, warnings_of
from sae_attr.judge.agreement import PairAgreement, all_pairs, rate
from sae_attr.judge.coefficients import krippendorff_alpha
from sae_attr.judge.published import PublishedAnswers
from sae_attr.report.tables import columns_from_rows, text_table
from sae_attr.store import digest
from sae_attr.study.judges import KINDS, open_judge


@dataclass(frozen=True)
class GradedBy:
    """Holds what is reported of a judge that graded published answers.

    Args:
      answers: name of the answers.
      name: of the judge, for tables.
      identity: of the judge.
      counts: of its grades.
      stopped: why it stopped before the last answer; "" where it did not.
      warnings: what a reader of the grades must know.
    """

    answers: str
    name: str
    identity: Mapping[str, Any]
    counts: dict[str, int]
    stopped: str
    warnings: list[str]


@dataclass
class Comparison:
    """Rows of the tables, for any number of published files.

    Args:
      agreement: a flat row per pair of judges.
      rates: a row per judge and model.
      alpha: name of answers -> Krippendorff's alpha of all verdicts.
    """

    agreement: list[dict[str, Any]] = field(default_factory=list)
    rates: list[dict[str, Any]] = field(default_factory=list)
    alpha: dict[str, float] = field(default_factory=dict)

    def add(self, answers: PublishedAnswers, *, resamples: int, seed: int) -> None:
        """Compares the judges of one file.

        Args:
          resamples, seed: of the bootstrap over questions.
        """
        # Answers to one question resemble each other: as independent items they would make
        # intervals too narrow.
        pairs = all_pairs(
            answers.scores,
            answers.verdicts,
            clusters_n=answers.questions,
            resamples=resamples,
            seed=seed,
        )
        self.agreement += [_agreement_row(answers.name, pair) for pair in pairs]
        self.rates += _rate_rows(answers)
        if len(answers.verdicts) > 2:
            verdicts_jn = np.stack(list(answers.verdicts.values()))
            alpha = krippendorff_alpha(verdicts_jn, level="nominal")
            self.alpha[answers.name] = alpha

    def text(self) -> str:
        """Returns the agreement of all pairs, and the rates over all models, as tables."""
        agreement = columns_from_rows([_agreement_cells(row) for row in self.agreement])
        of_all = [row for row in self.rates if row["model"] == "all"]
        rates = columns_from_rows([_rate_cells(row) for row in of_all])
        right = ("spearman", "weighted kappa", "kappa of verdicts")
        tables = [
            text_table(agreement, {"n": ","}, right=right),
            text_table(rates, {"n": ","}, right=("missing", "with the behaviour")),
        ]
        return "\n\n".join(tables)


def judge_specs(judges: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of several judges, without rubrics, as `open_judge` takes
    them.

    Args:
      judges: SERVER#MODEL or MODEL-FOLDER, separated by commas.
      settings: of all judges; each takes those that its kind has.

    Raises:
      ValueError: an address without a model.
    """
    specs = []
    for text in judges.split(","):
        text = text.strip()
        if not text:
            continue
        address, _, model = text.partition("#")
        if "://" not in address:
            spec = {"kind": "local", "lm": text}
        elif model:
            spec = {"kind": "openai", "base_url": address, "model": model}
        else:
            raise ValueError(f"judge {text!r} names no model; write {address}#MODEL")
        keys = KINDS[spec["kind"]].keys
        more = {name: value for name, value in settings.items() if name in keys}
        specs.append({**more, **spec})
    return specs


def sample_answers(
    answers: PublishedAnswers, count: int, seed: int
) -> PublishedAnswers:
    """Returns `count` answers (all of them for 0) in an order that depends on the seed
    and their texts alone.
    """

    def place(i: int) -> str:
        return digest([seed, answers.items[i].id, answers.items[i].completion])

    # By a hash, not a shuffle: a larger sample holds the smaller one, whose grades are
    # in the cache.
    order = sorted(range(len(answers.items)), key=place)
    return answers.part(np.array(order[: count or None]))


def grade_answers(
    answers: PublishedAnswers,
    spec: Mapping[str, Any],
    folder: epath.Path,
    mesh: jax.sharding.Mesh,
) -> tuple[PublishedAnswers, GradedBy]:
    """Grades answers; returns them with one judge's scores and verdicts more.

    A judge that stops leaves the other grades missing, and is reported.

    Args:
      spec: of the judge, without rubrics.
      folder: for its grades.
    """
    rubrics = {"rubric": answers.rubric, "coherence": answers.coherence or None}
    judge = open_judge({**spec, **rubrics}, folder, mesh)
    grades, stopped = {}, ""
    try:
        for name, grade in judge.grade(answers.items):
            grades[name] = grade
    except JudgeStopped as error:
        stopped = str(error)
    judge_label = judge_name(judge.identity)
    in_order = [grades.get(item.id) for item in answers.items]
    graded = dataclasses.replace(
        answers,
        scores={**answers.scores, judge_label: values(in_order, "score")},
        verdicts={**answers.verdicts, judge_label: values(in_order)},
    )
    about = GradedBy(
        answers.name,
        judge_label,
        judge.identity,
        counts(grades.values()),
        stopped,
        warnings_of(judge),
    )
    return graded, about


def _agreement_row(name: str, pair: PairAgreement) -> dict[str, Any]:
    row: dict[str, Any] = {"answers": name, "first": pair.first, "second": pair.second}
    row |= _flat(pair.scores, "")
    if pair.verdicts is not None:
        row |= _flat(pair.verdicts, "verdict_")
    return row


def _flat(agreement: Any, prefix: str) -> dict[str, Any]:
    """Returns the fields of a record; an estimate becomes three, NAME, NAME_low and NAME_high."""
    row: dict[str, Any] = {}
    for column in dataclasses.fields(agreement):
        name, value = f"{prefix}{column.name}", getattr(agreement, column.name)
        if isinstance(value, Estimate):
            row |= {name: value.value, f"{name}_low": value.low}
            row |= {f"{name}_high": value.high}
        else:
            row[name] = value
    return row


def _rate_rows(answers: PublishedAnswers) -> list[dict[str, Any]]:
    """Returns the share of answers with the behaviour, per judge and per model, with Wilson's
    interval.
    """
    rows = []
    for judge, verdicts in answers.verdicts.items():
        for model in ["all", *sorted(set(answers.groups))]:
            of_model = np.array([model in ("all", group) for group in answers.groups])
            verdicts_n = verdicts[of_model]
            share = rate(verdicts_n)
            row = {"answers": answers.name, "judge": judge, "model": model}
            row |= {"n": int(np.isfinite(verdicts_n).sum())}
            row |= {"missing": float(np.isnan(verdicts_n).mean())}
            row |= {"rate": share.value, "low": share.low, "high": share.high}
            rows.append(row)
    return rows


def _agreement_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {
        "answers": row["answers"],
        "judges": f"{row['first']} · {row['second']}",
        "n": row["n"],
        "spearman": _interval(row, "spearman"),
        "weighted kappa": _interval(row, "weighted_kappa"),
        "kappa of verdicts": None,
    }
    if "verdict_kappa" in row:
        cells["kappa of verdicts"] = _interval(row, "verdict_kappa")
    return cells


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def _rate_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = 100 * row["rate"], 100 * row["low"], 100 * row["high"]
    return {
        "answers": row["answers"],
        "judge": row["judge"],
        "n": row["n"],
        "missing": f"{100 * row['missing']:.1f} %",
        "with the behaviour": f"{value:.1f} % [{low:.1f}, {high:.1f}]",
    }


def report_lines(comparison: Comparison, judges: Sequence[GradedBy]) -> list[str]:
    """Returns the lines below the tables: alpha, counts, and warnings of judges."""
    lines = []
    for name, alpha in comparison.alpha.items():
        lines.append(f"{name}: Krippendorff's alpha of all verdicts {alpha:.2f}")
    for judge in judges:
        lines.append(f"{judge.answers}: {judge.name}: {judge.counts}")
        problems = [*judge.warnings, judge.stopped]
        for problem in filter(None, problems):
            lines.append(f"warning: {judge.answers}: {judge.name}: {problem}")
    return lines
