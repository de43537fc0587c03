"""What a study of dense latents found, as tables and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.method_style import RANDOM, method_name
from sae_attr.report.numbers import share, signed
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table

CLASS_NAMES = {
    "position": "position",
    "null_space": "null space of the unembedding",
    "alphabet": "one letter",
    "principal": "first principal component",
    "word": "class of words",
    "none": "none of these",
}
_DIRECTIONS = {"away": "steered away", "toward": "steered toward"}
_DATA = {
    "as_it_is": "planted data",
    "without_dense": "without the span of its dense latents",
    "without_random": "without a random span of the same size",
}
Row = Mapping[str, Any]


def dense_tables(numbers: Mapping[str, Any]) -> str:
    """Returns the classes, the dense among the best of every ranking, and the effects
    without them.

    Args:
      numbers: of `analyses.dense_results.dense_numbers`.
    """
    classes: Sequence[Row] = numbers["classes"]
    tables = [
        text_table(
            {
                "class": [_class_name(row, numbers) for row in classes],
                "dense": [row["dense"] for row in classes],
                "with an antipode": [row["paired"] for row in classes],
                "% of dense": [100 * row["share"] for row in classes],
                "dense that meet it": [row["meet"] for row in classes],
                "others that meet it": [
                    f"{row['others']} of {row['of_others']}" for row in classes
                ],
            },
            {"% of dense": ".0f"},
            right=("others that meet it",),
        )
    ]
    rankings: Sequence[Row] = numbers["rankings"]
    tables.append(
        text_table(
            {
                "ranking": [method_name(row["ranking"]) for row in rankings],
                "best": [row["ranked"] for row in rankings],
                "dense": [row["dense"] for row in rankings],
                "at random": [row["expected"] for row in rankings],
                "first dense at": [row["first_dense"] for row in rankings],
            },
            {"at random": ".1f"},
        )
    )
    effects: Sequence[Row] = numbers["effects"]
    tables.append(
        text_table(
            {
                "": [_DIRECTIONS[row["direction"]] for row in effects],
                "method": [method_name(row["method"]) for row in effects],
                "latents": [row["latents"] for row in effects],
                "dense": [row["dense"] for row in effects],
                "mean": [signed(100 * row["mean"]) for row in effects],
                "without": [signed(100 * row["mean_without"]) for row in effects],
                "outside": [row["outside"] for row in effects],
                "outside, without": [
                    f"{row['outside_without']} of {row['latents_without']}"
                    for row in effects
                ],
            },
            right=("mean", "without", "outside, without"),
        )
    )
    return "\n\n".join(tables)


def _class_name(row: Row, numbers: Mapping[str, Any]) -> str:
    name = CLASS_NAMES[row["class"]]
    return f"{name} (not measured)" if row["class"] in numbers["left_out"] else name


def dense_sentences(numbers: Mapping[str, Any]) -> list[str]:
    """Returns how many latents are dense, how many of them are pairs and of a class, and
    whether the study's result holds without them.
    """
    settings = numbers["settings"]
    threshold = share(settings["dense"], 0)
    sentences = [
        f"{numbers['dense']:,} of {numbers['latents']:,} latents at {numbers['site']} "
        f"are dense: they fire on more than {threshold} of {numbers['tokens']:,} tokens."
    ]
    dense = [row for row in numbers["rows"] if row["dense"]]
    if dense:
        paired = sum(row["paired"] for row in dense)
        none = sum(row["density_class"] == "none" for row in dense)
        sentences.append(
            f"Of the {len(dense)} that were looked at, {paired} have an antipode "
            f"(s above {settings['antipodal']:g}); {_count(none)} of no class that is "
            "decided here."
        )
    for name, why in numbers["left_out"].items():
        sentences.append(f"Not measured, {CLASS_NAMES[name]}: {one_line(why, 200)}.")
    chance = numbers["null_chance"]
    if chance is not None and chance > settings["null_energy"] / 2:
        sentences.append(
            f"In so narrow a model a random direction has {share(chance, 0)} of its "
            f"energy in {settings['null_directions']} directions, so that the null "
            f"space's threshold of {share(settings['null_energy'], 0)} says little; "
            "lower null_directions."
        )
    for row in numbers["rankings"]:
        sentences.append(
            f"Of the best {row['ranked']} by {method_name(row['ranking'])}, "
            f"{_count(row['dense'])} dense (at random {row['expected']:.1f})."
        )
    return sentences + _effects(numbers["effects"])


def _count(number: int) -> str:
    return "1 is" if number == 1 else f"{number} are"


def _effects(rows: Sequence[Row]) -> list[str]:
    """Returns the result of every method of which dense latents were steered, with them
    and without; in one sentence those of which none was.
    """
    sentences, without_any = [], []
    for row in rows:
        who = f"{method_name(row['method'])}, {_DIRECTIONS[row['direction']]}"
        if row["method"] == RANDOM:
            continue
        if not row["dense"]:
            without_any.append(who)
            continue
        sentences.append(
            f"{who}: {signed(100 * row['mean'])} points, {row['outside']} of "
            f"{row['latents']} outside the random band; without its dense ones "
            f"({row['dense']}) {signed(100 * row['mean_without'])} points, "
            f"{row['outside_without']} of {row['latents_without']}."
        )
    if without_any:
        sentences.append(f"No steered latent is dense: {'; '.join(without_any)}.")
    return sentences


def retraining_table(rows: Sequence[Row]) -> str:
    """Returns a line per training of the test on planted data."""
    columns = {
        "SAE trained on": [_DATA[row["data"]] for row in rows],
        "dense": [row["dense"] for row in rows],
        "with an antipode": [row["pairs"] for row in rows],
        "largest s": [row["antipodality"] for row in rows],
        "cosine with the planted": [row["cosine"] for row in rows],
    }
    formats = {"largest s": ".3f", "cosine with the planted": ".3f"}
    return text_table(columns, formats)
