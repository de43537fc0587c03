"""A study of directions as text: what projecting them out does, how alike they are, and
what each adapter reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.numbers import UNKNOWN, is_known, share, signed, span
from sae_attr.report.safe_text import one_line
from sae_attr.report.tables import text_table

Row = Mapping[str, Any]
Rows = Sequence[Row]

KIND_NAMES: Mapping[str, str] = {
    "": "nothing",
    "mean_difference": "mean difference",
    "model_difference": "what the fine-tune added",
    "gradient": "contrastive gradient",
    "best_of_moment": "moment's best",
    "random": "random",
}
_ADAPTED = ("topic", "inside", "elsewhere")
_MOST_LAYERS = 8  # that a line of a table shows, spread evenly


def directions_text(numbers: Mapping[str, Rows]) -> str:
    """Returns the tables of `direction_results.direction_numbers`."""
    parts = [
        "answers of each fine-tune",
        answers_table(numbers["answers"]),
        "a direction projected out at every layer: the fine-tune's own, or that of "
        "another (of random\ndirections the mean of the draws, and their range)",
        transfer_table(numbers["transfer"]),
        "cosine of two fine-tunes' directions, layer by layer (95 % of random ones stay "
        f"below {_random(numbers['between'])} in size)",
        between_table(numbers["between"]),
        "cosines of directions of one fine-tune, layer by layer (a direction with "
        "itself: from two halves of\nthe prompts)",
        cosine_table(numbers["cosines"]),
        "share of a direction's square in the span of what the adapters up to a layer "
        "write",
        span_table(numbers["spans"]),
        "latents of the highest Δ: largest cosine in size with each direction at the "
        "SAE's layer, and the\nshare of all latents that are as near",
        latent_table(numbers["latents"]),
    ]
    if numbers["adapters"]:
        parts += [
            "adapters: AUC of what each reads, and the rate without it or with it alone, in "
            "the taught domain\nand elsewhere",
            adapter_table(numbers["adapters"]),
        ]
    return "\n\n".join(parts) + "\n"


def kind_name(name: str) -> str:
    """Names a kind of direction in tables."""
    return one_line(KIND_NAMES.get(name, name), 40)


def _random(rows: Rows) -> str:
    return f"{rows[0]['random']:.2f}" if rows else UNKNOWN


def answers_table(rows: Rows) -> str:
    """Returns a line per fine-tune: its answers, and those with the behaviour."""
    columns: dict[str, list[Any]] = {
        "seed": [row["seed"] for row in rows],
        "fine-tune": [row["tune"] for row in rows],
        "asked": [row["asked"] for row in rows],
        "graded": [row["graded"] for row in rows],
        "with the behaviour": [share(row["shown"] / row["graded"], 0) for row in rows],
        "prompts with both": [row["paired"] for row in rows],
    }
    return text_table(columns)


def transfer_table(rows: Rows) -> str:
    """Returns a line per fine-tune and direction that is projected out."""
    columns: dict[str, list[Any]] = {
        "seed": [row["seed"] for row in rows],
        "fine-tune": [row["tune"] for row in rows],
        "projected out": [kind_name(row["removed"]) for row in rows],
        "of": [_of(row) for row in rows],
        "rate": [_percent(row, "rate") for row in rows],
        "change": [_points(row) for row in rows],
        "of the rate left": [share(row["left"], 0) for row in rows],
        "coherent": [share(row["coherence"], 0) for row in rows],
    }
    return text_table(columns, right=tuple(columns)[4:])


def _of(row: Row) -> str:
    if row["relation"] == "own":
        return "its own"
    if row["relation"] == "random":
        low, high = share(row["lowest"], 0), share(row["highest"], 0)
        return f"{row['draws']} draws, {low} to {high}"
    return row["of"]


def _percent(row: Row, name: str) -> str:
    ends = f"{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}"
    return f"{share(row[name])} [{ends}]"


def _points(row: Row) -> str:
    if not row["removed"]:
        return ""
    return (
        f"{signed(100 * row['change'])} {span(row['change_low'], row['change_high'])}"
    )


def between_table(rows: Rows) -> str:
    """Returns a line per pair of fine-tunes and kind, a column per layer."""
    heads = ("seed", "first", "second", "kind")
    return _by_layer(rows, heads, _with_ends)


def cosine_table(rows: Rows) -> str:
    """Returns a line per fine-tune and pair of directions, a column per layer."""
    heads = ("seed", "tune", "first", "second")
    return _by_layer(rows, heads, lambda row: signed(row["cosine"], 2))


def span_table(rows: Rows) -> str:
    """Returns a line per fine-tune and kind, a column per layer."""

    def cell(row: Row) -> str:
        return f"{share(row['share'], 0)} (random {share(row['random'], 0)})"

    return _by_layer(rows, ("seed", "tune", "kind"), cell)


def _with_ends(row: Row) -> str:
    text = signed(row["cosine"], 2)
    if not is_known(row["cosine_low"]):
        return text
    return f"{text} {span(row['cosine_low'], row['cosine_high'], 2, 1.0)}"


def _by_layer(rows: Rows, heads: tuple[str, ...], cell: Any) -> str:
    """Returns a line per value of `heads`, with a cell of every layer."""
    lines: dict[tuple[Any, ...], dict[int, str]] = {}
    for row in rows:
        lines.setdefault(tuple(row[head] for head in heads), {})[row["layer"]] = cell(
            row
        )
    layers = _shown_layers({row["layer"] for row in rows})
    columns: dict[str, list[Any]] = {}
    for place, head in enumerate(heads):
        values = [line[place] for line in lines]
        if head != "seed":
            values = [kind_name(str(value)) for value in values]
        columns[head] = values
    for layer in layers:
        columns[f"layer {layer}"] = [cells.get(layer, "") for cells in lines.values()]
    return text_table(columns, right=tuple(columns)[len(heads) :])


def _shown_layers(layers: set[int]) -> list[int]:
    """Returns the layers that tables show: all of a shallow model, else some, the first
    and the last among them.
    """
    ordered = sorted(layers)
    if len(ordered) <= _MOST_LAYERS:
        return ordered
    last = len(ordered) - 1
    places = [round(i * last / (_MOST_LAYERS - 1)) for i in range(_MOST_LAYERS)]
    return [ordered[place] for place in places]


def latent_table(rows: Rows) -> str:
    """Returns a line per fine-tune and direction: the nearest of the first latents."""
    nearest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = row["seed"], row["tune"], row["direction"]
        best = nearest.get(key)
        if best is None or abs(row["cosine"]) > abs(best["cosine"]):
            nearest[key] = row
    columns: dict[str, list[Any]] = {
        "seed": [key[0] for key in nearest],
        "fine-tune": [key[1] for key in nearest],
        "direction": [kind_name(key[2]) for key in nearest],
        "latent": [row["latent"] for row in nearest.values()],
        "rank by Δ": [row["rank"] for row in nearest.values()],
        "cosine": [signed(row["cosine"], 2) for row in nearest.values()],
        "as near": [share(row["share"]) for row in nearest.values()],
    }
    return text_table(columns, right=("cosine", "as near"))


def adapter_table(rows: Rows) -> str:
    """Returns a line per fine-tune and adapter."""
    columns: dict[str, list[Any]] = {
        "seed": [row["seed"] for row in rows],
        "fine-tune": [row["tune"] for row in rows],
        "adapter": [f"{row['matrix']}, layer {row['layer']}" for row in rows],
    }
    titles = {"topic": "its topic", "inside": "behaviour", "elsewhere": "elsewhere"}
    for name in _ADAPTED:
        columns[f"AUC: {titles[name]}"] = [_auc(row, f"auc_{name}") for row in rows]
    for condition in ("without", "alone"):
        for where in ("inside", "elsewhere"):
            key = f"{condition}_{where}"
            title = f"{condition}: {'taught' if where == 'inside' else where}"
            columns[title] = [share(row.get(key), 0) for row in rows]
    return text_table(columns, right=tuple(columns)[3:])


def _auc(row: Row, name: str) -> str:
    if not is_known(row[name]):
        return UNKNOWN
    ends = f"[{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    return f"{row[name]:.2f} {ends}"
