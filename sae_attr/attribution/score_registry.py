"""Every score of a latent in one table: rankings, latents.csv, scores.npz, ground-truth
tables and the page iterate over it.

A new score is one function and one entry of `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.attribution.activation_differences import all_latents
from sae_attr.attribution.encoder_scores import encoder_prompt_scores
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.prompt_merge import prompt_scores
from sae_attr.attribution.scores import quadratic_form
from sae_attr.attribution.token_table import table_moment
from sae_attr.sae.model import unit_decoder


class Form(NamedTuple):
    """A score −dᵀ M d of unit decoder rows d; `matrix_dd` is symmetric."""

    matrix_dd: jax.Array


class Vector(NamedTuple):
    """A score v·d of unit decoder rows d."""

    vector_d: jax.Array


class Derived(NamedTuple):
    """A score computed from other scores of every latent, by their keys."""

    of: Callable[[Mapping[str, np.ndarray]], np.ndarray]


ScoreValue = Form | Vector | Derived | np.ndarray | Skipped
"""What a score's function returns. Forms and vectors are scored together in one pass
over the dictionary; an array `[n]` is the score itself.
"""


class Candidates(NamedTuple):
    """A few latents, their unit decoder rows `[k, d]`, and the scores of every latent
    that exist.
    """

    latents: np.ndarray
    dec_kd: jax.Array
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """One score of every latent; larger is better.

    Args:
      compute: of every latent, for one token scope.
      meaning: in a sentence, for tables and documentation.
      scope: `each`: one for every token scope that a preset uses; `primary`: of the
        primary preset's scope alone; `none`: it has no scope.
      per_prompt: the same within each prompt for candidates, `[p, k]`; the mean over
        prompts is the score. With it a preset can rank beyond the dense limit, and
        candidates have the score there.
      ranked: ranks beside Δ (`rank_NAME`, overlaps), and may be a method of a case
        setup.
      title: the header of its column on the page; None: its name.
      on_page: whether the page's table has it.
      version: raised when `compute` gives other numbers than before.
    """

    compute: Callable[[Evidence, str], ScoreValue]
    meaning: str
    scope: Literal["each", "primary", "none"] = "each"
    per_prompt: Callable[[Evidence, str, Candidates], np.ndarray] | None = None
    ranked: bool = False
    title: str | None = None
    on_page: bool = True
    version: int = 1


def key_of(name: str, scope: str) -> str:
    """Returns the name of a score's array in scores.npz."""
    return f"{name}_{scope}" if SCORES[name].scope == "each" else name


def method_keys(scopes: Sequence[str]) -> tuple[str, ...]:
    """Returns the names by which scores rank beside Δ as methods of a study: a score's
    own, over the primary preset's tokens, then with each scope that it may have.
    """
    names = []
    for name, score in SCORES.items():
        if not score.ranked:
            continue
        names.append(name)
        if score.scope == "each":
            names += [key_of(name, scope) for scope in scopes]
    return tuple(names)


def column_of(
    name: str, scope: str, evidence: Evidence, few: Candidates
) -> np.ndarray | None:
    """Returns a score of candidates `[k]`, or None where it is unknown."""
    per_prompt = SCORES[name].per_prompt
    if per_prompt is not None:
        return per_prompt(evidence, scope, few).mean(0)
    key = key_of(name, scope)
    if key not in few.scores:
        return None
    return np.asarray(few.scores[key])[few.latents]


def labelled(
    arrays: Mapping[str, np.ndarray], scope: str
) -> dict[tuple[str, str], np.ndarray]:
    """Returns (name, scope) -> score of every latent; the scope is "" of a score that
    has none.
    """
    out = {}
    for name, score in SCORES.items():
        key = key_of(name, scope)
        if key in arrays:
            out[name, "" if score.scope == "none" else scope] = arrays[key]
    return out


def score_versions() -> dict[str, int]:
    """Returns the version of every score, for the keys of stages."""
    return {name: score.version for name, score in SCORES.items()}


# ---- the functions -------------------------------------------------------------------


def _both(evidence: Evidence, scope: str) -> Form:
    return Form(quadratic_form(evidence.moment(scope), evidence.mean_d))


def _gradient(evidence: Evidence, scope: str) -> Vector:
    return Vector(-evidence.moment(scope).g_d)


def _projection(evidence: Evidence, scope: str) -> Vector:
    return Vector(evidence.mean_acts(evidence.mean_weights(scope)) - evidence.mean_d)


