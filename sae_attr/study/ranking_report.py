"""The result of an attribution run as one record: rankings with their statistics, every
score, and the facts that a reader needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.report.ranking_text import (
    latent_table,
    legend,
    origin_table,
    ranked_text,
    summary_text,
)
from sae_attr.store import Computed, Result


@dataclass(frozen=True, eq=False)
class RankingReport:
    """Holds what a run reports.

    Args:
      columns: per preset, the columns of its candidates, best first; the primary preset
        is the first key.
      scores: name -> `[n]`, NaN where a score was not computed.
      ablation: numbers of the figure; None without ablation.
      summary: what result.json holds beside versions.
    """

    columns: Mapping[str, Mapping[str, np.ndarray]]
    scores: Mapping[str, np.ndarray]
    ablation: Mapping[str, Any] | None
    summary: Mapping[str, Any]

    def to_stored(self, folder: str | None = None) -> Computed:
        """Returns the record as arrays and JSON, for a stage.

        Args:
          folder: is taken off paths that begin with it, so that a workdir may move.
        """
        columns = {}
        for preset, arrays in self.columns.items():
            columns[preset] = {name: values.tolist() for name, values in arrays.items()}
        meta = {
            "columns": columns,
            "ablation": self.ablation,
            "summary": plain_values(self.summary, folder),
        }
        return self.scores, meta


def report_of(result: Result) -> RankingReport:
    """Reads the record from the result of the stage that stored it."""
    columns = {}
    for preset, lists in result.meta["columns"].items():
        columns[preset] = {name: np.array(values) for name, values in lists.items()}
    scores = {name: np.asarray(values) for name, values in result.arrays.items()}
    return RankingReport(
        columns, scores, result.meta["ablation"], result.meta["summary"]
    )


def report_text(report: RankingReport) -> str:
    """Returns the tables of every preset, and what a reader must know about them."""
    summary = report.summary
    lines = []
    for name, columns in report.columns.items():
        preset = summary["presets"][name]
        which = f"tokens={preset['tokens']}, gating={preset['gating']}"
        lines.append(f"\n{name}: {which}, {ranked_text(preset['ranked'])}")
        lines.append(latent_table(columns))
        lines.append(f"\nwhere Δ comes from\n{origin_table(columns)}")
    lines.append(f"\n{legend(summary['exact_ablation'].get('scope'))}")
    lines.append(f"\n{summary_text(summary)}")
    lines += [f"warning: {text}" for text in summary["warnings"]]
    return "\n".join(lines)


def plain_values(value: Any, folder: str | None = None) -> Any:
    """Returns nested mappings, sets and arrays as values that JSON has; paths in
    `folder` relative to it.
    """
    if isinstance(value, Mapping):
        return {str(k): plain_values(v, folder) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [plain_values(v, folder) for v in value]
    if isinstance(value, str):
        return value.removeprefix(folder or "")
    return value.tolist() if hasattr(value, "tolist") else value
