"""Methods against random latents and against each other: counts outside the random
band, mean effects, and what chance does.

In each direction one side matters: steering away should lower the rate of the
  behaviour, steering toward raise it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from sae_attr.records import Direction, MethodCount, MethodDifference
from sae_attr.steering.effects import (
    DEFAULT,
    EffectSettings,
    LatentEffects,
    Paired,
    false_discovery,
    interval,
    prompt_draws,
    weighted_mean,
)

RANDOM = "random"


@dataclass(frozen=True)
class Band:
    """The typical range of random latents' changes. latents: how many were measured;
    without any, low and high are NaN.
    """

    low: float
    high: float
    latents: int


@dataclass(frozen=True, eq=False)
class SteeredDirection:
    """One direction of one study: which latents were steered, what changed, and who
    chose them.

    latents_k: ids of the rows of `pairs`; no two alike. methods: name -> latents it
      chose, best first; "random" must be there.
    """

    direction: Direction
    latents_k: np.ndarray
    pairs: Paired
    methods: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        ids = [int(i) for i in self.latents_k]
        if len(set(ids)) < len(ids):
            raise ValueError(
                "latents_k names a latent twice; merge the methods' selections before "
                "steering"
            )
        if len(ids) != len(self.pairs.diff_kp):
            raise ValueError(
                f"{len(ids)} latents, but pairs of {len(self.pairs.diff_kp)}"
            )
        if RANDOM not in self.methods:
            raise ValueError(
                f"methods are {sorted(self.methods)}; without {RANDOM!r} there is no "
                "band"
            )
        for name, chosen in self.methods.items():
            if unknown := sorted({int(i) for i in chosen} - set(ids)):
                raise ValueError(
                    f"{name} chose latents that were not steered {self.direction}: "
                    f"{unknown[:5]}"
                )

    def rows(self, latents: Sequence[int]) -> np.ndarray:
        """Rows of latents in `pairs`."""
        at = {int(latent): k for k, latent in enumerate(self.latents_k)}
        return np.array([at[int(i)] for i in latents], np.int64)

    def change(self) -> np.ndarray:
        """Change per latent `[k]`."""
        return weighted_mean(self.pairs.diff_kp, self.pairs.weight_kp)


def _edges(random_r: np.ndarray, settings: EffectSettings) -> np.ndarray:
    """The band's edges `[2, ...]` over the last axis, unmeasured latents left out."""
    if np.isnan(random_r).all():
        return np.full((2, *random_r.shape[:-1]), np.nan)
    quantile = (
        np.nanpercentile if np.isnan(random_r).any() else np.percentile
    )  # the first goes row by row
    return quantile(random_r, settings.band, axis=-1)


def random_band(study: SteeredDirection, *, settings: EffectSettings = DEFAULT) -> Band:
    """The percentiles `settings.band` of random latents' changes (method, section 6);
    NaN where none was measured.
    """
    random_r = study.change()[study.rows(study.methods[RANDOM])]
    measured = int((~np.isnan(random_r)).sum())
    if not measured:
        return Band(np.nan, np.nan, 0)
    low, high = _edges(random_r, settings)
    return Band(float(low), float(high), measured)


def outside(
    change_k: np.ndarray, low: Any, high: Any, direction: Direction
) -> np.ndarray:
    """Whether a change lies outside the band on the side that matters; a latent on the
    edge or unmeasured is inside.
    """
    return change_k < low if direction == "away" else change_k > high


def beyond_random_p(study: SteeredDirection) -> np.ndarray:
    """Per latent, one-sided: (1 + random latents that changed as much on the side that
    matters) / (1 + random latents).

    Its null is the figure's: no more than a random direction at its own largest
    coherent strength. It can be no smaller than 1 / (1 + random latents), where
    `sign_flip_p` (null: no change at all) can. NaN for an unmeasured latent.
    """
    sign = 1.0 if study.direction == "toward" else -1.0
    change_k = sign * study.change()
    random_r = change_k[study.rows(study.methods[RANDOM])]
    random_r = random_r[~np.isnan(random_r)]
    as_much = (random_r[None] >= change_k[:, None] - 1e-12).sum(1)
    return np.where(np.isnan(change_k), np.nan, (1 + as_much) / (1 + len(random_r)))


