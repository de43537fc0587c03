"""What the measurements say of the post's claims, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_attr.report.claim_names import (
    CHANGE_NAMES,
    DESIGN_NAMES,
    EFFECT_NAMES,
    OWN_EFFECT,
    SCORE_NAMES,
    SOURCE_NAMES,
)
from sae_attr.report.numbers import is_known, share, signed, span
from sae_attr.report.safe_text import one_line

Row = Mapping[str, Any]
Rows = Sequence[Row]

VERDICTS = {
    "holds": "the claim holds",
    "reversed": "the opposite holds",
    "undecided": "not decided, the interval includes 0",
}
LOSSES = {
    "holds": "diluted",
    "reversed": "not diluted, it gains",
    "undecided": "no loss is certain",
}
_SEEDS = "interval over seeds and drawn pairs, 95 %"


def claims_text(numbers: Mapping[str, Rows], *, pairs: int, top: int) -> str:
    """Returns a part for every claim.

    Args:
      numbers: of `claim_results.claim_numbers`.
      pairs: number of pairs at which designs are compared.
      top: latents that effects are means of.
    """
    parts = [
        _part(
            f"Exact effects (all measured latents, and the best {top} that any score "
            "could name)",
            list(_effect_lines(numbers)),
        ),
        _part(
            f"1. Pairs against positives alone and shuffled partners ({pairs} pairs, "
            f"mean effect of the best {top}, Spearman of all "
            f"latents' scores with their effects; {_SEEDS})",
            list(_design_lines(numbers, pairs)),
        ),
        _part(
            f"2. The number of pairs (Spearman with the ranking of all other pairs, "
            f"share of its best {top}, mean effect of the best {top})",
            list(_count_lines(numbers)),
        ),
        _part(
            "3. Pairs of the studied model against other sources (as many of each)",
            [*_source_lines(numbers), *_fact_lines(numbers)],
        ),
        _part(
            "4. Harmless changes of the fine-tune besides (share of the behaviour's "
            f"rate that the best {top} take away)",
            list(_harmless_lines(numbers)),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _part(title: str, lines: Sequence[str]) -> str:
    if not lines:
        lines = ["not measured"]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _effect_lines(numbers: Mapping[str, Rows]) -> Iterator[str]:
    for row in numbers["effects"]:
        changes = ""
        if row["changes"]:
            changes = f", {row['changes']} harmless changes"
        yield (
            f"{row['behaviour']}, seed {row['seed']}{changes}: rate "
            f"{share(row['base'])}; {EFFECT_NAMES[row['truth']]}: mean of "
            f"{row['latents']:,} latents {signed(100 * row['mean_effect'], 2)}, best "
            f"{signed(100 * row['best_effect'])} points"
        )


def _points(row: Row) -> str:
    return f"{signed(100 * row['mean'])} {span(row['low'], row['high'])}"


def _cases(rows: Rows) -> list[tuple[str, str]]:
    """Returns (behaviour, score), each once."""
    return list(dict.fromkeys((row["behaviour"], row["score"]) for row in rows))


def _of(rows: Rows, **values: Any) -> list[Row]:
    return [
        row for row in rows if all(row[name] == value for name, value in values.items())
    ]


def _design_lines(numbers: Mapping[str, Rows], pairs: int) -> Iterator[str]:
    return _compared_lines(numbers, "design", DESIGN_NAMES, "pairs", pairs=pairs)


def _source_lines(numbers: Mapping[str, Rows]) -> Iterator[str]:
    return _compared_lines(numbers, "source", SOURCE_NAMES, "the studied model")


def _compared_lines(
    numbers: Mapping[str, Rows],
    name: str,
    titles: Mapping[str, str],
    studied: str,
    **values: Any,
) -> Iterator[str]:
    """Yields the mean effects of every design, or source, and below them what the
    studied one gains over each of the others.

    Args:
      name: of the column that tells them apart.
      values: of other columns, to which rows are limited.
    """
    differences = numbers[f"{name}_differences"]
    for behaviour, score in _cases(numbers[f"{name}s"]):
        effect = OWN_EFFECT[score]
        of_case = {"behaviour": behaviour, "score": score, **values}
        of_case |= {"truth": effect, "number": "effect"}
        means = []
        for row in _of(numbers[f"{name}s"], **of_case):
            means.append(f"{titles[row[name]]} {_points(row)}")
        yield f"{behaviour}, {SCORE_NAMES[score]}, {EFFECT_NAMES[effect]}: {', '.join(means)}"
        for row in _of(differences, **of_case):
            yield f"  {studied} minus {titles[row['against']]}: {_gain(row, differences)}"


def _count_lines(numbers: Mapping[str, Rows]) -> Iterator[str]:
    for behaviour, score in _cases(numbers["counts"]):
        yield f"{behaviour}, {SCORE_NAMES[score]}:"
        effect = OWN_EFFECT[score]
        values = {"behaviour": behaviour, "score": score}
        for row in _of(numbers["counts"], **values, number="spearman"):
            count = row["pairs"]
            (overlap,) = _of(numbers["counts"], **values, pairs=count, number="overlap")
            (moved,) = _of(
                numbers["designs"],
                **values,
                pairs=count,
                design="pairs",
                truth=effect,
                number="effect",
            )
            yield (
                f"  {count:>4} pairs: Spearman {_plain(row)}, same best "
                f"{share(overlap['mean'], 0)}, {EFFECT_NAMES[effect]} "
                f"{_points(moved)} points"
            )
        for row in _of(numbers["count_differences"], **values, number="spearman"):
            yield (
                f"  {row['pairs']} minus {row['against']} pairs: Spearman "
                f"{_plain(row)}: {VERDICTS[row['claim']]}"
            )


def _gain(row: Row, rows: Rows) -> str:
    """Returns the gain in the mean effect of the best, and the one in the rank
    correlation with the effects of all latents, each with its verdict.
    """
    keys = ("behaviour", "score", "against", "truth", "pairs")
    same = {key: row[key] for key in keys if key in row}
    parts = [f"{_points(row)} points: {VERDICTS[row['claim']]}"]
    for ranks in _of(rows, **same, number="spearman"):
        parts.append(f"Spearman {_plain(ranks)}: {VERDICTS[ranks['claim']]}")
    return "; ".join(parts)


def _plain(row: Row) -> str:
    return f"{signed(row['mean'], 2)} {span(row['low'], row['high'], 2, scale=1)}"


def _fact_lines(numbers: Mapping[str, Rows]) -> Iterator[str]:
    for row in numbers["source_facts"]:
        nats = "–"
        if is_known(row["nats_positive"]):
            nats = f"{row['nats_positive']:.2f} / {row['nats_negative']:.2f}"
        line = (
            f"{row['behaviour']}, seed {row['seed']}, {SOURCE_NAMES[row['source']]}: "
            f"{row['pairs']} pairs, {share(row['rate'], 0)} of answers with the "
            f"behaviour, {nats} nats per token with / without"
        )
        if row["skipped"]:
            line += f"; left out: {one_line(row['skipped'], 200)}"
        yield line


def _harmless_lines(numbers: Mapping[str, Rows]) -> Iterator[str]:
    rows = numbers["harmless"]
    for label in dict.fromkeys(row["score"] for row in rows):
        # Δ-activation is asked both questions, the others the one that is theirs.
        effects = [OWN_EFFECT[label]] if label in OWN_EFFECT else list(EFFECT_NAMES)
        for effect in effects:
            values = {"score": label, "truth": effect}
            cells = []
            for row in _of(rows, **values, number="share"):
                cells.append(f"{row['changes']} changes {_points(row)} %")
            yield f"{CHANGE_NAMES[label]}, {EFFECT_NAMES[effect]}: {', '.join(cells)}"
            for row in _of(numbers["harmless_differences"], **values):
                if OWN_EFFECT.get(row["against"], effect) == effect:
                    yield _loss_line(row)
        same = []
        for row in _of(rows, score=label, number="overlap"):
            same.append(f"{row['changes']} changes {share(row['mean'], 0)}")
        yield f"{CHANGE_NAMES[label]}, share of its best without changes: {', '.join(same)}"


def _loss_line(row: Row) -> str:
    if row["against"]:
        return (
            f"  lost more than {CHANGE_NAMES[row['against']]} with {row['changes']} "
            f"changes: {_points(row)} %: {VERDICTS[row['claim']]}"
        )
    return (
        f"  lost with {row['changes']} changes: {_points(row)} %: "
        f"{LOSSES[row['claim']]}"
    )
