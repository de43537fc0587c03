"""The schema of latents.csv, shared by all experiments: names, order, meaning,
and how a value is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.attribution.score_registry import SCORES
from sae_attr.text.rows import ROLES

# Name -> meaning, in the order of the file; those of `SCORES` stand between the two. Δ
# and its parts are nats per token, means over prompts.
_BEFORE: Mapping[str, str] = {
    "rank": "place in the ranking, 1 is best",
    "site": "where the latent's SAE reads; of a ranking over several SAEs",
    "latent": "number in the SAE, NAME:NUMBER of a further dictionary, or error: what the SAE does not reconstruct",
    "methods": "methods among whose best it is, or random; of a case study",
    "delta": "Δ as the ranking has it",
    "se": "standard error of Δ over prompts",
    "low": "lower end of Δ's bootstrap interval",
    "high": "upper end of Δ's bootstrap interval",
    "consistency": "share of prompts with Δ's sign",
}
_AFTER: Mapping[str, str] = {
    "firing_rate": "share of ordinary tokens on which the latent's activation is not zero",
    "dense": "true: the latent fires on a larger share of ordinary tokens than the settings call sparse",
    "density_class": "what a dense latent stands for; of experiments.dense_latents, as the columns up to word_auc",
    "antipode": "the latent that is most like it in what it reads and writes",
    "antipodality": "the largest product of encoder and decoder cosines with another latent",
    "antipode_cosine": "of the two decoder rows; −1: an antipode, 1: a duplicate",
    "position_from": "start of sentence, paragraph or context that its activation goes with",
    "position_rho": "Spearman's rho of its activation with the tokens since then",
    "null_energy": "share of its decoder row's square in the last singular directions of the unembedding",
    "entropy_effect": "first-order change of the next token's entropy, added before the final norm, nats per mean norm",
    "entropy_effect_held": "the same with the scale of the final norm held",
    "letter": "first letter of most of its nearest tokens",
    "letter_share": "share of them that begin with it",
    "component_cosine": "cosine with the first principal component of the site",
    "word_class": "class of words that its activation tells best",
    "word_auc": "area under the curve of that",
    "fires_on_pairs": "share of the pairs' prompts in which it fires on a token of the scope",
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
    "ablated": "change of the behaviour's exact rate when the latent alone is set to its mean; of a case study",
    "ablated_q": "false discovery rate of no change at all",
    "screen_away": "change of log p(C) − log p(C′) on held-out pairs when steering against it, nats; of a screen",
    "screen_toward": "change of log p(C) − log p(C′) on held-out pairs when steering along it, nats; of a screen",
    "delta_norm": "½ ((|d_ft| − |d_base|) / max + 1) of its decoder rows; of a crosscoder beside the SAE",
    "mean_code": "mean latent activation on the pairs' tokens; of a dictionary beside the SAE that ranks by it",
    "main_role": "role of the tokens that the largest part of Δ comes from",
    "main_share": "that part's share of the sizes of all parts; below 0 it speaks against the latent",
    "cause_z": "cause: Δ of the studied method in standard deviations over the dictionary",
    "lever_z": "lever: −Δg·d in standard deviations over the dictionary",
    "corner": "its corner of the plane of cause and lever",
    "outside": "true: outside the random band on the side that matters, in either direction",
    "tokens": "tokens whose unembedding vectors are nearest to it, quoted",
    "token_cosine": "cosine of the nearest of them",
    "raised": "tokens whose logits it raises most, added before the final norm, quoted; of a study's first latents",
    "lowered": "tokens whose logits it lowers most, quoted",
}
_TOKENS = ("tokens", "raised", "lowered")


def schema() -> dict[str, str]:
    """Returns name -> meaning of all columns of latents.csv, in order; a file has those
    that were computed, and no others.
    """
    return {
        **_BEFORE,
        **{name: score.meaning for name, score in SCORES.items()},
        **_AFTER,
    }


def written(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> dict[str, list[Any]]:
    """Returns columns of latents as latents.csv has them: in the schema's order, lists
    as text, what is not known as nan.

    Raises:
      ValueError: a column that the schema does not have.
    """
    names = list(schema())
    ordered = sorted(
        columns, key=lambda name: _place(name, names)
    )  # stable: other rankings keep their order
    return {name: [_value(name, value) for value in columns[name]] for name in ordered}


def quoted(tokens: Iterable[str]) -> str:
    """Returns tokens in quotes with spaces between them, as the column `tokens` has
    them.
    """
    return " ".join(map(repr, tokens))


def _place(name: str, names: Sequence[str]) -> int:
    column = "rank_*" if name.startswith("rank_") else name
    if column not in names:
        raise ValueError(
            f"latents.csv has no column {name!r}; add it to attribution.columns, or a "
            "score to SCORES"
        )
    return names.index(column)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return quoted(value) if name in _TOKENS else " ".join(map(str, value))
    return float("nan") if value is None else value
