"""A pool of latents over checkpoints, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.numbers import UNKNOWN, is_known, share, signed
from sae_attr.report.pool_text import SELECTOR_NAMES
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table

Row = Mapping[str, Any]


def checkpoints_text(rows: Sequence[Row]) -> str:
    """Returns the tables of `checkpoint_results.checkpoint_rows`; "" without any."""
    measured = [row for row in rows if not row["skipped"]]
    parts = []
    if measured:
        parts += [
            "attribution over checkpoints: mean Δ of the pool's attribution latents ± "
            "standard error over prompts;\ncorrelation of all latents' Δ with that of "
            "the last checkpoint: on the same prompts, on the other half\nof them, and "
            "without what the sample costs (below 1 by the model alone)",
            text_table(_attribution_columns(measured)),
            "steering diffing over checkpoints: rate at +s minus rate at −s, points, "
            "mean ± standard error over latents",
            text_table(_selector_columns(measured, "steering", 100, 1)),
            "activation diffing over checkpoints: mean cosine with completions",
            text_table(_selector_columns(measured, "cosine", 1, 3)),
        ]
    for row in rows:
        if row["skipped"]:
            why = one_line(row["skipped"], 200)
            parts.append(f"{row['behaviour']}, step {row['step']}: left out: {why}")
    return "\n\n".join(parts) + "\n" if parts else ""


def _heads(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {
        "behaviour": [row["behaviour"] for row in rows],
        "seed": [row["seed"] for row in rows],
        "step": [row["step"] for row in rows],
    }


def _attribution_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    columns = _heads(rows)
    columns["rate"] = [share(row["rate"], 0) for row in rows]
    columns["Δ"] = [_with_error(row["delta"], row["se"], 4) for row in rows]
    for name, title in (
        ("split_half", "split half"),
        ("same", "same prompts"),
        ("halves", "other half"),
        ("model", "without the sample"),
    ):
        columns[title] = [signed(row[name], 2) for row in rows]
    return columns


def _selector_columns(
    rows: Sequence[Row], name: str, scale: float, digits: int
) -> dict[str, list[Any]]:
    columns = _heads(rows)
    for selector, title in SELECTOR_NAMES.items():
        cells = []
        for row in rows:
            mean: Any = row.get(f"{name}.{selector}")
            error: Any = row.get(f"{name}_se.{selector}")
            if not is_known(mean):
                cells.append(UNKNOWN)
            elif not is_known(error):
                cells.append(signed(scale * mean, digits))
            else:
                cells.append(_with_error(scale * mean, scale * error, digits))
        columns[title] = cells
    return columns


def _with_error(mean: float, error: float, digits: int) -> str:
    return f"{signed(mean, digits)} ± {error:.{digits}f}"
