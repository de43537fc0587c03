"""How strongly each latent is steered: the largest strength of a grid that leaves the
model coherent enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RULES = ("relative", "proportional", "absolute")
PICKS = ("largest", "before_failing")
_ROUNDING = 1e-9  # 0.2 + 0.1 must not fail at 0.3


@dataclass(frozen=True, eq=False)
class StrengthChoice:
    """The strengths that a search chose, with what it was decided by.

    Args:
      index_k: place in the grid of every latent's strength, -1 where none passes.
      strength_k: the strength itself; 0 where none passes. Such a latent is not
        steered: its effect is 0, it stays in every count and figure, and a report says
        how many there are.
      passes_kc: which strengths are within the budget.
      limit_k: the largest incoherent rate that passes.
      rule, pick, budget: of the search.
    """

    index_k: np.ndarray
    strength_k: np.ndarray
    passes_kc: np.ndarray
    limit_k: np.ndarray
    rule: str
    pick: str
    budget: float


def choose_strengths(
    incoherent_kc: np.ndarray,
    strengths_c: np.ndarray,
    unsteered: np.ndarray | float,
    *,
    rule: str = "relative",
    budget: float = 0.10,
    pick: str = "largest",
) -> StrengthChoice:
    """Returns per latent the largest strength whose incoherent rate is within the
    budget (docs/method.md, Strengths and coherence).

    Args:
      incoherent_kc: share of incoherent completions of latent k at strength c, of those
        that were judged; NaN does not pass.
      strengths_c: |c|, ascending and positive; the sign of steering is the caller's.
      unsteered: incoherent rate without steering on the same prompts, one number or
        `[k]`; `absolute` does not read it.
      rule: `relative`: at most unsteered + budget (the default, with 10 points);
        `proportional`: of the coherent share without steering, at most the budget is
        lost, for models that are coherent in few answers; `absolute`: at most the
        budget (Wang et al. 2025 with 10 %).
      budget: in shares, 0.10 for ten points.
      pick: `largest` takes the largest strength that passes (the default, as the method
        is worded), even where a smaller one failed by chance; `before_failing` the last
        one before the first that fails.

    Raises:
      ValueError: shapes that do not fit, strengths that do not ascend, rates outside
        0..1, an unknown rule or pick.
    """
    rates = np.asarray(incoherent_kc, np.float64)
    strengths_c = np.asarray(strengths_c, np.float64)
    _check(rates, strengths_c, rule, pick)
    # A model with the behaviour may be incoherent itself: an absolute limit would then
    # leave no strength at all.
    base = np.asarray(unsteered, np.float64)
    limit = base + budget
    if rule == "absolute":
        limit = np.asarray(budget, np.float64)
    elif rule == "proportional":
        limit = 1 - (1 - base) * (1 - budget)
    limit_k = np.broadcast_to(limit, rates.shape[:1])
    passes_kc = rates <= limit_k[:, None] + _ROUNDING  # False for NaN
    # Coherence falls with strength, so that a smaller one that fails while a larger one
    # passes is noise of few answers; `before_failing` is the cautious reading.
    counted_kc = passes_kc
    if pick == "before_failing":
        counted_kc = np.logical_and.accumulate(passes_kc, axis=1)
    places = np.arange(len(strengths_c))
    index_k = np.max(np.where(counted_kc, places, -1), axis=1, initial=-1)
    strength_k = np.where(index_k >= 0, strengths_c[index_k], 0.0)
    return StrengthChoice(
        index_k, strength_k, passes_kc, np.array(limit_k), rule, pick, budget
    )


def _check(rates: np.ndarray, strengths_c: np.ndarray, rule: str, pick: str) -> None:
    if rates.ndim != 2 or strengths_c.shape != rates.shape[1:] or not len(strengths_c):
        raise ValueError(
            f"rates of shape {rates.shape} do not fit {strengths_c.shape} strengths; "
            "give [k, c] and [c]"
        )
    if (np.diff(strengths_c, prepend=0.0) <= 0).any():
        raise ValueError(
            f"strengths {strengths_c.tolist()} must be positive and ascend; signs are "
            "added afterwards"
        )
    if ((rates < 0) | (rates > 1)).any():
        raise ValueError(
            "incoherent rates must lie in 0..1 (NaN where nothing was judged)"
        )
    for what, value, allowed in (("rule", rule, RULES), ("pick", pick, PICKS)):
        if value not in allowed:
            raise ValueError(
                f"{what} {value!r} is unknown; choose one of {', '.join(allowed)}"
            )
