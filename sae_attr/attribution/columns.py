"""The one schema of latents.csv, whichever experiment writes it: names, order, meaning, and how a value is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.data import ROLES

# Name -> meaning, in the order of the file. A file has those columns that were computed, and no others. Δ and its parts are
# nats per token, means over prompts.
COLUMNS: Mapping[str, str] = {
    "rank": "place in the ranking, 1 is best",
    "site": "where the latent's SAE reads; of a ranking over several SAEs",
    "latent": "number in the SAE; error: what the SAE does not reconstruct, as an entry of its own",
    "methods": "methods among whose best it is, or random; of a case study",
    "delta": "Δ as the ranking has it",
    "se": "standard error of Δ over prompts",
    "low": "lower end of Δ's bootstrap interval",
    "high": "upper end of Δ's bootstrap interval",
    "consistency": "share of prompts with Δ's sign",
    "both": "Δ, all tokens",
    "active": "Δ, tokens on which the latent is above its mean",
    "quadrant": "Δ, tokens on which it is above its mean and pushes toward the behaviour",
    "gated": "Δ, latents that push toward the behaviour; 0 for the others",
    "projection": "mean of (a − ā)·d over the scope's tokens",
    "gradient": "−Δg·d: above 0, more of the latent makes the behaviour likelier",
    "encoder": "Δ by the SAE's own activations instead of projections",
    "positive_only": "Δ of the positives alone",
    "delta_projection": "difference of the mean projections on positives and negatives",
    "delta_code": "difference of the mean latent activations on positives and negatives",
    "delta_activation": "difference of the mean latent activations of the two models",
    "firing_rate": "share of ordinary tokens on which the latent's activation is not zero",
    **{f"from_{role}": f"Δ of the {role} tokens" for role in ROLES if role != "pad"},
    "rank_*": "its place in another ranking",
    "duplicate_of": "the latent before it with nearly the same direction; −1: none",
    "exact": "exact mean ablation on the pairs, nats; of a few latents",
    "first_order": "what the first order says of the same ablation",
    "end_slope": "what the slope at the ablated end says of it",
    "push_start": "−Σ g·d of the ablated positions, before",
    "push_end": "−Σ g·d of the ablated positions, after",
    "taylor_fails": "true: the first order is off by more than half of the exact ablation",
    "taylor_fail_share": "share of completions of which that is true",
    "away": "change of the behaviour's rate when steering against it; of a case study",
    "away_strength": "strength of that, in mean norms; 0: none was coherent enough",
    "away_q": "false discovery rate of no change at all",
    "toward": "change of the behaviour's rate when steering along it; of a case study",
    "toward_strength": "strength of that, in mean norms; 0: none was coherent enough",
    "toward_q": "false discovery rate of no change at all",
    "outside": "true: outside the random band on the side that matters, in either direction",
    "tokens": "tokens whose unembedding vectors are nearest to it, quoted",
    "token_cosine": "cosine of the nearest of them",
}


def written(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> dict[str, list[Any]]:
    """Returns columns of latents as latents.csv has them: in the schema's order, lists as text, what is not known as nan.

    Raises:
      ValueError: a column that the schema does not have.
    """
    ordered = sorted(columns, key=_place)  # stable: places in other rankings keep their order
    return {name: [_value(name, value) for value in columns[name]] for name in ordered}


def quoted(tokens: Iterable[str]) -> str:
    """Returns tokens in quotes with spaces between them, as the column `tokens` has them."""
    return " ".join(map(repr, tokens))


def _place(name: str) -> int:
    names = list(COLUMNS)
    schema = "rank_*" if name.startswith("rank_") else name
    if schema not in names:
        raise ValueError(f"latents.csv has no column {name!r}; add it to attribution.columns.COLUMNS")
    return names.index(schema)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return quoted(value) if name == "tokens" else " ".join(map(str, value))
    return float("nan") if value is None else value
