"""The band of random latents: what steering changes where nobody chose the latent, and
which latents lie outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.comparison_records import Direction
from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    Paired,
    weighted_mean,
)

RANDOM = "random"


@dataclass(frozen=True)
class Band:
    """The typical range of random latents' changes.

    Args:
      low, high: its edges; NaN without any latent.
      latents: how many were measured.
    """

    low: float
    high: float
    latents: int


@dataclass(frozen=True, eq=False)
class SteeredDirection:
    """One direction of one study.

    Args:
      direction: away or toward.
      latents_k: ids of the latents that were steered, each once.
      pairs: their differences, a row a latent.
      methods: name -> latents that it chose, best first; "random" must be there.
    """

    direction: Direction
    latents_k: np.ndarray
    pairs: Paired
    methods: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        steered = set(map(int, self.latents_k))
        if len(steered) < len(self.latents_k):
            raise ValueError(
                "latents_k names a latent twice; merge the methods' selections before "
                "steering"
            )
        if len(self.latents_k) != len(self.pairs.diff_kp):
            raise ValueError(
                f"{len(self.latents_k)} latents, but pairs of {len(self.pairs.diff_kp)}"
            )
        if RANDOM not in self.methods:
            raise ValueError(
                f"methods are {sorted(self.methods)}; without {RANDOM!r} there is no "
                "band"
            )
        for name, latents in self.methods.items():
            absent = sorted(set(map(int, latents)) - steered)
            if absent:
                raise ValueError(
                    f"{name} chose latents that were not steered {self.direction}: "
                    f"{absent[:5]}"
                )

    def rows(self, latents: Sequence[int]) -> np.ndarray:
        """Returns the rows of latents in `pairs`."""
        row_of = {int(latent): k for k, latent in enumerate(self.latents_k)}
        return np.array([row_of[int(i)] for i in latents], np.int64)

    def change(self) -> np.ndarray:
        """Returns the change of every latent `[k]`."""
        return weighted_mean(self.pairs.diff_kp, self.pairs.weight_kp)


def band_edges(random_r: np.ndarray, settings: EffectSettings) -> np.ndarray:
    """Returns the band's edges `[2, ...]` over the last axis, unmeasured latents left
    out.
    """
    # nanpercentile warns about a slice of NaN alone.
    if np.isnan(random_r).all():
        return np.full((2, *random_r.shape[:-1]), np.nan)
    # nanpercentile goes row by row, which is slow for thousands of resamples.
    percentile = np.percentile
    if np.isnan(random_r).any():
        percentile = np.nanpercentile
    return percentile(random_r, settings.band, axis=-1)


def random_band(study: SteeredDirection, *, settings: EffectSettings = DEFAULT) -> Band:
    """Returns the percentiles `settings.band` of random latents' changes
    (docs/method.md, Effects and the random band); NaN where none was measured.
    """
    # Not zero but random latents are the yardstick: any direction, steered at the largest
    # strength that stays coherent, changes some answers. They are matched on firing rate
    # (`attribution.ranking.random_matched`), so that the band is not that of rarer latents.
    random_r = study.change()[study.rows(study.methods[RANDOM])]
    measured = int((~np.isnan(random_r)).sum())
    if not measured:
        return Band(np.nan, np.nan, 0)
    low, high = band_edges(random_r, settings)
    return Band(float(low), float(high), measured)


def outside(
    change_k: np.ndarray, low: Any, high: Any, direction: Direction
) -> np.ndarray:
    """Returns which changes lie outside the band on the side that matters; a latent on
    the edge or unmeasured is inside.
    """
    return change_k < low if direction == "away" else change_k > high


def expected_outside(
    measured: int, band: Band, direction: Direction, settings: EffectSettings
) -> float:
    """Returns how many of `measured` latents would lie beyond the edge that matters if
    they were random latents.

    An interpolated percentile of R draws leaves more than its nominal share out.
    """
    if not band.latents:
        return np.nan
    # A further latent of the same kind falls into each of the R + 1 gaps alike.
    return measured * _edge_rank(band, direction, settings) / (band.latents + 1)


def outside_p(
    count: int,
    measured: int,
    band: Band,
    direction: Direction,
    settings: EffectSettings,
) -> float:
    """Returns the chance that `count` or more of `measured` latents would lie beyond
    the edge that matters if they were random latents; NaN without a band.

    The number beyond the r-th of R exchangeable latents is beta-binomial, with r and
    R + 1 − r.
    """
    if not band.latents:
        return np.nan
    rank = _edge_rank(band, direction, settings)
    rest = band.latents + 1 - rank
    return float(stats.betabinom.sf(count - 1, measured, rank, rest))


def _edge_rank(band: Band, direction: Direction, settings: EffectSettings) -> float:
    """Returns the rank of the edge that matters among the random latents, from its own
    end; an interpolated percentile has one between two latents.
    """
    low, high = settings.band
    tail = low if direction == "away" else 100 - high
    return tail / 100 * (band.latents - 1) + 1


def beyond_random_p(study: SteeredDirection) -> np.ndarray:
    """Returns one p-value per latent, one-sided: (1 + random latents that changed as
    much on the side that matters) / (1 + random latents).

    Its null is the figure's: no more than a random direction at its own largest
    coherent strength. It can be no smaller than 1 / (1 + random latents), where
    `sign_flip_p` (null: no change at all) can. NaN for an unmeasured latent.
    """
    sign = 1.0 if study.direction == "toward" else -1.0
    change_k = sign * study.change()
    random_r = change_k[study.rows(study.methods[RANDOM])]
    random_r = random_r[~np.isnan(random_r)]
    # Equal changes differ in their last bits.
    as_much_k = (random_r[None] >= change_k[:, None] - 1e-12).sum(1)
    p_k = (1 + as_much_k) / (1 + len(random_r))
    return np.where(np.isnan(change_k), np.nan, p_k)
