"""What chance does to a comparison of methods: changes under resampled prompts and
latents, and labels exchanged at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae_attr.steering.paired import (
    EffectSettings,
    prompt_draws,
    weighted_mean,
)
from sae_attr.steering.random_band import RANDOM, SteeredDirection, band_edges

# Each kind of draw has a stream of its own, so that none depends on whether another
# was made.
_LATENT_STREAM, _PERMUTATION_STREAM = 3, 4
RANDOM_STRATUM = 0


def mean_of_measured(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis, unmeasured latents left out; NaN where none
    is measured.
    """
    measured = ~np.isnan(values)
    count = measured.sum(-1)
    total = np.where(measured, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def joined(values: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Returns `values` `[..., m]` followed by `shared` `[n]` or `[..., n]`."""
    shape = (*values.shape[:-1], shared.shape[-1])
    return np.concatenate([values, np.broadcast_to(shared, shape)], axis=-1)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Changes `[b, k]` under resampled prompts, and the band's edges `[b, 1]` under
    resampled random latents.
    """

    change_bk: np.ndarray
    low_b1: np.ndarray
    high_b1: np.ndarray

    def of(
        self, rows_m: np.ndarray, stratum: int, settings: EffectSettings
    ) -> np.ndarray:
        """Returns changes `[b, m]` of these latents, each drawn again from among
        them.
        """
        rows_bm = drawn_rows(rows_m, len(self.change_bk), stratum, settings)
        return np.take_along_axis(self.change_bk, rows_bm, axis=1)


def resampled(study: SteeredDirection, settings: EffectSettings) -> Resampled:
    """Returns a direction's changes and band under resampled prompts and latents.

    Raises:
      ValueError: settings that resample something else.
    """
    unknown = set(settings.resampled) - {"prompts", "latents"}
    if unknown:
        raise ValueError(
            f"resampled names {sorted(unknown)}; it may hold 'prompts' and 'latents'"
        )
    pairs = study.pairs
    # The same prompts for every latent, random ones included: what a prompt does to all
    # latents alike then cancels in the differences of methods.
    counts_bp = prompt_draws(pairs.diff_kp.shape[1], settings=settings)
    if "prompts" not in settings.resampled:
        counts_bp = np.ones_like(counts_bp)
    change_bk = weighted_mean(pairs.diff_kp, pairs.weight_kp, counts_bp)
    random_rows = study.rows(study.methods[RANDOM])
    rows_br = drawn_rows(random_rows, len(change_bk), RANDOM_STRATUM, settings)
    random_br = np.take_along_axis(change_bk, rows_br, axis=1)
    # The band is drawn again with the latents: its edges come from a sample too.
    bare_b = np.isnan(random_br).all(1)
    random_br[bare_b] = 0.0
    # Without an edge nothing is outside.
    low_b, high_b = np.where(bare_b, np.nan, band_edges(random_br, settings))
    return Resampled(change_bk, low_b[:, None], high_b[:, None])


def drawn_rows(
    rows_m: np.ndarray, resamples: int, stratum: int, settings: EffectSettings
) -> np.ndarray:
    """Returns rows `[b, m]`, drawn with replacement where latents are resampled."""
    shape = (resamples, len(rows_m))
    if "latents" not in settings.resampled or not len(rows_m):
        return np.broadcast_to(rows_m, shape)
    rng = np.random.default_rng([settings.seed, _LATENT_STREAM, stratum])
    return rows_m[rng.integers(0, len(rows_m), shape)]


def permutation_p(
    values_a: np.ndarray,
    values_b: np.ndarray,
    shared: np.ndarray,
    settings: EffectSettings,
) -> float:
    """Returns the two-sided p-value of the difference of means of (a and shared) and (b
    and shared) when labels of a and b are exchanged; NaN where it is not defined.
    """
    if not len(values_a) or not len(values_b):
        return float("nan")

    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first = mean_of_measured(joined(a, shared))
        return first - mean_of_measured(joined(b, shared))

    # A latent of both methods keeps both labels: exchanged, it would change neither mean.
    observed = difference(values_a, values_b)
    if np.isnan(observed):
        return float("nan")
    pooled, permutations = np.concatenate([values_a, values_b]), settings.permutations
    rng = np.random.default_rng([settings.seed, _PERMUTATION_STREAM])
    repeated = np.broadcast_to(pooled, (permutations, len(pooled)))
    shuffled = rng.permuted(repeated, axis=1)
    drawn = difference(shuffled[:, : len(values_a)], shuffled[:, len(values_a) :])
    # Equal differences differ in their last bits.
    # The 1 is the observed labelling, itself one of the permutations: p is never 0.
    as_large = (np.abs(drawn) >= np.abs(observed) - 1e-12).sum()
    return float((1 + as_large) / (1 + permutations))
