"""The table of scores of latents against ground truth: means over seeds, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.report.tables import text_table

GROUP = ("behaviour", "kind", "score", "scope", "truth")
NUMBERS = ("spearman", "recall", "effect", "best_effect")

Row = Mapping[str, Any]


def summary_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns mean and standard deviation over seeds of every number, a row for every
    behaviour, kind, score, scope and ground truth.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    summary = []
    for group, members in groups.items():
        entry: dict[str, Any] = dict(zip(GROUP, group, strict=True))
        entry["seeds"] = len(members)
        for name in NUMBERS:
            values = np.array([member[name] for member in members], np.float64)
            entry[name] = float(values.mean())
            entry[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary.append(entry)
    return summary


def table_text(summary: Sequence[Row], facts: Sequence[Row]) -> str:
    """Returns a table per behaviour and kind: a line per score and scope, and per ground
    truth Spearman's correlation, recall and mean effect; below them the facts of every
    run.

    Args:
      summary: from `summary_rows`.
      facts: name -> value of every run.
    """
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in summary:
        tables.setdefault((row["behaviour"], row["kind"]), []).append(row)
    lines = []
    for (behaviour, kind), rows in tables.items():
        title = f"{behaviour}, {kind}, {rows[0]['seeds']} seeds"
        numbers = "Spearman ± sd | recall | mean effect of the top"
        lines += ["", f"{title}: {numbers}", _table(rows)]
    lines += ["", "runs"]
    for run in facts:
        parts = [f"{name}={_value(value)}" for name, value in run.items()]
        lines.append(" ".join(parts))
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(rows: Sequence[Row]) -> str:
    """Returns a line per score and scope, and the best that any score could reach."""
    best: dict[str, float] = {}  # of each ground truth: the same in all of its rows
    by_score: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        best.setdefault(row["truth"], row["best_effect"])
        by_score.setdefault((row["score"], row["scope"]), {})[row["truth"]] = row
    scores, scopes = zip(*by_score, strict=True)
    columns = {"score": [*scores, "best possible"], "scope": [*scopes, ""]}
    for ground_truth, effect in best.items():
        cells = [_cell(scored[ground_truth]) for scored in by_score.values()]
        columns[ground_truth] = [*cells, f"| 1.00 | {effect:+.3f}"]
    return text_table(columns, right=list(best))


def _cell(row: Row) -> str:
    return (
        f"{row['spearman']:+.2f} ± {row['spearman_sd']:.2f} | {row['recall']:.2f} | "
        f"{row['effect']:+.3f}"
    )


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
