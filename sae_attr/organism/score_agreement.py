"""How far scores of latents agree with their ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.organism.ground_truth import GroundTruth


def agreement(
    scores_n: np.ndarray, effect_n: np.ndarray, top: int = 20
) -> dict[str, float]:
    """Compares a score of every latent with its effect.

    Returns:
      `spearman`: rank correlation, NaN where either is constant; `recall`: share of the
      `top` latents of largest effect among the score's `top`; `effect`: mean effect of
      the score's `top`; `best_effect`: the same of the best possible score.
    """
    best_by_score = _best(scores_n, top)
    best_by_effect = _best(effect_n, top)
    spearman = np.nan
    if np.ptp(scores_n) > 0 and np.ptp(effect_n) > 0:
        spearman, _ = np.asarray(stats.spearmanr(scores_n, effect_n))
    return {
        "spearman": float(spearman),
        "recall": len(np.intersect1d(best_by_score, best_by_effect)) / top,
        "effect": float(effect_n[best_by_score].mean()),
        "best_effect": float(effect_n[best_by_effect].mean()),
    }


def agreement_rows(
    scores: Mapping[tuple[str, str], np.ndarray],
    ground_truths: Mapping[str, GroundTruth],
    top: int,
) -> list[dict[str, Any]]:
    """Returns a row for every score and ground truth: `score`, `scope`, `truth` (its
    name), and the numbers of `agreement`.

    Args:
      scores: (name, token scope or "") -> score of every latent.
      ground_truths: name -> effect of every latent.
    """
    rows = []
    for (score, scope), values in scores.items():
        scores_n = np.asarray(values, np.float64)
        for name, ground_truth in ground_truths.items():
            numbers = agreement(scores_n, ground_truth.effect_n, top)
            rows.append({"score": score, "scope": scope, "truth": name, **numbers})
    return rows


def _best(values_n: np.ndarray, top: int) -> np.ndarray:
    """Returns the indices of the largest values; ties go to the lower index."""
    return np.argsort(-values_n, kind="stable")[:top]
