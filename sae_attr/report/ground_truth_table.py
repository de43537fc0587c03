"""The table of scores of latents against ground truth as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.tables import text_table

Row = Mapping[str, Any]
TRUTHS = ("away", "toward", "ablation")
ALL = "all"
BEST = "best possible"

_LEGEND = """\
away, toward, ablation: what steering with a latent away from the behaviour or toward it,
or setting it to its mean, does. points: mean effect of the best {top} latents of a score on
the behaviour's rate, in points; ρ: Spearman over all latents; recall: share of the {top}
latents of largest effect. [ ]: 95 % by a bootstrap over seeds and, within each, over the
prompts of the effects. *: the largest effect of all scores; =: not distinguishable from it.
Scope "direction": one direction that needs no SAE, and nothing ranks; prompting: the best
word of address. half of the prompts: effects on every second prompt as the score for those on
the others. best possible: the {top} latents of largest effect, chosen on the prompts that they
are measured on."""


def table_text(summary: Sequence[Row], facts: Sequence[Row], top: int = 20) -> str:
    """Returns the tables as text: which score is best, the mean over cases of each size
    of the SAE, every case, and the facts of every run.

    Args:
      summary: from `study.score_summary.summary_rows`.
      facts: name -> value of every run.
      top: latents that effects are means of.
    """
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in summary:
        case = row["behaviour"], row["kind"], row["latents"]
        tables.setdefault(case, []).append(row)
    # Means over cases come first; sorting keeps the order of what is equal.
    cases = sorted(tables, key=lambda case: case[0] != ALL)
    lines = [_LEGEND.format(top=top), "", "the best score of each question"]
    lines.append(_best_table({case: tables[case] for case in cases}))
    for case in cases:
        rows = tables[case]
        lines += ["", f"{case_title(case)}, {rows[0]['seeds']} seeds", _table(rows)]
    lines += ["", "runs"]
    for run in facts:
        parts = [f"{name}={_value(value)}" for name, value in run.items()]
        lines.append(" ".join(parts))
    return "\n".join(lines) + "\n"


def case_title(case: tuple[Any, ...]) -> str:
    """Returns what a table is of: behaviour, kind of fine-tune and size of the SAE."""
    behaviour, kind, latents = case
    if behaviour == ALL:
        return f"mean over all cases, {latents:,} latents"
    return f"{behaviour}, {kind}, {latents:,} latents"


def _best_table(tables: Mapping[tuple[Any, ...], Sequence[Row]]) -> str:
    """Returns a line per case and ground truth: the score of largest effect, and how
    many others are not distinguishable from it.
    """
    lines: dict[str, list[str]] = {"case": [], "question": [], "best": []}
    lines |= {"points": [], "of": [], "not distinguishable": []}
    for case, rows in tables.items():
        for truth in TRUTHS:
            ranking = [row for row in rows if row["truth"] == truth]
            ranking = [row for row in ranking if not math.isnan(row["behind"])]
            best, *others = sorted(ranking, key=lambda row: row["behind"])
            equal = [_name(row) for row in others if row["behind_low"] <= 0]
            lines["case"].append(case_title(case))
            lines["question"].append(truth)
            lines["best"].append(_name(best))
            lines["points"].append(_effect(best))
            lines["of"].append(points(best["best_effect"]))
            lines["not distinguishable"].append(", ".join(equal))
    return text_table(lines, right=("points", "of"))


def _name(row: Row) -> str:
    return f"{row['score']} {row['scope']}".strip()


def _table(rows: Sequence[Row]) -> str:
    """Returns a line per score and scope, and the best that any score could reach."""
    by_score: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_score.setdefault((row["score"], row["scope"]), {})[row["truth"]] = row
    scores, scopes = zip(*by_score, strict=True)
    columns: dict[str, list[str]] = {"score": [*scores, BEST], "scope": [*scopes, ""]}
    for truth in TRUTHS:
        of_truth = [scored[truth] for scored in by_score.values()]
        largest = f"{points(of_truth[0]['best_effect'])} {'':>{_WIDTH}}"
        columns[f"{truth}: points"] = [*map(_effect, of_truth), f"{largest}  "]
        columns[f"{truth}: ρ"] = [*map(_correlation, of_truth), ""]
        columns[f"{truth}: recall"] = [*map(_recall, of_truth), "100 %"]
    return text_table(columns, right=list(columns)[2:])


_WIDTH = 13  # of an interval of effects


def points(share: float) -> str:
    """Returns a share in points, with its sign."""
    return f"{100 * share:+.1f}"


def _effect(row: Row) -> str:
    """The effect with its interval, and a mark of the best score and its equals."""
    interval = f"[{points(row['effect_low'])} {points(row['effect_high'])}]"
    mark = " "
    if row["behind"] == 0:
        mark = "*"
    elif row["behind_low"] <= 0:
        mark = "="
    return _or_dash(
        row["effect"], f"{points(row['effect'])} {interval:>{_WIDTH}} {mark}"
    )


def _correlation(row: Row) -> str:
    low, high = row["spearman_low"], row["spearman_high"]
    text = f"{row['spearman']:+.2f} [{low:+.2f} {high:+.2f}]"
    return _or_dash(row["spearman"], text)


def _recall(row: Row) -> str:
    return _or_dash(row["recall"], f"{100 * row['recall']:.0f} %")


def _or_dash(value: float, text: str) -> str:
    return "–" if math.isnan(value) else text


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
