"""The transition of a rank-1 adapter as text: when its events come, how far apart they
lie, and what is measured on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.report.numbers import UNKNOWN, is_known, share, signed, span
from sae_attr.report.tables import text_table

Row = Mapping[str, Any]
Rows = Sequence[Row]


def event_title(name: str) -> str:
    """Returns an event in words."""
    if name.startswith("turn_"):
        return f"turn, k = {name.removeprefix('turn_')}"
    if name.startswith("rise_x"):
        return f"rise, adapter × {name.removeprefix('rise_x')}"
    return "gradient's peak"


def transition_text(numbers: Mapping[str, Rows]) -> str:
    """Returns the tables of `transition_results.transition_numbers`."""
    parts = []
    for behaviour in dict.fromkeys(row["behaviour"] for row in numbers["runs"]):
        of = {
            name: [row for row in rows if row["behaviour"] == behaviour]
            for name, rows in numbers.items()
        }
        parts += [
            f"{behaviour}: the steps at which a rank-1 adapter turns (smallest |local "
            "cosine|), the gradient's\nnorm peaks, and the exact rate rises most",
            _event_table(of["events"]),
            f"{behaviour}: how many steps later the first event comes than the second "
            "(95 % bootstrap over\nruns); near: runs in which they lie within the "
            "shortest lag",
            _distance_table(of["distances"]),
            f"{behaviour}: along the way, mean over runs ± standard deviation over runs "
            "(Δ of the top latents: ±\nmean standard error over prompts; steering: rate "
            "at +s minus rate at −s, points)",
            _way_table(of["runs"]),
            _geometry_line(behaviour, of["runs"]),
        ]
    return "\n\n".join(parts) + "\n"


def _event_table(rows: Rows) -> str:
    return text_table(
        {
            "event": [event_title(row["event"]) for row in rows],
            "seed": [row["seed"] for row in rows],
            "runs": [f"{row['has']} of {row['runs']}" for row in rows],
            "step": [_number(row.get("mean")) for row in rows],
            "sd": [_number(row.get("sd")) for row in rows],
            "first to last": [_ends(row) for row in rows],
        },
        right=("step", "sd", "first to last"),
    )


def _number(value: Any) -> str:
    return f"{value:.1f}" if is_known(value) else UNKNOWN


def _ends(row: Row) -> str:
    if "first" not in row:
        return UNKNOWN
    return f"{row['first']} to {row['last']}"


def _distance_table(rows: Rows) -> str:
    return text_table(
        {
            "first": [event_title(row["first"]) for row in rows],
            "second": [event_title(row["second"]) for row in rows],
            "seed": [row["seed"] for row in rows],
            "steps later": [signed(row["mean"]) for row in rows],
            "95 %": [span(row["low"], row["high"], scale=1) for row in rows],
            "sd": [_number(row["sd"]) for row in rows],
            "runs": [row["runs"] for row in rows],
            "near": [share(row["within"], 0) for row in rows],
        },
        right=("steps later", "95 %", "sd", "near"),
    )


def _way_table(rows: Rows) -> str:
    """What every measured step shows, of the runs of all seeds together."""
    steps = rows[0]["measured_step"]
    columns: dict[str, list[Any]] = {"step": list(steps)}
    rate_sr = np.array([row["curves"]["rate_x1"] for row in rows]).T
    columns["rate"] = [
        f"{share(values.mean(), 0)} ± {100 * _sd(values):.0f}"
        for values in rate_sr[steps]
    ]
    columns["Δ, top latents"] = _delta_cells(rows)
    for name, title in (
        ("steering_top", "steering, top"),
        ("steering_random", "random"),
        ("steering_gradient", "gradient"),
        ("steering_mean_difference", "mean difference"),
    ):
        columns[title] = _cells(rows, name, 100, 1)
    for name, title in (
        ("gradient_to_b", "cos(B, gradient)"),
        ("mean_difference_to_b", "cos(B, mean difference)"),
    ):
        columns[title] = _cells(rows, name, 1, 2)
    return text_table(columns, right=tuple(columns)[1:])


def _delta_cells(rows: Rows) -> list[str]:
    delta_sr = np.array([row["measured"]["delta"] for row in rows]).T
    error_sr = np.array([row["measured"]["delta_se"] for row in rows]).T
    cells = []
    for values, errors in zip(delta_sr, error_sr, strict=True):
        cells.append(f"{signed(values.mean(), 4)} ± {errors.mean():.4f}")
    return cells


def _cells(rows: Rows, name: str, scale: float, digits: int) -> list[str]:
    """A measured curve's mean and deviation over runs; what no run has is unknown."""
    steps = rows[0]["measured_step"]
    curves = [row["measured"][name] for row in rows if name in row["measured"]]
    if not curves:
        return [UNKNOWN] * len(steps)
    cells = []
    for values in scale * np.array(curves, np.float64).T:
        text = signed(values.mean(), digits)
        if is_known(values.mean()):
            text += f" ± {_sd(values):.{digits}f}"
        cells.append(text)
    return cells


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _geometry_line(behaviour: str, rows: Rows) -> str:
    """The path's principal components, and turns as they were published."""
    shares = np.array([row["principal_share"] for row in rows], np.float64).mean(0)
    shown = " and ".join(share(value, 0) for value in shares)
    turns = []
    for name in rows[0]["turns_as_published"]:
        steps = [row["turns_as_published"][name] for row in rows]
        there = ", ".join(UNKNOWN if step is None else str(step) for step in steps)
        turns.append(f"{event_title(name)}: {there}")
    return (
        f"{behaviour}: the first two principal components of B explain {shown} of its "
        "path;\nturns where every step counts that moves at all, run by run: "
        f"{'; '.join(turns)}"
    )
