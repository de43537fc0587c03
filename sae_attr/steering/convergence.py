"""Do two studies point at the same latents? Each one's first latent looked up in the
other (method, section 6, item 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
from scipy import stats

from sae_attr.records import Convergence, FirstLatent


@dataclass(frozen=True, eq=False)
class RankedStudy:
    """What convergence needs of a study.

    ranked_n: every latent that was scored, best first. selected: how many of them, from
      the top, the study chose.
    latents_k, change_k, low_k, high_k: the latents that were steered toward, and the
      change of the behaviour's rate with its interval; NaN where it was not measured.
      base_rate: the rate without steering.
    """

    title: str
    ranked_n: np.ndarray
    selected: int
    latents_k: np.ndarray
    change_k: np.ndarray
    low_k: np.ndarray
    high_k: np.ndarray
    base_rate: float

    def chosen(self) -> list[int]:
        """The selection, best first."""
        return [int(i) for i in self.ranked_n[: self.selected]]

    def toward(self) -> dict[int, tuple[float, float, float]]:
        """Latent -> change and interval, where it was measured."""
        rows = zip(self.latents_k, self.change_k, self.low_k, self.high_k, strict=True)
        return {
            int(i): (float(c), float(l), float(h))
            for i, c, l, h in rows
            if not np.isnan(c)
        }


def overlap_chance(
    one: set[int], other: set[int], strata_n: np.ndarray
) -> tuple[float, float]:
    """Expected overlap of two selections and the chance of one at least as large, when
    each is drawn within strata.

    Within a stratum the overlap of two independent draws is hypergeometric; strata are
    independent, so their sum's distribution is the convolution of theirs. One stratum
    gives the plain hypergeometric test.

    Args:
      one, other: latents, numbers below n.
      strata_n: stratum of every latent of the population, −1 for those that could not
        be chosen.
    """
    members = [np.array(sorted(x), np.int64) for x in (one, other)]
    if any((strata_n[x] < 0).any() for x in members):
        raise ValueError("a chosen latent is outside the population (stratum −1)")
    per_stratum = lambda strata: np.bincount(
        strata[strata >= 0], minlength=int(strata_n.max()) + 1
    )
    sizes, drawn, again = (
        per_stratum(x) for x in (strata_n, strata_n[members[0]], strata_n[members[1]])
    )
    parts = [
        stats.hypergeom.pmf(np.arange(min(a, b) + 1), n, a, b)
        for n, a, b in zip(sizes, drawn, again)
        if a and b
    ]
    pmf = reduce(np.convolve, parts, np.ones(1))
    return float(pmf @ np.arange(len(pmf))), float(
        min(1.0, pmf[len(one & other) :].sum())
    )


def _first(study: RankedStudy, first_by: Literal["score", "toward"]) -> int:
    """The study's first latent: of its ranking, or by toward-effect among its own
    selection.
    """
    chosen, toward = study.chosen(), study.toward()
    if first_by == "score":
        return chosen[0]
    measured = [i for i in chosen if i in toward]
    return max(measured, key=lambda i: toward[i][0]) if measured else chosen[0]


def _look_up(
    latent: int, own: RankedStudy, other: RankedStudy, population: int
) -> FirstLatent:
    union = {*own.chosen(), *other.chosen(), latent}
    toward, there = own.toward(), other.toward()
    measured = [toward[i][0] for i in union if i in toward]
    at = np.flatnonzero(np.asarray(other.ranked_n) == latent)
    rank = int(at[0]) + 1 if len(at) else None
    unknown = (float("nan"),) * 3
    change, low, high = toward.get(latent, unknown)
    other_change, other_low, other_high = there.get(latent, unknown)
    return FirstLatent(
        study=own.title,
        other=other.title,
        latent=latent,
        rank_in_other=rank,
        population=population,
        rank_p=rank / population if rank is not None else float("nan"),
        toward_rank=1 + sum(x > change for x in measured) if latent in toward else None,
        toward_of=len(measured),
        change=change,
        low=low,
        high=high,
        base_rate=own.base_rate,
        other_change=other_change,
        other_low=other_low,
        other_high=other_high,
        other_base_rate=other.base_rate,
    )


def convergence(
    one: RankedStudy,
    other: RankedStudy,
    *,
    population: int,
    strata_n: np.ndarray | None = None,
    first_by: Literal["score", "toward"] = "score",
) -> Convergence:
    """Looks up each study's first latent in the other, and asks how likely the overlap
    of the selections is by chance.

    Args:
      one, other: the studies, of the same dictionary.
      population: latents of the dictionary.
      strata_n: stratum of every latent, e.g. a bin of its firing rate, so that chance
        prefers latents that fire as often as the chosen ones do; −1 for latents that
        could not be chosen. None: any latent is as likely as another.
      first_by: "score": the first of the ranking; "toward": the chosen latent of the
        largest toward-effect.

    Raises:
      ValueError: a study that chose nothing, or a latent outside the population.
    """
    for study in (one, other):
        if not study.chosen():
            raise ValueError(f"{study.title} chose no latent")
        if max(int(i) for i in study.ranked_n) >= population:
            raise ValueError(
                f"{study.title} ranks latent {max(study.ranked_n)}, the population is "
                f"{population}"
            )
    strata = (
        np.zeros(population, np.int64) if strata_n is None else np.asarray(strata_n)
    )
    if len(strata) != population:
        raise ValueError(f"{len(strata)} strata for a population of {population}")
    a, b = set(one.chosen()), set(other.chosen())
    expected, p = overlap_chance(a, b, strata)
    return Convergence(
        firsts=tuple(
            _look_up(_first(x, first_by), x, y, int((strata >= 0).sum()))
            for x, y in ((one, other), (other, one))
        ),
        shared=tuple(sorted(a & b)),
        selected=(len(a), len(b)),
        population=int((strata >= 0).sum()),
        expected=expected,
        overlap_p=p,
        null="each study draws from the whole dictionary at random"
        if strata_n is None
        else "each study draws at random among latents of the same stratum",
    )
