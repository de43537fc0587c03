"""The controls of the task even_number as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.numbers import UNKNOWN, share, signed, span
from sae_attr.report.pool_text import SELECTOR_NAMES
from sae_attr.report.tables import text_table

Rows = Sequence[Mapping[str, Any]]
_CONDITIONS = {
    "hint": "odd is rewarded",
    "reversed": "even is rewarded",
    "none": "no hint",
    "padded": "odd, padded",
}
_GROUPS = {"gradient_vector": "the gradient vector", **SELECTOR_NAMES}


def controls_text(numbers: Mapping[str, Rows]) -> str:
    """Returns the tables of `number_control_results.control_numbers`; "" without any."""
    if not numbers["number_rates"]:
        return ""
    rows = numbers["number_controls"]
    parts = [
        "even_number: exact share of odd numbers, mean [least, largest] over prompts, "
        "before and after the fine-tune",
        _rate_table(numbers["number_rates"]),
        "even_number: rate at +s minus rate at −s, points, under every hint; strengths "
        "are those of the first column",
        _steering_table(rows),
        "even_number: what latents tell apart on all formats (share, exact interval; "
        "lowest AUC of the formats, mean):\nthe field (AUC .95 or more), odd answers "
        "from even ones of the same length (above .5), long answers from short ones "
        "(.95 or more, or .05 or less)",
        _auc_table(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _rate_table(rows: Rows) -> str:
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns: dict[str, list[Any]] = {"seed": [], "fine-tune": []}
    for title in _CONDITIONS.values():
        columns[title] = []
    cells = {(row["seed"], row["model"], row["condition"]): row for row in rows}
    for seed in seeds:
        for model in models:
            columns["seed"].append(seed)
            columns["fine-tune"].append(model)
            for condition, title in _CONDITIONS.items():
                row = cells[seed, model, condition]
                limits = f"[{100 * row['least']:.1f}, {100 * row['largest']:.1f}]"
                columns[title].append(f"{share(row['rate'], 1)} {limits}")
    return text_table(columns)


def _steering_table(rows: Rows) -> str:
    columns = _heads(rows)
    for condition, title in _CONDITIONS.items():
        columns[title] = [_points(row, f"steering.{condition}") for row in rows]
    columns["even rewarded, +s alone"] = [_points(r, "along.reversed") for r in rows]
    return text_table(columns)


def _points(row: Mapping[str, Any], name: str) -> str:
    mean = signed(100 * row[name])
    if row["latents"] == 1:
        return mean
    return f"{mean} {span(row[f'{name}_low'], row[f'{name}_high'])}"


def _auc_table(rows: Rows) -> str:
    columns = _heads(rows)
    for name, title in (
        ("field", "field"),
        ("short", "parity, short"),
        ("long", "parity, long"),
        ("length", "length"),
    ):
        columns[title] = [_share_of(row, name) for row in rows]
        columns[f"{title}: lowest"] = [_auc(row[f"{name}.lowest"]) for row in rows]
    columns["length: highest"] = [_auc(row["length.highest"]) for row in rows]
    return text_table(columns)


def _heads(rows: Rows) -> dict[str, list[Any]]:
    return {
        "latents of": [_GROUPS[row["group"]] for row in rows],
        "latents": [row["latents"] for row in rows],
    }


def _share_of(row: Mapping[str, Any], name: str) -> str:
    low, high = 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]
    return f"{share(row[name], 0)} [{low:.0f}, {high:.0f}]"


def _auc(value: float) -> str:
    return UNKNOWN if value != value else f"{value:.2f}"
