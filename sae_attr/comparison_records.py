"""Frozen records of a study's comparisons: `steering` makes them, `report` shows them.

Rates, changes and intervals are shares (0.12 is 12 percentage points). NaN is "not
known".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["away", "toward"]
"""away: the model with the behaviour is steered against a latent; toward: the model
without it is steered along the latent. Where there is one model, it is both.
"""

LatentName = int | str
"""A latent as readers see it: its number in the studied SAE, or NAME:NUMBER of a further
dictionary.
"""


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval; NaN where it is not defined (too few items, no
    spread).
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def is_clear(self) -> bool:
        """True where the interval is known and does not hold 0."""
        return self.low > 0 or self.high < 0

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> Estimate:
        """Returns the estimate that JSON holds, where NaN is null."""
        numbers = [row[name] for name in ("value", "low", "high")]
        return cls(*[math.nan if value is None else value for value in numbers])


@dataclass(frozen=True)
class MethodCount:
    """One method's latents in one direction.

    Args:
      method: e.g. delta_attribution; "random" is the band's own.
      chosen: latents that the method selected.
      measured: those of them with at least one pair of completions.
      outside: those outside the random band on the side that matters (away: below;
        toward: above).
      other_side: those outside on the other side.
      expected: how many would be outside on the side that matters if they were random
        latents.
      mean: mean change of the measured latents; low, high: its bootstrap interval.
      p: chance that as many random latents would be outside; q: that after Benjamini
        and Hochberg over methods and directions.
      gap: mean − mean of the random latents; gap_low, gap_high: its bootstrap interval;
        gap_p: its two-sided permutation p-value. NaN for random latents themselves.
    """

    method: str
    direction: Direction
    chosen: int
    measured: int
    outside: int
    other_side: int
    expected: float
    mean: float
    low: float
    high: float
    p: float = float("nan")
    q: float = float("nan")
    gap: float = float("nan")
    gap_low: float = float("nan")
    gap_high: float = float("nan")
    gap_p: float = float("nan")


@dataclass(frozen=True)
class MethodDifference:
    """Two methods compared in one direction, first − second.

    Args:
      count: difference of the numbers of latents outside the band; `_low`, `_high`: its
        bootstrap interval; `_p`: its two-sided permutation p-value; `_q`: that after
        Benjamini and Hochberg over all differences of the study.
      mean: difference of the mean changes, with the same four numbers.
      shared: latents that both selected. They are part of both counts and means, and no
        relabelling moves them.
      shared_outside: those of them outside the band.
      only_first_outside, only_second_outside: latents outside the band that one of the
        two alone selected, so that the three together count every latent once.
      resampled: what the bootstrap drew again, e.g. ("prompts", "latents").
    """

    direction: Direction
    first: str
    second: str
    count: float
    count_low: float
    count_high: float
    count_p: float
    count_q: float
    mean: float
    mean_low: float
    mean_high: float
    mean_p: float
    mean_q: float
    shared: tuple[int, ...]
    shared_outside: int
    only_first_outside: int
    only_second_outside: int
    resampled: tuple[str, ...]

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> MethodDifference:
        """Returns the record that JSON holds."""
        return cls(**_with_tuples(row))


@dataclass(frozen=True)
class FirstLatent:
    """The first latent of one study, looked up in another.

    Args:
      study, other: titles of the two.
      rank_in_other: 1 is best, among `population` latents; None where the other study
        did not score it.
      rank_p: chance that a latent drawn at random ranks as high there.
      toward_rank: rank by effect of steering toward in its own study, among the
        `toward_of` measured latents of both selections; None where not measured.
      change, low, high, base_rate: of steering toward in its own study; `other_`: the
        same in the other one, NaN where it was not steered there.
    """

    study: str
    other: str
    latent: int
    rank_in_other: int | None
    population: int
    rank_p: float
    toward_rank: int | None
    toward_of: int
    change: float
    low: float
    high: float
    base_rate: float
    other_change: float
    other_low: float
    other_high: float
    other_base_rate: float


@dataclass(frozen=True)
class Convergence:
    """States how far two studies point at the same latents.

    Args:
      firsts: each study's first latent, looked up in the other.
      shared: latents that both studies selected.
      selected: the sizes of the two selections.
      population: latents that could have been selected.
      expected: size of the overlap by chance; overlap_p: chance of one as large.
      null: how chance draws, in words.
    """

    firsts: tuple[FirstLatent, ...]
    shared: tuple[int, ...]
    selected: tuple[int, int]
    population: int
    expected: float
    overlap_p: float
    null: str

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> Convergence:
        """Returns the record that JSON holds."""
        firsts = tuple(FirstLatent(**first) for first in row["firsts"])
        return cls(**{**_with_tuples(row), "firsts": firsts})


@dataclass(frozen=True)
class SampledAgreement:
    """Effects by exact probabilities beside those of sampled and graded answers, over
    the latents of which both are known.

    Args:
      latents: of which both are known.
      pearson, spearman: correlations of the two changes over latents.
      same_sign: share of latents whose two changes have one sign.
      difference: mean absolute difference of the two changes.
      noise: the mean absolute difference that sampling alone would make, if the exact
        probabilities were those that the answers were drawn from.
      standard_error: binomial standard error of a latent's sampled change, the mean
        over latents.
      attainable: the Pearson correlation that so many answers would give, if they were
        drawn with the exact probabilities, independently of each other.
    """

    direction: Direction
    latents: int
    pearson: Estimate
    spearman: Estimate
    same_sign: Estimate
    difference: Estimate
    noise: float
    standard_error: float
    attainable: float = math.nan

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> SampledAgreement:
        """Returns the record that JSON holds."""
        return cls(**_with_estimates(row))


@dataclass(frozen=True)
class SetMean:
    """Holds what one method's latents change on one set of prompts, in one direction.

    Args:
      method: "random" is the random latents.
      name: of the set of prompts.
      latents: that were measured.
      change: mean change of the rate.
      ratio: that change divided by the change on the effects' prompts; NaN on these
        themselves, and where theirs cannot be told from 0.
    """

    method: str
    direction: Direction
    name: str
    latents: int
    change: Estimate
    ratio: Estimate

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> SetMean:
        """Returns the record that JSON holds."""
        return cls(**_with_estimates(row))


@dataclass(frozen=True)
class DirectionsControl:
    """Gaussian directions beside random latents of the dictionary, on the effects'
    prompts: whether what random latents do is the dictionary's doing, or any
    direction's.

    Args:
      strength: with which the directions were added, in units of the site's mean norm.
      directions, latents: how many of either were measured.
      of_directions, of_latents: mean change of the rate, with the 5th and 95th
        percentile of single ones as its ends.
      p: permutation p-value of the difference of the two means.
    """

    direction: Direction
    strength: float
    directions: int
    latents: int
    of_directions: Estimate
    of_latents: Estimate
    p: float

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> DirectionsControl:
        """Returns the record that JSON holds."""
        return cls(**_with_estimates(row))


@dataclass(frozen=True)
class TopicRate:
    """The rate of the behaviour without steering on the prompts of one topic.

    Args:
      name: of the set of prompts; "" for all sets together.
      topic: "" for all topics together.
      trained: the second model's fine-tune was on this topic.
      prompts: how many.
      rate: of the model with the behaviour.
      other: of the model without it; NaN where there is one model.
      difference: rate − other.
    """

    name: str
    topic: str
    trained: bool
    prompts: int
    rate: Estimate
    other: Estimate
    difference: Estimate

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> TopicRate:
        """Returns the record that JSON holds."""
        return cls(**_with_estimates(row))


def _with_estimates(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with its estimates, as JSON has them, as records; null as NaN."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            fields[name] = Estimate.load(value)
        else:
            fields[name] = math.nan if value is None else value
    return fields


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with its lists, as JSON has them, as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in row.items()
    }
