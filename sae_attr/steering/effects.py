"""Effects of steering: paired changes per latent, with what is missing left out,
intervals and p-values over prompts.

Steered and unsteered completions share prompt and random key, so they are compared pair
by pair. Prompts are the unit that was sampled: intervals resample whole prompts, and
p-values flip the signs of whole prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats


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
    """Differences steered − unsteered by latent and prompt.

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


@dataclass(frozen=True, eq=False)
class LatentEffects:
    """Effects of steering, one value a latent; float64, NaN where a latent has no pair.

    Args:
      change_k: change of the rate of the behaviour, a share.
      base_k, steered_k: the two rates over the same pairs.
      se_k: standard error over prompts; NaN with fewer than two.
      low_k, high_k: bootstrap interval; NaN with fewer than two prompts.
      p_zero_k: sign-flip p-value of no change at all, two-sided.
      q_zero_k: the same after Benjamini and Hochberg.
      pairs_k: pairs with both sides graded.
      missing_k: the share of pairs that are not.
      incoherence_k: change of the share of incoherent completions; NaN where coherence
        was not measured.
    """

    change_k: np.ndarray
    base_k: np.ndarray
    steered_k: np.ndarray
    se_k: np.ndarray
    low_k: np.ndarray
    high_k: np.ndarray
    p_zero_k: np.ndarray
    q_zero_k: np.ndarray
    pairs_k: np.ndarray
    missing_k: np.ndarray
    incoherence_k: np.ndarray


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
) -> Paired:
    """Pairs steered with unsteered completions; a pair with NaN on either side is left
    out.

    A latent that lost more than `settings.most_missing` of its pairs has no weight at
    all, which makes it unmeasured.

    Args:
      behaviour_kps: 0, 1 or a probability, NaN where excluded or missing; latents,
        prompts, samples.
      base_ps: the same without steering, under the same random keys.

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
    return Paired(
        mean(steered - base),
        weight_kp,
        mean(np.broadcast_to(base, steered.shape)),
        pairs_kp,
        base.shape[1],
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
    # nanquantile warns where all is NaN; such columns are 0 meanwhile.
    low, high = np.nanquantile(
        np.where(bare, 0.0, draws), [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    return np.where(bare, np.nan, low), np.where(bare, np.nan, high)


def _signs(prompts: int, settings: EffectSettings) -> tuple[np.ndarray, bool]:
    """Returns signs `[flips, prompts]`, and True if they are all that exist."""
    # All of them where they are few: then p is exact. 2**63 would not fit an int64.
    if prompts < 63 and 2**prompts <= settings.flips:
        bits = np.arange(2**prompts)[:, None] >> np.arange(prompts) & 1
        return 1.0 - 2.0 * bits, True
    rng = np.random.default_rng([settings.seed, 2])
    return 1.0 - 2.0 * rng.integers(0, 2, (settings.flips, prompts)), False


def sign_flip_p(
    pairs: Paired, *, settings: EffectSettings = DEFAULT, chunk: int = 256
) -> np.ndarray:
    """Returns one two-sided p-value per latent of the null that steering changes
    nothing: then each prompt's difference might as well be its negative.

    Exact for the mean over prompts where all flips are taken, else (1 + flips as
    extreme) / (1 + flips). NaN without a pair.
    """
    # Whole prompts flip, since samples of one prompt are not independent.
    signs_fp, complete = _signs(pairs.diff_kp.shape[1], settings)
    values_kp = pairs.diff_kp * pairs.weight_kp
    p_k = np.full(len(values_kp), np.nan)
    for start in range(0, len(values_kp), chunk):
        part = values_kp[start : start + chunk]
        # Equal sums differ in their last bits.
        slack = 1e-9 * np.abs(part).sum(1)
        extreme = (np.abs(signs_fp @ part.T) >= np.abs(part.sum(1)) - slack).sum(0)
        # Drawn flips count the observed one too, so that no p-value is 0.
        drawn = 0 if complete else 1
        p_k[start : start + chunk] = (drawn + extreme) / (drawn + len(signs_fp))
    return np.where(pairs.weight_kp.sum(1) > 0, p_k, np.nan)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Returns p-values after Benjamini and Hochberg (1995); NaN stays NaN and is no
    test.
    """
    p = np.asarray(p, np.float64)
    tested = ~np.isnan(p)
    q = np.full(p.shape, np.nan)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def _se(pairs: Paired, change_k: np.ndarray) -> np.ndarray:
    """Returns the standard error of a weighted mean over prompts (linearised; the usual s/√P where
    weights are equal).
    """
    w, p_k = pairs.weight_kp, (pairs.weight_kp > 0).sum(1)
    squares = ((w * (pairs.diff_kp - change_k[:, None])) ** 2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p_k > 1, np.sqrt(squares * p_k / (p_k - 1)) / w.sum(1), np.nan)


