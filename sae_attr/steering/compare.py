"""Methods against random latents and against each other: counts outside the random
band, mean effects, with p-values against chance.

In each direction one side matters: steering away should lower the rate of the
behaviour, steering toward raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from sae_attr.comparison_records import MethodCount, MethodDifference
from sae_attr.steering.effects import LatentEffects, false_discovery
from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    interval,
)
from sae_attr.steering.random_band import (
    RANDOM,
    Band,
    SteeredDirection,
    expected_outside,
    outside,
    outside_p,
    random_band,
)
from sae_attr.steering.resampling import (
    RANDOM_STRATUM,
    Resampled,
    joined,
    mean_of_measured,
    permutation_p,
    resampled,
)

_METHOD_STRATUM = 1
# Latents that the first method alone chose, the second alone, and both.
_SPLIT_STRATA = (1, 2, 3)


def method_counts(
    study: SteeredDirection, *, settings: EffectSettings = DEFAULT
) -> tuple[MethodCount, ...]:
    """Counts the latents outside the random band and averages the effects, for every
    method and for the random latents: the headline of a study.
    """
    band = random_band(study, settings=settings)
    # One set of draws for all methods: intervals differ by latents, not by luck.
    draws = resampled(study, settings)
    return tuple(_count(study, name, band, draws, settings) for name in study.methods)


def _count(
    study: SteeredDirection,
    name: str,
    band: Band,
    draws: Resampled,
    settings: EffectSettings,
) -> MethodCount:
    rows = study.rows(study.methods[name])
    change_m = study.change()[rows]
    stratum = RANDOM_STRATUM if name == RANDOM else _METHOD_STRATUM
    means_b = mean_of_measured(draws.of(rows, stratum, settings))
    low, high = interval(means_b, settings.level)
    measured = int((~np.isnan(change_m)).sum())
    away = study.direction == "away"
    below = int(outside(change_m, band.low, band.high, "away").sum())
    above = int(outside(change_m, band.low, band.high, "toward").sum())
    beyond = below if away else above
    # Random latents make the band: that some lie outside is no finding.
    p, gap = np.nan, {}
    if name != RANDOM:
        p = outside_p(beyond, measured, band, study.direction, settings)
        gap = _gap_to_random(study, change_m, means_b, draws, settings)
    return MethodCount(
        method=name,
        direction=study.direction,
        chosen=len(rows),
        measured=measured,
        outside=beyond,
        other_side=above if away else below,
        expected=expected_outside(measured, band, study.direction, settings),
        mean=float(mean_of_measured(change_m)),
        low=float(low),
        high=float(high),
        p=float(p),
        **gap,
    )


def _gap_to_random(
    study: SteeredDirection,
    change_m: np.ndarray,
    means_b: np.ndarray,
    draws: Resampled,
    settings: EffectSettings,
) -> dict[str, float]:
    """Returns the mean change of a method's latents − that of random ones, with its
    interval and p-value.

    Args:
      change_m: of the method's latents.
      means_b: their mean in every resample.
    """
    rows = study.rows(study.methods[RANDOM])
    random_r = study.change()[rows]
    random_b = mean_of_measured(draws.of(rows, RANDOM_STRATUM, settings))
    # Prompts are drawn alike for both, so that what moves all latents cancels.
    low, high = interval(means_b - random_b, settings.level)
    gap = mean_of_measured(change_m) - mean_of_measured(random_r)
    p = permutation_p(change_m, random_r, np.empty(0), settings)
    return {
        "gap": float(gap),
        "gap_low": float(low),
        "gap_high": float(high),
        "gap_p": float(p),
    }


def adjusted_counts(counts: Sequence[MethodCount]) -> tuple[MethodCount, ...]:
    """Returns the same with q-values: Benjamini and Hochberg over the methods and
    directions that a figure shows together.
    """
    q = false_discovery(np.array([count.p for count in counts]))
    pairs = zip(counts, q.tolist(), strict=True)
    return tuple(replace(count, q=value) for count, value in pairs)


# ---- two methods ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """Values of the latents that the first method alone chose, the second alone, and
    both.
    """

    first: np.ndarray
    second: np.ndarray
    shared: np.ndarray

    def p(self, settings: EffectSettings) -> float:
        """Returns the permutation p-value of the difference of means."""
        return permutation_p(self.first, self.second, self.shared, settings)

    def difference(self) -> np.ndarray:
        """Returns the mean of the first method's latents − that of the second's."""
        first = mean_of_measured(joined(self.first, self.shared))
        return first - mean_of_measured(joined(self.second, self.shared))


def difference(
    study: SteeredDirection,
    first: str,
    second: str,
    *,
    settings: EffectSettings = DEFAULT,
    draws: Resampled | None = None,
) -> MethodDifference:
    """Compares two methods: numbers outside the band and mean changes, first − second.

    The bootstrap draws prompts (the same for every latent) and latents (within: first
    only, second only, both, random) again, and the band with them. The permutation
    exchanges the labels of latents that one method alone chose; its statistic for the
    counts is the difference of shares, which is that of counts where both chose as
    many. Random latents make the band, so they cannot be one of the two.

    Args:
      draws: shared between comparisons of one direction; None draws them.
    """
    if RANDOM in (first, second):
        raise ValueError(
            "random latents make the band; `method_counts` states what to expect of "
            "them"
        )
    draws = resampled(study, settings) if draws is None else draws
    latents = _split_latents(study, first, second)
    rows = [study.rows(part) for part in latents]
    band, change_k = random_band(study, settings=settings), study.change()
    beyond_k = outside(change_k, band.low, band.high, study.direction)
    # NaN, not "inside": an unmeasured latent counts in neither share.
    hit_k = np.where(np.isnan(change_k), np.nan, beyond_k.astype(np.float64))
    hits = _Split(*[hit_k[part] for part in rows])
    changes = _Split(*[change_k[part] for part in rows])
    count_interval, mean_interval = _intervals(study, draws, rows, settings)
    only_first = int(np.nansum(hits.first))
    only_second = int(np.nansum(hits.second))
    return MethodDifference(
        direction=study.direction,
        first=first,
        second=second,
        count=only_first - only_second,
        count_low=count_interval[0],
        count_high=count_interval[1],
        count_p=hits.p(settings),
        count_q=float("nan"),
        mean=float(changes.difference()),
        mean_low=mean_interval[0],
        mean_high=mean_interval[1],
        mean_p=changes.p(settings),
        mean_q=float("nan"),
        shared=tuple(latents[2]),
        shared_outside=int(np.nansum(hits.shared)),
        only_first_outside=only_first,
        only_second_outside=only_second,
        resampled=settings.resampled,
    )


def _split_latents(
    study: SteeredDirection, first: str, second: str
) -> tuple[list[int], list[int], list[int]]:
    """Returns the latents that the first method alone chose, the second alone, and both."""
    of_first = dict.fromkeys(map(int, study.methods[first]))
    of_second = dict.fromkeys(map(int, study.methods[second]))
    shared = of_first.keys() & of_second.keys()
    # Without the shared ones each keeps its order, on which the seeded draws depend.
    for latent in shared:
        del of_first[latent], of_second[latent]
    return list(of_first), list(of_second), sorted(shared)


def _intervals(
    study: SteeredDirection,
    draws: Resampled,
    rows: Sequence[np.ndarray],
    settings: EffectSettings,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns bootstrap intervals of the difference of counts and of means."""
    parts = []
    for part, stratum in zip(rows, _SPLIT_STRATA, strict=True):
        parts.append(draws.of(part, stratum, settings))
    changes = _Split(*parts)

    def count(change_bm: np.ndarray) -> np.ndarray:
        beyond_bm = outside(change_bm, draws.low_b1, draws.high_b1, study.direction)
        return beyond_bm.sum(1)

    # Latents of both methods are in both counts, and cancel.
    counts_b = (count(changes.first) - count(changes.second)).astype(np.float64)
    count_low, count_high = interval(counts_b, settings.level)
    mean_low, mean_high = interval(changes.difference(), settings.level)
    return (float(count_low), float(count_high)), (float(mean_low), float(mean_high))


