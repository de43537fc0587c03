"""All scores of a latent in one table: rankings, latents.csv, scores.npz, truth tables
and the page iterate over it.

A new score is one more entry of `SCORES`: a function that gives it, and what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.attribution.encoder import encoder_prompt_scores
from sae_attr.attribution.merged import prompt_scores
from sae_attr.attribution.scores import quadratic_form
from sae_attr.attribution.table import table_moment
from sae_attr.sae.model import unit_decoder
from sae_attr.study.codes import code_rival
from sae_attr.study.evidence import Evidence
from sae_attr.study.skipped import Skipped


class Form(NamedTuple):
    """A score −dᵀ M d of unit decoder rows d; `matrix_dd` is symmetric."""

    matrix_dd: jax.Array


class Vector(NamedTuple):
    """A score v·d of unit decoder rows d."""

    vector_d: jax.Array


class Derived(NamedTuple):
    """A score made of other scores of every latent, by their keys."""

    of: Callable[[Mapping[str, np.ndarray]], np.ndarray]


Made = Form | Vector | Derived | np.ndarray | Skipped
"""What a score's function gives: forms and vectors are scored together in one pass over
the dictionary; an array `[n]` is the score itself.
"""


class Candidates(NamedTuple):
    """A few latents, their unit decoder rows `[k, d]`, and the scores of all latents
    that are there.
    """

    latents: np.ndarray
    dec_kd: jax.Array
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """One score of every latent; larger is better.

    Args:
      make: gives it of all latents, for one token scope.
      meaning: in a sentence, for tables and documentation.
      scope: `each`: one for every token scope that a preset uses; `primary`: of the
        primary preset's scope alone; `none`: it has no scope.
      per_prompt: gives it within each prompt for candidates, `[p, k]`; the mean over
        prompts is the score. With it a preset can rank by it beyond the dense limit,
        and candidates have it there.
      ranked: ranks beside Δ (`rank_NAME`, overlaps), and may be a method of a case
        setup.
      title: the header of its column on the page; None: its name.
      on_page: whether the page's table has it.
      version: raised when `make` gives other numbers than before.
    """

    make: Callable[[Evidence, str], Made]
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


def column_of(
    name: str, scope: str, evidence: Evidence, few: Candidates
) -> np.ndarray | None:
    """Returns a score of candidates `[k]`, or None where it is not known."""
    per_prompt, key = SCORES[name].per_prompt, key_of(name, scope)
    if per_prompt is not None:
        return per_prompt(evidence, scope, few).mean(0)
    return np.asarray(few.scores[key])[few.latents] if key in few.scores else None


def labelled(
    arrays: Mapping[str, np.ndarray], scope: str
) -> dict[tuple[str, str], np.ndarray]:
    """Returns (name, scope) -> score of every latent, for the scores that are there;
    the scope is "" where there is none.
    """
    return {
        (name, "" if score.scope == "none" else scope): arrays[key_of(name, scope)]
        for name, score in SCORES.items()
        if key_of(name, scope) in arrays
    }


def score_versions() -> dict[str, int]:
    """Returns the version of every score, as keys of stages hold them."""
    return {f"score.{name}": score.version for name, score in SCORES.items()}


# ---- the functions -------------------------------------------------------------------


def _both(evidence: Evidence, scope: str) -> Form:
    return Form(quadratic_form(evidence.moment(scope), evidence.mean_d))


def _gradient(evidence: Evidence, scope: str) -> Vector:
    return Vector(-evidence.moment(scope).g_d)


def _projection(evidence: Evidence, scope: str) -> Vector:
    weights_k = np.abs(evidence.weights(scope))
    return Vector(evidence.mean_acts(weights_k / weights_k.sum()) - evidence.mean_d)


def _gated(evidence: Evidence, scope: str) -> Derived:
    return Derived(
        lambda scores: np.where(
            scores[f"gradient_{scope}"] > 0, scores[f"both_{scope}"], 0
        )
    )


def _positive_only(evidence: Evidence, scope: str) -> Form:
    table = evidence.table
    side_k = np.repeat([row.side for row in table.rows], np.diff(table.start_r))
    moment = table_moment(table, np.where(side_k > 0, evidence.weights(scope), 0))
    return Form(quadratic_form(moment, evidence.mean_d))


def _delta_projection(evidence: Evidence, scope: str) -> Vector:
    return Vector(evidence.mean_acts(evidence.weights("completion")))


def _token_by_token(sides: str, evidence: Evidence, scope: str) -> np.ndarray | Skipped:
    """`active` or `quadrant`, which are no quadratic forms: in chunks of latents."""
    setup, merged = evidence.setup, evidence.merged(scope)
    if why := evidence.over_limit(len(merged.acts_jd)):
        return Skipped(why, by_limit=True)
    n = len(setup.decoder)
    out_n, chunk = np.empty(n, np.float32), min(n, 1024)
    for start in tqdm(
        range(0, n, chunk),
        desc=f"{sides}, {scope}",
        unit="chunk",
        disable=not setup.progress,
    ):
        rows_cd = setup.decoder.rows(start, min(start + chunk, n))
        dec_cd = unit_decoder(
            jnp.pad(jnp.asarray(rows_cd), ((0, chunk - len(rows_cd)), (0, 0)))
        )  # one compiled shape
        scores_pc = prompt_scores(merged, dec_cd, evidence.mean_d, sides=sides)
        out_n[start : start + len(rows_cd)] = scores_pc.mean(0)[: len(rows_cd)]
    return out_n


def _encoder(evidence: Evidence, scope: str) -> np.ndarray | Skipped:
    setup, merged = evidence.setup, evidence.merged(scope)
    if not evidence.codes.tokens:
        return Skipped(
            setup.sae_cfg.no_token_codes
            or "the codes' means are unknown: too few firing_tokens"
        )
    if why := evidence.over_limit(len(merged.acts_jd)):
        return Skipped(why, by_limit=True)
    return (
        encoder_prompt_scores(merged, setup.sae, evidence.codes.mean_n)
        .mean(0)
        .astype(np.float32)
    )


def _code_rival(name: str, evidence: Evidence, scope: str) -> np.ndarray | Skipped:
    return code_rival(evidence.setup, evidence.table, name)


def _sides_per_prompt(
    sides: str, evidence: Evidence, scope: str, few: Candidates
) -> np.ndarray:
    return prompt_scores(
        evidence.merged(scope), few.dec_kd, evidence.mean_d, sides=sides
    )


def _gated_per_prompt(evidence: Evidence, scope: str, few: Candidates) -> np.ndarray:
    gate_k = np.asarray(few.scores[f"gradient_{scope}"])[few.latents] > 0
    return _sides_per_prompt("both", evidence, scope, few) * gate_k


def _encoder_per_prompt(evidence: Evidence, scope: str, few: Candidates) -> np.ndarray:
    """NaN where the codes' means are unknown."""
    merged = evidence.merged(scope)
    if not evidence.codes.tokens:
        return np.full((merged.prompts, len(few.latents)), np.nan)
    return encoder_prompt_scores(
        merged, evidence.setup.sae, evidence.codes.mean_n, few.latents
    )


# ---- the table -----------------------------------------------------------------------

_HIDDEN: dict[str, Any] = {"on_page": False}
_RIVAL: dict[str, Any] = {"ranked": True, "on_page": False}

SCORES: dict[str, Score] = {
    "both": Score(
        _both, "Δ, all tokens", per_prompt=partial(_sides_per_prompt, "both"), **_HIDDEN
    ),
    "active": Score(
        partial(_token_by_token, "active"),
        "Δ, tokens on which the latent's projection is above its mean over ordinary "
        "text",
        per_prompt=partial(_sides_per_prompt, "active"),
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
        per_prompt=partial(_sides_per_prompt, "quadrant"),
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
        _positive_only, "Δ of the positives alone", scope="primary", **_RIVAL
    ),
    "delta_projection": Score(
        _delta_projection,
        "difference of the mean projections on positives and negatives",
        scope="none",
        **_RIVAL,
    ),
    "delta_code": Score(
        partial(_code_rival, "delta_code"),
        "difference of the mean latent activations on positives and negatives",
        scope="none",
        **_RIVAL,
    ),
    "delta_activation": Score(
        partial(_code_rival, "delta_activation"),
        "difference of the mean latent activations of the two models",
        scope="none",
        **_RIVAL,
    ),
}
