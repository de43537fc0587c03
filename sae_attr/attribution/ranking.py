"""Rankings: the method's and its baselines', in one type, so that everything downstream
treats them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from scipy import stats


@dataclass(frozen=True, eq=False)
class Ranking:
    """Latents of a dictionary from best to worst by one score.

    `scores_n`: float `[n]`, NaN where it was not computed. `latents_k`: indices of the
      best k, best first.
    `options`: every choice behind the score.
    """

    name: str
    scores_n: np.ndarray
    latents_k: np.ndarray
    options: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, latents: np.ndarray) -> np.ndarray:
        """Returns 1-based ranks of some latents among all with a score; equal scores share the
        better rank, NaN gives 0.
        """
        finite = np.sort(self.scores_n[np.isfinite(self.scores_n)])
        scores_k = self.scores_n[latents]
        above = len(finite) - np.searchsorted(finite, scores_k, side="right")
        return np.where(np.isfinite(scores_k), above + 1, 0)


def rank(name: str, scores_n: Any, top: int, **options: Any) -> Ranking:
    """Ranks the best `top` latents by SIGNED score, descending; equal scores in order of
    index, NaN never among them.

    Raises ValueError if no latent has a score.
    """
    scores_n = np.asarray(scores_n)
    order = np.argsort(
        np.where(np.isfinite(scores_n), -scores_n, np.inf), kind="stable"
    )[:top]
    order = order[np.isfinite(scores_n[order])]
    if not len(order):
        raise ValueError(f"ranking {name!r} has no finite score at all")
    return Ranking(name, scores_n, order, options)


def random_matched(
    name: str,
    rates_n: np.ndarray,
    like: np.ndarray,
    count: int,
    key: jax.Array,
    avoid: np.ndarray | None = None,
) -> Ranking:
    """Draws latents at random whose firing rates are those of `like`: the grey zone of
    the method's figure.

    For each draw a member of `like` is taken in turn and one of the 20 unused latents
    nearest to it in log firing rate is drawn. Latents in `avoid` (default `like`) and
    latents of unknown rate are never drawn; dead ones only for dead ones, so fewer than
    `count` come back where the living run out.
    Where no rate is known at all the draw is uniform, and `options["matched"]` says so.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    free = np.isfinite(rates_n)
    matched = bool(free.any())
    log_n = (
        np.log10(np.where(free, rates_n, 0) + 1e-7)
        if matched
        else np.zeros(len(rates_n))
    )
    free = free if matched else np.ones(len(rates_n), bool)
    free[np.asarray(like if avoid is None else avoid, int)] = False
    drawn: list[int] = []
    for i in range(min(count, int(free.sum()))):
        pool = np.flatnonzero(free)
        if matched:
            pool = pool[(rates_n[pool] > 0) | (rates_n[like[i % len(like)]] == 0)]
            gap = np.abs(log_n[pool] - log_n[like[i % len(like)]])
            pool = pool[np.argsort(gap, kind="stable")[:20]]
        if len(pool):
            drawn.append(int(generator.choice(pool)))
            free[drawn[-1]] = False
    scores_n = np.full(len(rates_n), np.nan)
    scores_n[drawn] = -np.arange(len(drawn))  # the order of drawing is the score
    return Ranking(
        name,
        scores_n,
        np.array(drawn, int),
        {"matched": "firing rate" if matched else "nothing"},
    )


def overlap(a: Ranking, b: Ranking) -> float:
    """Returns the share of the shorter top list that is also in the other."""
    return len(np.intersect1d(a.latents_k, b.latents_k)) / max(
        1, min(len(a.latents_k), len(b.latents_k))
    )


def agreement(a_n: np.ndarray, b_n: np.ndarray) -> dict[str, float]:
    """Returns Pearson and Spearman correlation of two score arrays over the entries that
    both have; NaN where undefined.
    """
    both = np.isfinite(a_n) & np.isfinite(b_n)
    x, y = np.asarray(a_n)[both].ravel(), np.asarray(b_n)[both].ravel()
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"pearson": float("nan"), "spearman": float("nan"), "n": len(x)}
    return {
        "pearson": float(np.corrcoef(x, y)[0, 1]),
        "spearman": float(np.asarray(stats.spearmanr(x, y))[0]),
        "n": len(x),
    }
