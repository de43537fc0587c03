"""Agreement of two studies of one dictionary: each one's first latent looked up in the
other, and the overlap of their selections with its p-value against chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from sae_attr.comparison_records import Convergence, FirstLatent

FirstBy = Literal["score", "toward"]


class Change(NamedTuple):
    """A change of the behaviour's rate with its interval."""

    change: float
    low: float
    high: float


_UNMEASURED = Change(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class RankedStudy:
    """Holds what convergence needs of a study.

    Args:
      title: for readers.
      ranked_n: every latent that was scored, best first.
      selected: how many of them, from the top, the study selected.
      latents_k: the latents that were steered toward.
      change_k, low_k, high_k: change of the behaviour's rate with its interval; NaN
        where it was not measured.
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

    def selection(self) -> list[int]:
        """Returns the selected latents, best first."""
        return [int(i) for i in self.ranked_n[: self.selected]]

    def toward(self) -> dict[int, Change]:
        """Returns latent -> change, where it was measured."""
        changes = {}
        for latent, *numbers in zip(
            self.latents_k, self.change_k, self.low_k, self.high_k, strict=True
        ):
            change = Change(*map(float, numbers))
            if not np.isnan(change.change):
                changes[int(latent)] = change
        return changes

    def rank_of(self, latent: int) -> int | None:
        """Returns a latent's rank, 1 for the best; None where it was not scored."""
        places = np.flatnonzero(np.asarray(self.ranked_n) == latent)
        return int(places[0]) + 1 if len(places) else None


def overlap_chance(
    one: set[int], other: set[int], strata_n: np.ndarray
) -> tuple[float, float]:
    """Returns the expected overlap of two selections and the chance of one at least as
    large, when each is drawn within strata.

    Within a stratum the overlap of two independent draws is hypergeometric; strata are
    independent, so their sum's distribution is the convolution of theirs. One stratum
    gives the plain hypergeometric test.

    Args:
      one, other: latents, numbers below n.
      strata_n: stratum of every latent of the population, −1 for those that could not
        be selected.

    Raises:
      ValueError: a selected latent that could not be selected.
    """
    # Not a plain hypergeometric test over the dictionary: selections prefer latents that
    # fire often, which makes two of them meet by chance more often than that test says.
    strata = int(strata_n.max()) + 1
    sizes = np.bincount(strata_n[strata_n >= 0], minlength=strata)
    drawn = [_per_stratum(latents, strata_n, strata) for latents in (one, other)]
    pmf = np.ones(1)
    for size, first, second in zip(sizes, *drawn, strict=True):
        if first and second:
            overlaps = np.arange(min(first, second) + 1)
            part = stats.hypergeom.pmf(overlaps, size, first, second)
            pmf = np.convolve(pmf, part)
    expected = float(pmf @ np.arange(len(pmf)))
    # A sum of rounded probabilities may exceed 1 in its last bits.
    return expected, float(min(1.0, pmf[len(one & other) :].sum()))


def _per_stratum(latents: set[int], strata_n: np.ndarray, strata: int) -> np.ndarray:
    """Counts the latents in each stratum."""
    of_latents = strata_n[np.array(sorted(latents), np.int64)]
    if (of_latents < 0).any():
        raise ValueError("a chosen latent is outside the population (stratum −1)")
    return np.bincount(of_latents, minlength=strata)


def convergence(
    one: RankedStudy,
    other: RankedStudy,
    *,
    population: int,
    strata_n: np.ndarray | None = None,
    first_by: FirstBy = "score",
) -> Convergence:
    """Looks up each study's first latent in the other, and computes how likely the
    overlap of the selections is by chance.

    Args:
      one, other: the studies, of the same dictionary.
      population: latents of the dictionary.
      strata_n: stratum of every latent, e.g. a bin of its firing rate, so that chance
        prefers latents that fire as often as the selected ones do; −1 for latents that
        could not be selected. None: any latent is as likely as another.
      first_by: "score": the first of the ranking; "toward": the selected latent of the
        largest toward-effect.

    Raises:
      ValueError: a study that selected nothing, or a latent outside the population.
    """
    for study in (one, other):
        _check(study, population)
    null = "each study draws at random among latents of the same stratum"
    if strata_n is None:
        null = "each study draws from the whole dictionary at random"
        strata_n = np.zeros(population, np.int64)
    strata_n = np.asarray(strata_n)
    if len(strata_n) != population:
        raise ValueError(f"{len(strata_n)} strata for a population of {population}")
    selections = set(one.selection()), set(other.selection())
    expected, overlap_p = overlap_chance(*selections, strata_n)
    selectable = int((strata_n >= 0).sum())
    return Convergence(
        firsts=(
            _look_up(_first(one, first_by), one, other, selectable),
            _look_up(_first(other, first_by), other, one, selectable),
        ),
        shared=tuple(sorted(selections[0] & selections[1])),
        selected=(len(selections[0]), len(selections[1])),
        population=selectable,
        expected=expected,
        overlap_p=overlap_p,
        null=null,
    )


def _check(study: RankedStudy, population: int) -> None:
    if not study.selection():
        raise ValueError(f"{study.title} chose no latent")
    highest = int(np.max(study.ranked_n))
    if highest >= population:
        raise ValueError(
            f"{study.title} ranks latent {highest}, the population is {population}"
        )


def _first(study: RankedStudy, first_by: FirstBy) -> int:
    """Returns the study's first latent: of its ranking, or by toward-effect among its
    own selection.
    """
    selection, toward = study.selection(), study.toward()
    # Among its selection alone: latents of the other study were steered here as well.
    measured = [latent for latent in selection if latent in toward]
    if first_by == "score" or not measured:
        return selection[0]
    return max(measured, key=lambda latent: toward[latent].change)


def _look_up(
    latent: int, study: RankedStudy, other: RankedStudy, population: int
) -> FirstLatent:
    """Returns a study's first latent beside the other study."""
    in_study, in_other = study.toward(), other.toward()
    # Not random latents: the rank is among those that either study had reason to steer.
    union = {*study.selection(), *other.selection(), latent}
    changes = [in_study[i].change for i in union if i in in_study]
    here = in_study.get(latent, _UNMEASURED)
    there = in_other.get(latent, _UNMEASURED)
    rank = other.rank_of(latent)
    return FirstLatent(
        study=study.title,
        other=other.title,
        latent=latent,
        rank_in_other=rank,
        population=population,
        rank_p=float("nan") if rank is None else rank / population,
        toward_rank=_toward_rank(latent, in_study, changes),
        toward_of=len(changes),
        change=here.change,
        low=here.low,
        high=here.high,
        base_rate=study.base_rate,
        other_change=there.change,
        other_low=there.low,
        other_high=there.high,
        other_base_rate=other.base_rate,
    )


def _toward_rank(
    latent: int, measured: dict[int, Change], changes: Sequence[float]
) -> int | None:
    """Returns a latent's rank among changes; None where it was not measured."""
    if latent not in measured:
        return None
    return 1 + sum(change > measured[latent].change for change in changes)
