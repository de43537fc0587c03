"""What a mitigation study found, as a table and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.numbers import is_known, share, signed
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table

BLOCKS = {
    "": "",
    "mean": "set to the mean",
    "zero": "removed",
    "steer": "steered against",
    "site": "projected out, SAE's layer",
    "layers": "projected out, every layer",
}
WHO = {
    "unedited": "the model as it is",
    "cause": "latents by cause",
    "lever": "latents by lever",
    "random": "random latents",
    "direction": "mean-difference direction",
    "random_direction": "random directions",
}
Row = Mapping[str, Any]


def mitigation_table(numbers: Mapping[str, Any]) -> str:
    """Returns a line per condition: rate, coherence, perplexity and accuracies in per
    cent.

    Args:
      numbers: of `analyses.mitigation_results.mitigation_numbers`.
    """
    rows: Sequence[Row] = numbers["rows"]
    columns: dict[str, list[Any]] = {
        "what": [WHO[row["method"]] for row in rows],
        "how": [BLOCKS[row["block"]] for row in rows],
        "k": [row["count"] for row in rows],
    }
    titles = {"rate": "rate", "coherence": "mass", "perplexity": "perplexity"}
    for name in numbers["benign"]:
        titles[f"accuracy_{name}"] = f"right, {one_line(name, 30)}"
    for name, title in titles.items():
        columns[title] = [100 * row[name] for row in rows]
        columns[f"{title} 95 %"] = [_ends(row, name) for row in rows]
    formats = {title: ".1f" for title in titles.values()}
    return text_table(columns, formats)


def mitigation_sentences(numbers: Mapping[str, Any]) -> list[str]:
    """Returns the rate and what it costs, method by method and way by way: for the
    largest number of latents that leaves enough coherence.
    """
    rows: Sequence[Row] = numbers["rows"]
    (plain,) = [row for row in rows if row["method"] == "unedited"]
    behaviour = one_line(numbers["behaviour"], 80)
    sentences = [f"Without an edit the rate of {behaviour} is {_rate(plain)}."]
    for method in ("cause", "lever", "random"):
        for block in ("mean", "zero", "steer"):
            of_method = [
                r for r in rows if (r["block"], r["method"]) == (block, method)
            ]
            coherent = [row for row in of_method if row["coherent"]]
            if coherent:
                sentences.append(_sentence(coherent[-1], numbers["benign"]))
            elif of_method:
                who, how = WHO[method], BLOCKS[block]
                sentences.append(f"No number of {who}, {how}, leaves coherent answers.")
    for block in ("site", "layers"):
        for method in ("direction", "random_direction"):
            for row in rows:
                if (row["block"], row["method"]) == (block, method):
                    sentences.append(_sentence(row, numbers["benign"]))
    return sentences


def _sentence(row: Row, benign: Sequence[str]) -> str:
    """Returns the rate under one condition, with its costs."""
    who = WHO[row["method"]]
    if row["block"] in ("mean", "zero", "steer"):
        who = f"{row['count']} {who}"
        if row["count"] == 1:
            who = who.replace("latents", "latent")
    costs = [f"perplexity × {row['perplexity']:.2f}"]
    for name in benign:
        change = signed(100 * row[f"change_accuracy_{name}"])
        costs.append(f"right answers on {one_line(name, 30)} {change} points")
    return (
        f"{who[0].upper()}{who[1:]}, {BLOCKS[row['block']]}: {_rate(row)} "
        f"({'; '.join(costs)})."
    )


def _rate(row: Row) -> str:
    return f"{share(row['rate'])} {_ends(row, 'rate')}".rstrip()


def _ends(row: Row, name: str) -> str:
    """Returns an interval of shares in per cent; "" where it is not known."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if not (is_known(low) and is_known(high)):
        return ""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
