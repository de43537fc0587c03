"""The pool of selectors as text: what steers, what monitors, and what both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.numbers import UNKNOWN, p_value, share, signed, span
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table

Row = Mapping[str, Any]
Rows = Sequence[Row]

SELECTOR_NAMES: Mapping[str, str] = {
    "gradient": "|cos| with the gradient vector",
    "frequency": "frequency difference",
    "attribution": "attribution",
    "model_difference": "model diffing",
    "planted": "the planted latent",
    "random": "random",
}
_SHOWN = 20  # latents that both steer and monitor


def pool_text(numbers: Mapping[str, Rows]) -> str:
    """Returns the tables of `pool_results.pool_numbers`."""
    parts = []
    for behaviour in dict.fromkeys(row["behaviour"] for row in numbers["selectors"]):
        rows = [r for r in numbers["selectors"] if r["behaviour"] == behaviour]
        parts += [
            f"{behaviour}: what each selector's latents do (steering: rate at +s minus "
            "rate at -s, points;\nmonitoring: AUC above .5 on every task; p: one-sided, "
            "against random latents)",
            _selector_table(rows),
            _vector_line(numbers["latents"], behaviour),
            _latents_table(numbers["latents"], behaviour),
        ]
    for row in numbers["skipped"]:
        name = SELECTOR_NAMES[row["selector"]]
        why = one_line(row["why"], 200)
        parts.append(f"{row['behaviour']}, {name}: left out: {why}")
    parts += ["tasks", _task_table(numbers["tasks"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _selector_table(rows: Rows) -> str:
    columns: dict[str, list[Any]] = {
        "selector": [SELECTOR_NAMES[row["selector"]] for row in rows],
        "latents": [row["latents"] for row in rows],
        "steering": [_points(row) for row in rows],
    }
    for name, title in (
        ("steers", "steer"),
        ("monitors_same", "monitor its tasks"),
        ("monitors", "monitor every task"),
        ("both", "both"),
    ):
        columns[title] = [_share_of(row, name) for row in rows]
    return text_table(columns, right=tuple(columns)[2:])


def _points(row: Row) -> str:
    return f"{signed(100 * row['mean'])} {span(row['low'], row['high'])}"


def _share_of(row: Row, name: str) -> str:
    low, high = 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]
    text = f"{share(row[name], 0)} [{low:.0f}, {high:.0f}]"
    if row["selector"] == "random":
        return text
    return f"{text}, p {p_value(row[f'{name}_p'])}"


def _vector_line(rows: Rows, behaviour: str) -> str:
    lines = []
    for row in rows:
        if row["behaviour"] == behaviour and row["origins"] == ["gradient_vector"]:
            lines.append(
                f"{behaviour}, seed {row['seed']}, the contrastive gradient vector "
                f"itself: {signed(100 * row['along'])} points along, "
                f"{signed(-100 * row['against'])} against; lowest AUC "
                f"{_auc(row['lowest'])} of all tasks, {_auc(row['lowest_same'])} of its "
                "behaviour's"
            )
    return "\n".join(lines)


def _auc(value: Any) -> str:
    return UNKNOWN if value is None or value != value else f"{value:.2f}"


def _latents_table(rows: Rows, behaviour: str) -> str:
    """The pool's latents that steer and monitor every task, the strongest first."""
    both = []
    for row in rows:
        passes = row["steers"] and row["monitors"]
        in_pool = row["origins"][0] in SELECTOR_NAMES and row["origins"] != ["random"]
        if row["behaviour"] == behaviour and in_pool and passes:
            both.append(row)
    both = sorted(both, key=lambda row: -row["steering"])[:_SHOWN]
    if not both:
        return f"{behaviour}: no latent of the pool steers and monitors every task"
    columns = {
        "seed": [row["seed"] for row in both],
        "latent": [row["latent"] for row in both],
        "sign": [signed(row["sign"], 0) for row in both],
        "steering": [100 * row["steering"] for row in both],
        "lowest AUC": [row["lowest"] for row in both],
        "selected by": [
            ", ".join(SELECTOR_NAMES[name] for name in row["origins"]) for row in both
        ],
    }
    formats = {"steering": "+.1f", "lowest AUC": ".2f"}
    title = f"{behaviour}: latents of the pool that steer and monitor every task"
    return f"{title}\n{text_table(columns, formats)}"


def _task_table(rows: Rows) -> str:
    columns = {
        "pool of": [row["behaviour"] for row in rows],
        "seed": [row["seed"] for row in rows],
        "task": [row["task"] for row in rows],
        "rollouts": [row["rollouts"] for row in rows],
        "with the behaviour": [share(row["rate"], 0) for row in rows],
        "AUC of the vector": [_auc(row.get("vector")) for row in rows],
        "random: median": [_auc(row.get("random_median")) for row in rows],
        "random: 95 %": [_auc(row.get("random_95")) for row in rows],
        "left out": [one_line(row["skipped"], 200) for row in rows],
    }
    return text_table(columns)
