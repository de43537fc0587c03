"""Statistics shown next to each candidate's Δ: uncertainty, other scores, where it
comes from; and how stable the whole ranking is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sae_attr.attribution.encoder_scores import error_prompt_scores, fires_on_pairs
from sae_attr.attribution.evidence import Evidence
from sae_attr.attribution.presets import Preset, decoder_rows
from sae_attr.attribution.ranking import Ranking, agreement, overlap, rank
from sae_attr.attribution.roles import COUNTED_ROLES, role_parts
from sae_attr.attribution.score_registry import SCORES, Candidates, column_of, key_of
from sae_attr.attribution.statistics import (
    ClusterStatistics,
    cluster_statistics,
    duplicates,
    split_half_spearman,
)
from sae_attr.text.rows import ROLES

Columns = dict[str, np.ndarray]
"""Name of a column of latents.csv -> values, one per candidate, best first."""


@dataclass(frozen=True)
class Draws:
    """Random keys of what is drawn for candidates, and how often.

    Args:
      bootstrap: key of the resamples over prompts.
      splits: key of the halvings of the prompts.
      error: key of the resamples of the reconstruction error.
      resamples: of each bootstrap.
    """

    bootstrap: jax.Array
    splits: jax.Array
    error: jax.Array
    resamples: int


def candidate_columns(
    evidence: Evidence,
    ranking: Ranking,
    preset: Preset,
    scores: Mapping[str, np.ndarray],
    rates_n: np.ndarray,
    others: Mapping[str, Ranking],
    draws: Draws,
) -> tuple[Columns, dict[str, Any]]:
    """Computes the columns of a ranking's candidates, and numbers about the ranking as
    a whole.

    Args:
      scores: of every latent, by `key_of`.
      rates_n: firing rates, NaN where unknown.
      others: the rankings whose places and overlaps are stated.

    Raises:
      ValueError: the preset's score cannot be computed within prompts.
    """
    scope, latents = preset.tokens, ranking.latents_k
    dec_kd = decoder_rows(evidence.decoder, latents)
    few = Candidates(latents, dec_kd, scores)
    delta_pk = _within_prompts(evidence, preset, few)
    stats = cluster_statistics(delta_pk, draws.bootstrap, resamples=draws.resamples)
    columns: Columns = {
        "rank": np.arange(1, len(latents) + 1),
        "latent": latents,
        **statistics_columns(stats),
    }
    for name in SCORES:
        values_k = column_of(name, scope, evidence, few)
        if values_k is not None:
            columns[name] = values_k
    columns["firing_rate"] = rates_n[latents]
    knows_codes = evidence.codes.tokens > 0  # else the SAE need not be in memory
    if knows_codes:
        merged = evidence.merged(scope)
        columns["fires_on_pairs"] = fires_on_pairs(merged, evidence.sae, latents)
    parts_rk = role_parts(evidence, preset, few)
    columns |= {f"from_{ROLES[role]}": parts_rk[role] for role in COUNTED_ROLES}
    for name, other in others.items():
        if name != "random":
            columns[f"rank_{name}"] = other.rank_of(latents)
    copies = duplicates(np.asarray(dec_kd))
    columns["duplicate_of"] = np.where(copies >= 0, latents[copies], -1)
    rho, spread = split_half_spearman(delta_pk, draws.splits)
    about: dict[str, Any] = {
        "candidate_split_half_spearman": rho,
        "candidate_split_half_sd": spread,
        "prompts": len(delta_pk),
    }
    if knows_codes:
        about["never_firing"] = int((columns["fires_on_pairs"] == 0).sum())
    about["overlap"] = {n: overlap(ranking, other) for n, other in others.items()}
    return columns, about


def statistics_columns(stats: ClusterStatistics) -> Columns:
    """Returns the statistics over prompts by column."""
    return {
        "delta": stats.mean_k,
        "se": stats.se_k,
        "low": stats.low_k,
        "high": stats.high_k,
        "consistency": stats.consistency_k,
    }


def _within_prompts(evidence: Evidence, preset: Preset, few: Candidates) -> np.ndarray:
    per_prompt = SCORES[preset.gating].per_prompt
    if per_prompt is None:
        raise ValueError(
            f"score {preset.gating!r} is not known within prompts, so no preset can "
            "rank by it"
        )
    return per_prompt(evidence, preset.tokens, few)


def reconstruction_error(
    evidence: Evidence,
    preset: Preset,
    scores: Mapping[str, np.ndarray],
    draws: Draws,
) -> dict[str, Any]:
    """Computes the part of the first order that no latent carries, as an entry beside
    the latents' Δ′.

    `delta`: Δ_err = mean over pairs of mean_t −g_t·(e_t − mean e), e_t = a_t −
    SAE(a_t), with its statistics; `whole`: the same of a_t − ā, which Σ_i Δ′_i
    (`latents`) and Δ_err add up to; `rank`: its place among the latents by Δ′.
    """
    codes = evidence.codes
    if not codes.tokens:
        return {"skipped": "the error's mean is unknown: too few firing_tokens"}
    parts_p2 = error_prompt_scores(
        evidence.merged(preset.tokens),
        evidence.sae,
        codes.error_m,
        evidence.mean.mean_d,
    )
    stats = cluster_statistics(parts_p2, draws.error, resamples=draws.resamples)
    out = {name: float(x[0]) for name, x in statistics_columns(stats).items()}
    out["whole"] = float(stats.mean_k[1])
    encoder_n = scores.get(key_of("encoder", preset.tokens))
    if encoder_n is not None and np.isfinite(encoder_n).all():
        encoder_n = np.asarray(encoder_n, np.float64)
        out["latents"] = float(encoder_n.sum())
        out["rank"] = int((encoder_n > out["delta"]).sum()) + 1
    return {**out, "scope": preset.tokens, "unit": "nats per token, mean over prompts"}


def stability(scores: Mapping[str, np.ndarray], top: int) -> dict[str, float]:
    """Measures how far two random halves of the prompts agree over the whole
    dictionary: overlap of the best, and Spearman.
    """
    if "both_half0" not in scores:
        return {"half_overlap": float("nan"), "half_spearman": float("nan")}
    a, b = (rank(name, scores[name], top) for name in ("both_half0", "both_half1"))
    return {
        "half_overlap": overlap(a, b),
        "half_spearman": agreement(a.scores_n, b.scores_n)["spearman"],
    }


def prompt_mean_overlap(
    scores: Mapping[str, np.ndarray], scope: str, top: int
) -> float:
    """Returns the share of the best that stays if a is measured from the prompts' own
    mean instead of ordinary text's.
    """
    corpus = rank("corpus", scores[key_of("both", scope)], top)
    return overlap(corpus, rank("prompts", scores["both_prompt_mean"], top))


def with_candidates(
    scores: Mapping[str, np.ndarray],
    preset: Preset,
    ranking: Ranking,
    columns: Columns,
) -> dict[str, np.ndarray]:
    """Returns the scores with what candidates (and the pool) know of those that the
    dense limit left out, NaN elsewhere.
    """
    n = len(ranking.scores_n)
    with_candidates = {}
    for name, score in SCORES.items():
        if score.per_prompt is not None:
            with_candidates[name] = (ranking.latents_k, columns[name])
    with_candidates[preset.gating] = (np.arange(n), ranking.scores_n)
    out = dict(scores)
    for name, (latents, values) in with_candidates.items():
        key = key_of(name, preset.tokens)
        if key in out and not np.isnan(out[key]).any():
            continue
        filled_n = np.array(out.get(key, np.full(n, np.nan, np.float32)))
        filled_n[latents] = np.where(np.isfinite(values), values, filled_n[latents])
        out[key] = filled_n
    return out