def differences(
    study: SteeredDirection, *, settings: EffectSettings = DEFAULT
) -> tuple[MethodDifference, ...]:
    """Compares every two methods, the earlier one first; q-values are for `adjusted`,
    over all directions and studies.
    """
    names = [name for name in study.methods if name != RANDOM]
    draws = resampled(study, settings)
    compared = []
    for first, second in combinations(names, 2):
        pair = difference(study, first, second, settings=settings, draws=draws)
        compared.append(pair)
    return tuple(compared)


def adjusted(compared: Sequence[MethodDifference]) -> tuple[MethodDifference, ...]:
    """Returns the same with q-values: Benjamini and Hochberg over the p-values of all
    counts and all means together.
    """
    counts = [d.count_p for d in compared]
    means = [d.mean_p for d in compared]
    # One family over all directions and pairs of methods: a report shows them together,
    # and the best of them is what a reader remembers.
    q = false_discovery(np.array([*counts, *means]))
    out = []
    for i, d in enumerate(compared):
        count_q, mean_q = float(q[i]), float(q[len(compared) + i])
        out.append(replace(d, count_q=count_q, mean_q=mean_q))
    return tuple(out)


# ---- figure --------------------------------------------------------------------------


def panel_numbers(
    study: SteeredDirection,
    effects: LatentEffects,
    *,
    base_rate: float,
    settings: EffectSettings = DEFAULT,
) -> dict[str, Any]:
    """Returns one panel of `figures.effects_figure`, but for the steered model's name:
    the strips of all methods, random latents last, and the band.

    Args:
      study: what was steered.
      effects: of the same latents.
      base_rate: rate of the behaviour without steering.
    """
    band = random_band(study, settings=settings)
    strips = []
    for name in sorted(study.methods, key=lambda method: method == RANDOM):
        rows = study.rows(study.methods[name])
        strip = {
            "method": name,
            "latents": study.latents_k[rows].tolist(),
            "change": effects.change_k[rows].tolist(),
            "low": effects.low_k[rows].tolist(),
            "high": effects.high_k[rows].tolist(),
        }
        strips.append(strip)
    return {
        "direction": study.direction,
        "base_rate": float(base_rate),
        "prompts": study.pairs.diff_kp.shape[1],
        "samples": study.pairs.samples,
        "band": [band.low, band.high] if band.latents else None,
        "strips": strips,
    }
