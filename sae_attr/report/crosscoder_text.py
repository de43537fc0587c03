"""Crosscoders of a fine-tune and the model before it, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.tables import text_table

Row = Mapping[str, Any]
NAMES: Mapping[str, str] = {
    "crosscoder": "BatchTopK crosscoder",
    "crosscoder_l1": "L1 crosscoder",
    "difference": "SAE of the difference",
    "random": "random latents of the SAE",
}
SETS: Mapping[str, str] = {
    "nothing": "nothing",
    "all": "all latents",
    "specific": "the largest Δ_norm",
    "low_nu": "their half of low ν",
    "high_nu": "their half of high ν",
}


def crosscoder_text(numbers: Mapping[str, Sequence[Row]]) -> str:
    """Returns the tables of `crosscoder_results.crosscoder_numbers`."""
    rows = numbers["dictionaries"]
    parts = ["latents that fired, by Δ_norm; specific: also ν_ε and ν_r low"]
    parts.append(_counts([row for row in rows if "fired" in row]))
    parts.append("explained variance (both models; before, fine-tuned), active latents")
    parts.append(_fits(rows))
    parts.append("KL to the fine-tuned model, nats: the base model's activation and")
    parts.append(_kl(rows))
    parts.append("steering, change of the rate in points, against random latents")
    parts.append(_steering(numbers["steering"]))
    if numbers["planted"]:
        parts.append("planted models: features of the fine-tuned model alone")
        parts.append(_planted(numbers["planted"]))
    return "\n\n".join(parts) + "\n"


def _counts(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {
        "dictionary": [NAMES[row["dictionary"]] for row in rows]
    }
    for name in ("fired", "ft_only", "specific", "base_only", "shared", "other"):
        columns[name.replace("_", " ")] = [row[name] for row in rows]
    return text_table(columns)


def _fits(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {
        "dictionary": [NAMES[row["dictionary"]] for row in rows],
        "EV": [f"{row['explained_variance']:.3f}" for row in rows],
    }
    for i, name in enumerate(("before", "fine-tuned")):
        shares = []
        for row in rows:
            by_model = row.get("explained_variances")
            shares.append(f"{by_model[i]:.3f}" if by_model else "–")
        columns[name] = shares
    columns["L0"] = [f"{row['l0']:.1f}" for row in rows]
    return text_table(columns, right=tuple(columns)[1:])


def _kl(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {"latents": list(SETS.values())}
    for row in rows:
        if "kl" in row:
            name = NAMES[row["dictionary"]].split()[0]
            for tokens in ("all", "answer"):
                values = [f"{row['kl'][kind][tokens]:.4f}" for kind in SETS]
                columns[f"{name}, {tokens}"] = values
    return text_table(columns, right=tuple(columns)[1:])


def _steering(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {
        "way": [row["way"] for row in rows],
        "latents of": [NAMES[row["method"]] for row in rows],
        "mean": [f"{100 * row['mean']:+.1f}" for row in rows],
        "95 %": [f"{100 * row['low']:+.1f} {100 * row['high']:+.1f}" for row in rows],
        "largest": [f"{100 * row['largest']:+.1f}" for row in rows],
        "outside": [f"{row['outside']} of {row['latents']}" for row in rows],
    }
    return text_table(columns, right=tuple(columns)[2:])


def _planted(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {
        "dictionary": [NAMES[row["objective"]] for row in rows]
    }
    for key, title in (("norm", "by Δ_norm"), ("nu", "with ν")):
        for number in ("precision", "recall"):
            columns[f"{title}: {number}"] = [
                f"{row[f'{key}_{number}']:.2f}" for row in rows
            ]
        columns[f"{title}: baits"] = [row[f"{key}_baits"] for row in rows]
    return text_table(columns, right=tuple(columns)[1:])