def _expected(
    measured: int, band: Band, direction: Direction, settings: EffectSettings
) -> float:
    """Random latents expected beyond the edge: an interpolated percentile of R draws
    leaves more than its nominal share out.
    """
    if not band.latents:
        return np.nan
    tail = settings.band[0] if direction == "away" else 100 - settings.band[1]
    return measured * (tail / 100 * (band.latents - 1) + 1) / (band.latents + 1)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Changes `[b, k]` under resampled prompts, and the band's edges `[b, 1]` under
    resampled random latents.
    """

    change_bk: np.ndarray
    low_b1: np.ndarray
    high_b1: np.ndarray

    def of(
        self, rows_m: np.ndarray, stratum: int, settings: EffectSettings
    ) -> np.ndarray:
        """Changes `[b, m]` of these latents, each drawn again from among them."""
        return np.take_along_axis(
            self.change_bk,
            _again(rows_m, len(self.change_bk), stratum, settings),
            axis=1,
        )


def _again(
    rows_m: np.ndarray, resamples: int, stratum: int, settings: EffectSettings
) -> np.ndarray:
    """Rows `[b, m]`, drawn with replacement where latents are resampled."""
    if "latents" not in settings.resampled or not len(rows_m):
        return np.broadcast_to(rows_m, (resamples, len(rows_m)))
    rng = np.random.default_rng([settings.seed, 3, stratum])
    return rows_m[rng.integers(0, len(rows_m), (resamples, len(rows_m)))]


def _draws(study: SteeredDirection, settings: EffectSettings) -> _Draws:
    if unknown := set(settings.resampled) - {"prompts", "latents"}:
        raise ValueError(
            f"resampled names {sorted(unknown)}; it may hold 'prompts' and 'latents'"
        )
    pairs = study.pairs
    counts_bp = prompt_draws(pairs.diff_kp.shape[1], settings=settings)
    if "prompts" not in settings.resampled:
        counts_bp = np.ones_like(counts_bp)
    change_bk = weighted_mean(pairs.diff_kp, pairs.weight_kp, counts_bp)
    rows_br = _again(study.rows(study.methods[RANDOM]), len(change_bk), 0, settings)
    random_br = np.take_along_axis(change_bk, rows_br, axis=1)
    bare_b = np.isnan(random_br).all(1)
    random_br[bare_b] = 0.0
    low_b, high_b = np.where(
        bare_b, np.nan, _edges(random_br, settings)
    )  # without an edge nothing is outside
    return _Draws(change_bk, low_b[:, None], high_b[:, None])


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, unmeasured latents left out; NaN where none is measured."""
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.where(
        n > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan
    )


def method_counts(
    study: SteeredDirection, *, settings: EffectSettings = DEFAULT
) -> tuple[MethodCount, ...]:
    """The headline: latents outside the random band and the mean effect, for every
    method and for the random latents.
    """
    band = random_band(study, settings=settings)
    draws = _draws(study, settings)
    change_k = study.change()
    found = []
    for name, chosen in study.methods.items():
        rows = study.rows(chosen)
        change = change_k[rows]
        low, high = interval(
            _mean(draws.of(rows, 0 if name == RANDOM else 1, settings)), settings.level
        )
        measured = int((~np.isnan(change)).sum())
        sides = {
            d: int(outside(change, band.low, band.high, d).sum())
            for d in ("away", "toward")
        }
        found.append(
            MethodCount(
                method=name,
                direction=study.direction,
                chosen=len(rows),
                measured=measured,
                outside=sides[study.direction],
                other_side=sides["toward" if study.direction == "away" else "away"],
                expected=_expected(measured, band, study.direction, settings),
                mean=float(_mean(change)),
                low=float(low),
                high=float(high),
            )
        )
    return tuple(found)


