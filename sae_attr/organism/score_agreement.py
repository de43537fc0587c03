"""How far scores of latents agree with their ground truth, with draws of the prompts
that it was measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

NUMBERS = ("spearman", "recall", "effect")


@dataclass(frozen=True, eq=False)
class Agreement:
    """States how far s scores agree with one ground truth.

    Args:
      spearman, recall, effect: `[s]`: rank correlation, NaN where either is constant;
        share of the `top` latents of largest effect among the score's `top`; mean
        effect of the score's `top`.
      best_effect: mean effect of the `top` latents of largest effect.
      draws: number -> `[b, s]`, the same with the prompts drawn anew.
    """

    spearman: np.ndarray
    recall: np.ndarray
    effect: np.ndarray
    best_effect: float
    draws: Mapping[str, np.ndarray]


def agreement(
    scores_sn: np.ndarray,
    effect_np: np.ndarray,
    top: int = 20,
    *,
    draws: int = 0,
    seed: int = 0,
) -> Agreement:
    """Compares scores of every latent with its effect.

    Args:
      effect_np: of every latent on every prompt.
      top: latents whose recall and mean effect are reported.
      draws: resamples of the prompts, the same ones for all scores and for all effects
        on as many prompts.
      seed: of the draws.
    """
    effect_np = np.asarray(effect_np, np.float64)
    whole = _numbers(scores_sn, effect_np.mean(1)[None], top)
    drawn_bn = _drawn_means(effect_np, draws, seed)
    return Agreement(
        **{name: values_bs[0] for name, values_bs in whole.items()},
        best_effect=float(np.sort(effect_np.mean(1))[-top:].mean()),
        draws=_numbers(scores_sn, drawn_bn, top),
    )


def _drawn_means(effect_np: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Mean effects over prompts that are drawn with replacement, `[b, n]`."""
    p = effect_np.shape[1]
    counts_bp = np.random.default_rng(seed).multinomial(p, np.full(p, 1 / p), draws)
    return counts_bp / p @ effect_np.T


def _numbers(
    scores_sn: np.ndarray, effect_bn: np.ndarray, top: int
) -> dict[str, np.ndarray]:
    """Returns `NUMBERS`, `[b, s]` each, of every score with every row of effects."""
    best_st = best(scores_sn, top)
    is_best_bn = np.zeros(effect_bn.shape, bool)
    np.put_along_axis(is_best_bn, best(effect_bn, top), True, axis=1)
    return {
        "spearman": _standard_ranks(effect_bn) @ _standard_ranks(scores_sn).T,
        "recall": is_best_bn[:, best_st].mean(-1),
        "effect": effect_bn[:, best_st].mean(-1),
    }


def best(values_rn: np.ndarray, top: int) -> np.ndarray:
    """Returns the indices of the largest values of each row; ties go to the lower
    index.
    """
    return np.argsort(-np.asarray(values_rn), axis=1, kind="stable")[:, :top]


def _standard_ranks(values_rn: np.ndarray) -> np.ndarray:
    """Ranks of each row, ties shared, centred and of unit length; NaN where a row is
    constant.
    """
    if not len(values_rn):
        return np.zeros(np.shape(values_rn))
    ranks_rn = stats.rankdata(values_rn, axis=1)
    ranks_rn -= ranks_rn.mean(1, keepdims=True)
    length_r1 = np.linalg.norm(ranks_rn, axis=1, keepdims=True)
    constant_r1 = np.ptp(values_rn, axis=1)[:, None] == 0
    return ranks_rn / np.where(constant_r1, np.nan, length_r1)


def half_agreement(
    effect_np: np.ndarray, top: int = 20, *, draws: int = 0, seed: int = 0
) -> Agreement:
    """Compares the effects on every second prompt with those on the others, both ways:
    what a score could reach that knows as much as half of the ground truth.
    """
    even_np, odd_np = effect_np[:, ::2], effect_np[:, 1::2]
    if not odd_np.shape[1]:
        raise ValueError(
            f"the effects are of {effect_np.shape[1]} prompt; two halves need at least 2"
        )
    options: dict[str, Any] = {"top": top, "draws": draws, "seed": seed}
    first = agreement(even_np.mean(1)[None], odd_np, **options)
    second = agreement(odd_np.mean(1)[None], even_np, **options)
    means = {}
    for name in NUMBERS:
        means[name] = (getattr(first, name) + getattr(second, name)) / 2
    drawn = {n: (first.draws[n] + second.draws[n]) / 2 for n in NUMBERS}
    largest = (first.best_effect + second.best_effect) / 2
    return Agreement(**means, best_effect=largest, draws=drawn)


def single_effects(
    effect_kp: np.ndarray, *, draws: int = 0, seed: int = 0
) -> Agreement:
    """Returns the effects of k directions that select nothing, in the same form: each
    counts as a score whose `top` is itself, and has no correlation and no recall.
    """
    effect_kp = np.asarray(effect_kp, np.float64)
    drawn_bk = _drawn_means(effect_kp, draws, seed)
    none_k, none_bk = np.full(len(effect_kp), np.nan), np.full(drawn_bk.shape, np.nan)
    drawn = {"spearman": none_bk, "recall": none_bk, "effect": drawn_bk}
    effect_k = effect_kp.mean(1)
    return Agreement(none_k, none_k, effect_k, float(np.nanmax(effect_k)), drawn)
