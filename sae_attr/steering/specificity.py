"""Whether a latent moves one behaviour or everything: the changes of its steering on
other sets of prompts, beside those on the prompts that effects are measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.comparison_records import (
    Direction,
    DirectionsControl,
    Estimate,
    SetMean,
)
from sae_attr.steering.groups import group_draws, group_interval
from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    interval,
    paired,
    weighted_mean,
)
from sae_attr.steering.random_band import band_edges
from sae_attr.steering.resampling import drawn_rows, mean_of_measured, permutation_p

_METHOD_STRATUM = 1


@dataclass(frozen=True, eq=False)
class SetChanges:
    """Holds what steering changes on one set of prompts, a latent a row; NaN where a
    latent was not steered.

    Args:
      name: of the set.
      base: the rate without steering.
      change_k, low_k, high_k: change of the rate with its bootstrap interval over
        groups of prompts.
      change_bk: the same under resampled groups.
    """

    name: str
    base: Estimate
    change_k: np.ndarray
    low_k: np.ndarray
    high_k: np.ndarray
    change_bk: np.ndarray


def set_changes(
    name: str,
    rate_kp: np.ndarray,
    base_p: np.ndarray,
    group_p: np.ndarray,
    *,
    settings: EffectSettings = DEFAULT,
) -> SetChanges:
    """Computes the changes of the rate on one set of prompts.

    Args:
      rate_kp: exact rate under steering; latents, prompts; NaN where it is not known.
      base_p: the same without steering.
      group_p: `groups.group_numbers` of the prompts.

    Raises:
      ValueError: shapes that do not fit, or values outside 0 to 1.
    """
    pairs = paired(rate_kp[..., None], base_p[:, None], settings=settings)
    counts_bp = group_draws(group_p, settings=settings)
    change_bk = weighted_mean(pairs.diff_kp, pairs.weight_kp, counts_bp)
    low_k, high_k = group_interval(change_bk, group_p, settings=settings)
    return SetChanges(
        name,
        mean_rate(base_p, group_p, settings=settings),
        weighted_mean(pairs.diff_kp, pairs.weight_kp),
        low_k,
        high_k,
        change_bk,
    )


def mean_rate(
    rate_p: np.ndarray, group_p: np.ndarray, *, settings: EffectSettings = DEFAULT
) -> Estimate:
    """Returns the mean of a rate over prompts, those without one left out; its interval
    draws whole groups.
    """
    known_p = np.isfinite(rate_p)
    rates_1p = np.where(known_p, rate_p, 0.0)[None]
    weight_1p = known_p[None].astype(np.float64)
    counts_bp = group_draws(group_p, settings=settings)
    value = weighted_mean(rates_1p, weight_1p)[0]
    drawn_b = weighted_mean(rates_1p, weight_1p, counts_bp)[:, 0]
    low, high = group_interval(drawn_b, group_p, settings=settings)
    return Estimate(float(value), float(low), float(high))


# ---- methods -------------------------------------------------------------------------


def set_means(
    direction: Direction,
    sets: Sequence[SetChanges],
    rows: Mapping[str, np.ndarray],
    *,
    settings: EffectSettings = DEFAULT,
) -> tuple[SetMean, ...]:
    """Averages the changes of every method's latents on every set.

    Intervals draw groups of prompts, of each set by itself, and latents, the same ones
    on every set.

    Args:
      sets: the effects' prompts first, then the probes.
      rows: method -> the rows of its latents.
    """
    means = []
    for method, rows_m in rows.items():
        drawn_bm = drawn_rows(rows_m, settings.resamples, _METHOD_STRATUM, settings)
        effect, effect_b = _means(sets[0], rows_m, drawn_bm)
        on_effects = _estimate(effect, effect_b, settings)
        for k, changes in enumerate(sets):
            change, change_b = _means(changes, rows_m, drawn_bm)
            ratio = Estimate()
            # Of a change that may be 0 the ratio may be anything.
            if k and on_effects.is_clear:
                ratio = _estimate(change / effect, change_b / effect_b, settings)
            measured = int(np.isfinite(changes.change_k[rows_m]).sum())
            estimate = _estimate(change, change_b, settings)
            means.append(
                SetMean(method, direction, changes.name, measured, estimate, ratio)
            )
    return tuple(means)


def text_means(
    cost_k: np.ndarray,
    rows: Mapping[str, np.ndarray],
    *,
    settings: EffectSettings = DEFAULT,
) -> dict[str, Estimate]:
    """Returns method -> the mean cost of its latents on ordinary text, nats per token;
    the interval draws latents.
    """
    means = {}
    for method, rows_m in rows.items():
        drawn_bm = drawn_rows(rows_m, settings.resamples, _METHOD_STRATUM, settings)
        value = float(mean_of_measured(cost_k[rows_m]))
        means[method] = _estimate(value, mean_of_measured(cost_k[drawn_bm]), settings)
    return means


def _means(
    changes: SetChanges, rows_m: np.ndarray, drawn_bm: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns the mean change of some latents, and the same under resampling."""
    change_bm = np.take_along_axis(changes.change_bk, drawn_bm, axis=1)
    value = float(mean_of_measured(changes.change_k[rows_m]))
    return value, mean_of_measured(change_bm)


def _estimate(value: float, drawn_b: np.ndarray, settings: EffectSettings) -> Estimate:
    low, high = interval(drawn_b, settings.level)
    return Estimate(value, float(low), float(high))


# ---- any direction -------------------------------------------------------------------


def gaussian_directions(count: int, width: int, seed: int) -> np.ndarray:
    """Draws `count` directions of unit length, uniform on the sphere, float32
    `[count, width]`.
    """
    rng = np.random.default_rng([seed, count, width])
    rows_kd = rng.standard_normal((count, width))
    norms_k1 = np.linalg.norm(rows_kd, axis=1, keepdims=True)
    return (rows_kd / norms_k1).astype(np.float32)


def directions_control(
    direction: Direction,
    strength: float,
    directions: SetChanges,
    random_k: np.ndarray,
    *,
    settings: EffectSettings = DEFAULT,
) -> DirectionsControl:
    """Compares Gaussian directions with random latents of the dictionary.

    Args:
      strength: of the directions, in units of the site's mean norm.
      directions: their changes on the effects' prompts.
      random_k: changes of random latents there; NaN where not measured.
    """
    change_k = directions.change_k[np.isfinite(directions.change_k)]
    random_k = random_k[np.isfinite(random_k)]
    nobody = np.zeros(0)
    return DirectionsControl(
        direction=direction,
        strength=strength,
        directions=len(change_k),
        latents=len(random_k),
        of_directions=_spread(change_k, settings),
        of_latents=_spread(random_k, settings),
        p=permutation_p(change_k, random_k, nobody, settings),
    )


def _spread(change_k: np.ndarray, settings: EffectSettings) -> Estimate:
    """Returns the mean change, and the percentiles of single ones."""
    if not len(change_k):
        return Estimate()
    low, high = band_edges(change_k, settings)
    return Estimate(float(change_k.mean()), float(low), float(high))