def _relabelled(
    only: np.ndarray, first: int, permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`only` `[m]` split at random into `first` and the rest, `[permutations, ·]` each."""
    rng = np.random.default_rng([seed, 4])
    shuffled = rng.permuted(np.broadcast_to(only, (permutations, len(only))), axis=1)
    return shuffled[:, :first], shuffled[:, first:]


def _permutation_p(
    values_a: np.ndarray,
    values_b: np.ndarray,
    both: np.ndarray,
    settings: EffectSettings,
) -> float:
    """Two-sided p-value of the difference of means of (a and both) and (b and both)
    when labels of a and b are exchanged.
    """
    statistic = lambda a, b: _mean(_with(a, both)) - _mean(_with(b, both))
    if not len(values_a) or not len(values_b):
        return float("nan")
    seen = statistic(values_a, values_b)
    if np.isnan(seen):
        return float("nan")
    drawn = statistic(
        *_relabelled(
            np.concatenate([values_a, values_b]),
            len(values_a),
            settings.permutations,
            settings.seed,
        )
    )
    return float(
        (1 + (np.abs(drawn) >= np.abs(seen) - 1e-12).sum())
        / (1 + settings.permutations)
    )


def _with(values: np.ndarray, both: np.ndarray) -> np.ndarray:
    """`values` `[..., m]` followed by `both` `[n]` or `[..., n]`."""
    return np.concatenate(
        [values, np.broadcast_to(both, (*values.shape[:-1], both.shape[-1]))], axis=-1
    )


def difference(
    study: SteeredDirection,
    first: str,
    second: str,
    *,
    settings: EffectSettings = DEFAULT,
    draws: _Draws | None = None,
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
    draws = _draws(study, settings) if draws is None else draws
    if RANDOM in (first, second):
        raise ValueError(
            "random latents make the band; `method_counts` states what to expect of "
            "them"
        )
    a, b = (
        dict.fromkeys(int(i) for i in study.methods[name]) for name in (first, second)
    )
    shared = tuple(sorted(a.keys() & b.keys()))
    parts = [
        study.rows(x)
        for x in ([i for i in a if i not in b], [i for i in b if i not in a], shared)
    ]
    band, change_k = random_band(study, settings=settings), study.change()
    hit_k = np.where(
        np.isnan(change_k),
        np.nan,
        outside(change_k, band.low, band.high, study.direction).astype(np.float64),
    )
    hits = [hit_k[rows] for rows in parts]
    n_a, n_b, n_both = (int(np.nansum(x)) for x in hits)
    count_low, count_high, mean_low, mean_high = _difference_intervals(
        draws, parts, study.direction, settings
    )
    changes = [change_k[rows] for rows in parts]
    return MethodDifference(
        direction=study.direction,
        first=first,
        second=second,
        count=n_a - n_b,
        count_low=count_low,
        count_high=count_high,
        count_p=_permutation_p(hits[0], hits[1], hits[2], settings),
        count_q=float("nan"),
        mean=float(
            _mean(_with(changes[0], changes[2])) - _mean(_with(changes[1], changes[2]))
        ),
        mean_low=mean_low,
        mean_high=mean_high,
        mean_p=_permutation_p(changes[0], changes[1], changes[2], settings),
        mean_q=float("nan"),
        shared=shared,
        shared_outside=n_both,
        only_first_outside=n_a,
        only_second_outside=n_b,
        resampled=settings.resampled,
    )


def _difference_intervals(
    draws: _Draws,
    parts: Sequence[np.ndarray],
    direction: Direction,
    settings: EffectSettings,
) -> tuple[float, float, float, float]:
    """Bootstrap intervals of the difference of counts and of means."""
    a, b, both = (
        draws.of(rows, stratum, settings) for stratum, rows in enumerate(parts, start=1)
    )
    hits = lambda x: outside(x, draws.low_b1, draws.high_b1, direction).sum(1)
    counts = interval((hits(a) - hits(b)).astype(np.float64), settings.level)
    means = interval(_mean(_with(a, both)) - _mean(_with(b, both)), settings.level)
    return float(counts[0]), float(counts[1]), float(means[0]), float(means[1])


def differences(
    study: SteeredDirection, *, settings: EffectSettings = DEFAULT
) -> tuple[MethodDifference, ...]:
    """Every two methods compared, the earlier one first; q-values are for `adjusted`,
    over all directions and studies.
    """
    names = [name for name in study.methods if name != RANDOM]
    draws = _draws(study, settings)
    return tuple(
        difference(study, a, b, settings=settings, draws=draws)
        for a, b in combinations(names, 2)
    )


def adjusted(found: Sequence[MethodDifference]) -> tuple[MethodDifference, ...]:
    """The same with q-values: Benjamini and Hochberg over the p-values of all counts
    and all means together.
    """
    q = false_discovery(
        np.array([[d.count_p for d in found], [d.mean_p for d in found]]).ravel()
    )
    return tuple(
        replace(d, count_q=float(c), mean_q=float(m))
        for d, c, m in zip(found, q[: len(found)], q[len(found) :])
    )


def panel_numbers(
    study: SteeredDirection,
    effects: LatentEffects,
    *,
    model: str,
    base_rate: float,
    settings: EffectSettings = DEFAULT,
) -> dict[str, Any]:
    """One panel of `figures.effects_figure`: the strips of all methods, random latents
    last, and the band.

    Args:
      study: what was steered. effects: of the same latents.
      model: name of the steered model. base_rate: its rate of the behaviour without
        steering.
    """
    band, (_, prompts) = (
        random_band(study, settings=settings),
        study.pairs.diff_kp.shape,
    )
    strips = []
    for name in sorted(study.methods, key=lambda n: n == RANDOM):
        rows = study.rows(study.methods[name])
        values = {
            "change": effects.change_k,
            "low": effects.low_k,
            "high": effects.high_k,
        }
        named = {key: x[rows].tolist() for key, x in values.items()}
        strips.append(
            {
                "method": name,
                "latents": [int(i) for i in study.latents_k[rows]],
                **named,
            }
        )
    return {
        "direction": study.direction,
        "model": model,
        "base_rate": float(base_rate),
        "prompts": prompts,
        "samples": study.pairs.samples,
        "band": [band.low, band.high] if band.latents else None,
        "strips": strips,
    }
