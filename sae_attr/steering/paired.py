"""Steered and unsteered answers, pair by pair: differences by latent and prompt, and
the prompts drawn again.

They share prompt and random key. Prompts are the unit that was sampled; where several
belong together (phrasings of one belief), their group is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class EffectSettings:
    """Settings of effects that the method leaves open.

    Args:
      weighing: "prompts": the mean over prompts of the mean over a prompt's pairs, so
        that a prompt that lost pairs counts as much as another; "pairs": the mean over
        all pairs. The two agree where nothing is missing.
      most_missing: a latent that lost more than this share of the answers whose
        unsteered partner is graded is not measured: what is left of its answers shows
        what survived, not what steering did.
      level: of the bootstrap intervals (percentile).
      resamples: of the bootstrap.
      flips: random sign flips per latent; all of them are taken instead where there are
        no more than this. One latent among n has no q-value below n / (1 + flips).
      permutations: random relabellings of latents in comparisons of methods.
      band: percentiles of random latents' changes.
      resampled: what the intervals of methods' counts and means draw again: "prompts",
        "latents" or both. Both are about new prompts and new latents alike, and rather
        too wide than too narrow.
      seed: of all of these draws, which do not depend on the latents.
    """

    weighing: Literal["prompts", "pairs"] = "prompts"
    most_missing: float = 0.5
    level: float = 0.95
    resamples: int = 2000
    flips: int = 10_000
    permutations: int = 10_000
    band: tuple[float, float] = (5.0, 95.0)
    resampled: tuple[str, ...] = ("prompts", "latents")
    seed: int = 0


DEFAULT = EffectSettings()


@dataclass(frozen=True, eq=False)
class Paired:
    """Differences steered − unsteered by latent and prompt, or by latent and group of
    prompts.

    Args:
      diff_kp: mean over the prompt's pairs, 0 where it has none.
      weight_kp: the prompt's weight, 0 where it has no pair.
      base_kp: mean unsteered value over the same pairs.
      pairs_kp: number of pairs.
      samples: pairs there would be in a full prompt.
    """

    diff_kp: np.ndarray
    weight_kp: np.ndarray
    base_kp: np.ndarray
    pairs_kp: np.ndarray
    samples: int

    def at(self, rows_k: np.ndarray) -> Paired:
        """Returns the same for some of the latents."""
        return Paired(
            self.diff_kp[rows_k],
            self.weight_kp[rows_k],
            self.base_kp[rows_k],
            self.pairs_kp[rows_k],
            self.samples,
        )


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    # float64: equal sums in another order must agree to 1e-12, where p-values compare.
    values = np.asarray(values, np.float64)
    present = values[~np.isnan(values)]
    if present.size and (present.min() < 0 or present.max() > 1):
        raise ValueError(
            f"{name} holds values from {present.min()} to {present.max()}; give 0 to "
            "1, NaN where missing"
        )
    return values


def paired(
    behaviour_kps: np.ndarray,
    base_ps: np.ndarray,
    *,
    settings: EffectSettings = DEFAULT,
    group_p: np.ndarray | None = None,
) -> Paired:
    """Pairs steered with unsteered completions; a pair with NaN on either side is left
    out.

    A latent that lost more than `settings.most_missing` of its pairs has no weight at
    all, which makes it unmeasured.

    Args:
      behaviour_kps: 0, 1 or a probability, NaN where excluded or missing; latents,
        prompts, samples.
      base_ps: the same without steering, under the same random keys.
      group_p: number of every prompt's group, from 0; None: each prompt by itself.
        Prompts of a group are put together, so that intervals, errors and tests are
        over groups, and means over prompts stay what they are.

    Raises:
      ValueError: shapes that do not fit, or values outside 0 to 1.
    """
    steered = _checked("behaviour_kps", behaviour_kps)
    base = _checked("base_ps", base_ps)
    if steered.ndim != 3 or steered.shape[1:] != base.shape:
        raise ValueError(
            f"behaviour_kps has shape {steered.shape} and base_ps {base.shape}; "
            "prompts and samples (the last two axes) "
            "must agree"
        )
    # Both sides or neither: the mean of what survived steering, minus the mean of all
    # unsteered answers, would also measure which prompts survived.
    paired_kps = ~np.isnan(steered) & ~np.isnan(base)
    pairs_kp = paired_kps.sum(-1)

    def mean(values_kps: np.ndarray) -> np.ndarray:
        total_kp = np.where(paired_kps, values_kps, 0.0).sum(-1)
        return total_kp / np.maximum(pairs_kp, 1)

    weight_kp = pairs_kp.astype(np.float64)
    if settings.weighing == "prompts":
        weight_kp = (pairs_kp > 0).astype(np.float64)
    possible = (~np.isnan(base)).sum()
    too_few_k = pairs_kp.sum(1) < (1 - settings.most_missing) * possible
    weight_kp[too_few_k] = 0.0
    pairs = Paired(
        mean(steered - base),
        weight_kp,
        mean(np.broadcast_to(base, steered.shape)),
        pairs_kp,
        base.shape[1],
    )
    return pairs if group_p is None else by_group(pairs, group_p)


def by_group(pairs: Paired, group_p: np.ndarray) -> Paired:
    """Returns differences by latent and group, each the weighted mean of its prompts."""
    member_pg = np.equal.outer(group_p, np.arange(group_p.max() + 1)).astype(np.float64)
    weight_kg = pairs.weight_kp @ member_pg

    def mean(values_kp: np.ndarray) -> np.ndarray:
        total_kg = (values_kp * pairs.weight_kp) @ member_pg
        return np.divide(
            total_kg, weight_kg, np.zeros_like(total_kg), where=weight_kg > 0
        )

    return Paired(
        mean(pairs.diff_kp),
        weight_kg,
        mean(pairs.base_kp),
        (pairs.pairs_kp @ member_pg).astype(int),
        pairs.samples,
    )


def weighted_mean(
    values_kp: np.ndarray, weight_kp: np.ndarray, counts_bp: np.ndarray | None = None
) -> np.ndarray:
    """Returns the weighted mean over prompts, `[k]`, or `[b, k]` with prompts counted
    `counts_bp` times; NaN where no weight is left.
    """
    counts = np.ones((1, values_kp.shape[1])) if counts_bp is None else counts_bp
    total = counts @ weight_kp.T
    out = np.divide(
        counts @ (values_kp * weight_kp).T,
        total,
        out=np.full(total.shape, np.nan),
        where=total > 0,
    )
    return out[0] if counts_bp is None else out


def prompt_draws(prompts: int, *, settings: EffectSettings = DEFAULT) -> np.ndarray:
    """Draws how often each prompt is in each resample, `[resamples, prompts]`; the same
    for every latent.
    """
    # Not scipy.stats.bootstrap: counts, band and means of all latents and methods need
    # the SAME draws, which one product counts_bp @ values_pk gives them. It would
    # materialise [latents, resamples, prompts], draw for each statistic anew, and give
    # NaN where a single resample lost all of a latent's pairs.
    rng = np.random.default_rng([settings.seed, 1])
    picks_bp = rng.integers(0, prompts, (settings.resamples, prompts))
    flat = picks_bp + prompts * np.arange(settings.resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=settings.resamples * prompts)
    return counts.reshape(settings.resamples, prompts).astype(np.float64)


def interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the percentile interval over the first axis; resamples in which nothing
    was left are ignored.
    """
    bare = np.isnan(draws).all(0)
    if not bare.size:
        return np.full(bare.shape, np.nan), np.full(bare.shape, np.nan)
    # nanquantile warns where all is NaN; such columns are 0 meanwhile.
    low, high = np.nanquantile(
        np.where(bare, 0.0, draws), [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    return np.where(bare, np.nan, low), np.where(bare, np.nan, high)
