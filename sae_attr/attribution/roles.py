"""Δ by the role of the tokens that it comes from, and what the ranking is where only
tokens of some roles count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from sae_attr.attribution.all_scores import evaluated
from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.presets import Preset
from sae_attr.attribution.prompt_merge import prompt_scores
from sae_attr.attribution.score_registry import (
    SCORES,
    Candidates,
    Derived,
    ScoreValue,
    key_of,
)
from sae_attr.attribution.token_table import TokenTable
from sae_attr.text.rows import PAD, ROLES, TokenRow, scope_mask

# Codes of the roles that a token may have that counts.
COUNTED_ROLES = tuple(role for role in range(len(ROLES)) if role != PAD)


def role_parts(evidence: Evidence, preset: Preset, few: Candidates) -> np.ndarray:
    """Returns the part of each latent's Δ that comes from tokens of each role,
    `[roles, k]` in nats per token; a latent's parts add up to its Δ.
    """
    scores_prk = prompt_scores(
        evidence.merged(preset.tokens),
        few.dec_kd,
        evidence.mean_d,
        gating=preset.gating,
        by_role=True,
    )
    parts_rk = scores_prk.mean(0)
    if preset.gating == "gated":
        push_n = np.asarray(few.scores[key_of("gradient", preset.tokens)])
        parts_rk = parts_rk * (push_n[few.latents] > 0)
    return parts_rk


def role_shares(parts_rk: np.ndarray) -> np.ndarray:
    """Returns parts as shares of their sizes' sum, signed, `[roles, k]`; NaN for a
    latent without any.

    Not of Δ: parts of both signs may cancel, and a share of Δ could be anything.
    """
    size_k = np.abs(parts_rk).sum(0)
    out = np.full(np.shape(parts_rk), np.nan)
    np.divide(parts_rk, size_k, out=out, where=size_k > 0)
    return out


def scores_of_roles(
    evidence: Evidence, preset: Preset, roles: Collection[int]
) -> np.ndarray | Skipped:
    """Returns a preset's score of every latent `[n]` where only tokens of some roles
    count, or why it is left out.

    Args:
      roles: codes of `ROLES`.
    """
    few = _without_tokens(evidence, preset.tokens, roles)
    if few:
        names = ", ".join(ROLES[role] for role in roles)
        return Skipped(
            f"{few} of {len(evidence.table.rows)} rows have no {names} token"
        )
    narrowed = _only(evidence, roles)
    name = preset.gating
    key = key_of(name, preset.tokens)
    computed: dict[str, ScoreValue] = {}
    computed[key] = SCORES[name].compute(narrowed, preset.tokens)
    if isinstance(computed[key], Derived):
        # A gated score is made of these two.
        for part in ("both", "gradient"):
            value = SCORES[part].compute(narrowed, preset.tokens)
            computed[key_of(part, preset.tokens)] = value
    value = computed[key]
    if isinstance(value, Skipped):
        return value
    return (
        value if isinstance(value, np.ndarray) else evaluated(narrowed, computed)[key]
    )


def _without_tokens(evidence: Evidence, scope: str, roles: Collection[int]) -> int:
    """Returns how many rows have no token of these roles that counts."""
    count = 0
    for row in evidence.table.rows:
        counted = scope_mask(row, scope, exclude=evidence.exclude)
        count += not (counted & np.isin(row.roles, list(roles))).any()
    return count


def _only(evidence: Evidence, roles: Collection[int]) -> Evidence:
    """Returns evidence in which tokens of other roles are masked."""
    table = evidence.table
    rows = [_masked(row, roles) for row in table.rows]
    narrowed: TokenTable = replace(table, rows=rows)
    # Sums over tokens of all roles are kept with the evidence: not for this one.
    return replace(evidence, table=narrowed, _merged={}, _moments={})


def _masked(row: TokenRow, roles: Collection[int]) -> TokenRow:
    masked = ~np.isin(row.roles, list(roles))
    if row.masked is not None:
        masked |= row.masked
    return replace(row, masked=masked)