def _gated(evidence: Evidence, scope: str) -> Derived:
    def gate(scores: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.where(scores[f"gradient_{scope}"] > 0, scores[f"both_{scope}"], 0)

    return Derived(gate)


def _positive_only(evidence: Evidence, scope: str) -> Form:
    table = evidence.table
    side_k = np.repeat([row.side for row in table.rows], np.diff(table.start_r))
    moment = table_moment(table, np.where(side_k > 0, evidence.weights(scope), 0))
    return Form(quadratic_form(moment, evidence.mean_d))


def _delta_projection(evidence: Evidence, scope: str) -> Vector:
    return Vector(evidence.mean_acts(evidence.weights("completion")))


def _token_by_token(
    gating: str, evidence: Evidence, scope: str
) -> np.ndarray | Skipped:
    """Scores `active` or `quadrant`, which are no quadratic forms, a chunk of latents
    at a time.
    """
    merged = evidence.merged(scope)
    if why := evidence.over_limit(len(merged.acts_jd)):
        return Skipped(why, by_limit=True)
    n = len(evidence.decoder)
    chunk = min(n, 1024)
    out_n = np.empty(n, np.float32)
    for start in tqdm(
        range(0, n, chunk),
        desc=f"{gating}, {scope}",
        unit="chunk",
        disable=not evidence.progress,
    ):
        rows_cd = evidence.decoder.rows(start, min(start + chunk, n))
        count = len(rows_cd)
        # The last chunk is padded: one compiled shape.
        rows_cd = np.pad(rows_cd, ((0, chunk - count), (0, 0)))
        dec_cd = unit_decoder(rows_cd)
        scores_pc = prompt_scores(merged, dec_cd, evidence.mean_d, gating=gating)
        out_n[start : start + count] = scores_pc.mean(0)[:count]
    return out_n


def _encoder(evidence: Evidence, scope: str) -> np.ndarray | Skipped:
    if not evidence.codes.tokens:
        unknown = "the codes' means are unknown: too few firing_tokens"
        return Skipped(evidence.sae_cfg.no_token_codes or unknown)
    merged = evidence.merged(scope)
    if why := evidence.over_limit(len(merged.acts_jd)):
        return Skipped(why, by_limit=True)
    scores_pn = encoder_prompt_scores(merged, evidence.sae, evidence.codes.mean_n)
    return scores_pn.mean(0).astype(np.float32)


def _difference(name: str, evidence: Evidence, scope: str) -> np.ndarray | Skipped:
    return all_latents(evidence, name)


def _gating_per_prompt(
    gating: str, evidence: Evidence, scope: str, few: Candidates
) -> np.ndarray:
    return prompt_scores(
        evidence.merged(scope), few.dec_kd, evidence.mean_d, gating=gating
    )


def _gated_per_prompt(evidence: Evidence, scope: str, few: Candidates) -> np.ndarray:
    gate_k = np.asarray(few.scores[f"gradient_{scope}"])[few.latents] > 0
    return _gating_per_prompt("both", evidence, scope, few) * gate_k


def _encoder_per_prompt(evidence: Evidence, scope: str, few: Candidates) -> np.ndarray:
    """NaN where the codes' means are unknown."""
    merged = evidence.merged(scope)
    if not evidence.codes.tokens:
        return np.full((merged.prompts, len(few.latents)), np.nan)
    return encoder_prompt_scores(
        merged, evidence.sae, evidence.codes.mean_n, few.latents
    )


# ---- the table -----------------------------------------------------------------------

_HIDDEN: dict[str, Any] = {"on_page": False}
_BASELINE: dict[str, Any] = {"ranked": True, "on_page": False}

SCORES: dict[str, Score] = {
    "both": Score(
        _both,
        "Δ, all tokens",
        per_prompt=partial(_gating_per_prompt, "both"),
        **_HIDDEN,
    ),
    "active": Score(
        partial(_token_by_token, "active"),
        "Δ, tokens on which the latent's projection is above its mean over ordinary "
        "text",
        per_prompt=partial(_gating_per_prompt, "active"),
        **_HIDDEN,
    ),
    "gated": Score(
        _gated,
        "Δ, latents that push toward the behaviour; 0 for the others",
        per_prompt=_gated_per_prompt,
        **_HIDDEN,
    ),
    "quadrant": Score(
        partial(_token_by_token, "quadrant"),
        "Δ, tokens on which its projection is above its mean and it pushes toward the "
        "behaviour",
        per_prompt=partial(_gating_per_prompt, "quadrant"),
        **_HIDDEN,
    ),
    "encoder": Score(
        _encoder,
        "Δ by the SAE's own activations instead of projections",
        per_prompt=_encoder_per_prompt,
        **_HIDDEN,
    ),
    "projection": Score(
        _projection, "mean of (a − ā)·d over the scope's tokens", title="(a−ā)·d"
    ),
    "gradient": Score(
        _gradient,
        "−Δg·d: above 0, more of the latent makes the behaviour likelier",
        title="−Δg·d",
        ranked=True,
    ),
    "positive_only": Score(
        _positive_only, "Δ of the positives alone", scope="primary", **_BASELINE
    ),
    "delta_projection": Score(
        _delta_projection,
        "difference of the mean projections on positives and negatives",
        scope="none",
        **_BASELINE,
    ),
    "delta_code": Score(
        partial(_difference, "delta_code"),
        "difference of the mean latent activations on positives and negatives",
        scope="none",
        **_BASELINE,
    ),
    "delta_activation": Score(
        partial(_difference, "delta_activation"),
        "difference of the mean latent activations of the two models",
        scope="none",
        **_BASELINE,
    ),
}