def latent_effects(
    behaviour_kps: np.ndarray,
    base_ps: np.ndarray,
    coherent_kps: np.ndarray | None = None,
    base_coherent_ps: np.ndarray | None = None,
    *,
    settings: EffectSettings = DEFAULT,
) -> LatentEffects:
    """Computes the change of the behaviour's rate per latent, with its uncertainty and
    what is missing.

    Args:
      behaviour_kps: 0, 1 or a probability, NaN where excluded or missing; latents,
        prompts, samples.
      base_ps: the same without steering.
      coherent_kps, base_coherent_ps: coherence in the same form, if known.

    Raises:
      ValueError: shapes that do not fit, or values outside 0 to 1.
    """
    pairs = paired(behaviour_kps, base_ps, settings=settings)
    change_k = weighted_mean(pairs.diff_kp, pairs.weight_kp)
    base_k = weighted_mean(pairs.base_kp, pairs.weight_kp)
    draws_bp = prompt_draws(base_ps.shape[0], settings=settings)
    draws_bk = weighted_mean(pairs.diff_kp, pairs.weight_kp, draws_bp)
    low_k, high_k = interval(draws_bk, settings.level)
    # One prompt drawn again and again has an interval of no width, which is no interval.
    one_prompt_k = (pairs.weight_kp > 0).sum(1) < 2
    low_k[one_prompt_k] = high_k[one_prompt_k] = np.nan
    p_k = sign_flip_p(pairs, settings=settings)
    # Paired by itself: an incoherent answer has no grade of the behaviour, so that the
    # graded pairs would hide what steering breaks.
    incoherence_k = np.full(len(change_k), np.nan)
    if coherent_kps is not None and base_coherent_ps is not None:
        coherent = paired(coherent_kps, base_coherent_ps, settings=settings)
        incoherence_k = -weighted_mean(coherent.diff_kp, coherent.weight_kp)
    n_k = pairs.pairs_kp.sum(1)
    return LatentEffects(
        change_k=change_k,
        base_k=base_k,
        steered_k=base_k + change_k,
        se_k=_se(pairs, change_k),
        low_k=low_k,
        high_k=high_k,
        p_zero_k=p_k,
        q_zero_k=false_discovery(p_k),
        pairs_k=n_k,
        missing_k=1 - n_k / np.asarray(base_ps).size,
        incoherence_k=incoherence_k,
    )


def detectable_effect(
    pairs: Paired, *, power: float = 0.8, level: float = 0.05
) -> float:
    """Returns the smallest true change that a latent's two-sided t-test over this many
    prompts finds with probability `power`.

    (t_{1−level/2} + t_{power}) · s / √P with P − 1 degrees of freedom; s² is the
    variance between prompts, averaged over the latents, and P the median number of
    prompts with a pair. NaN with fewer than two prompts or where nothing varied.
    """
    weighted_kp = pairs.weight_kp > 0
    p_k = weighted_kp.sum(1)
    diff = np.where(weighted_kp, pairs.diff_kp, np.nan)[p_k > 1]
    if not len(diff):
        return float("nan")
    variance = float(np.nanvar(diff, axis=1, ddof=1).mean())
    prompts = float(np.median(p_k[p_k > 1]))
    reach = stats.t.ppf(1 - level / 2, prompts - 1) + stats.t.ppf(power, prompts - 1)
    return float(reach * np.sqrt(variance / prompts)) if variance > 0 else float("nan")
