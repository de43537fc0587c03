"""Effects of steering: changes per latent, with intervals and p-values over prompts.

Intervals resample whole prompts, and p-values flip the signs of whole prompts; of
prompts that belong together (`paired.paired`), whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
    Paired,
    interval,
    paired,
    prompt_draws,
    weighted_mean,
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


def standard_error(pairs: Paired, change_k: np.ndarray) -> np.ndarray:
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
    group_p: np.ndarray | None = None,
) -> LatentEffects:
    """Computes the change of the behaviour's rate per latent, with its uncertainty and
    what is missing.

    Args:
      behaviour_kps: 0, 1 or a probability, NaN where excluded or missing; latents,
        prompts, samples.
      base_ps: the same without steering.
      coherent_kps, base_coherent_ps: coherence in the same form, if known.
      group_p: as for `paired`.

    Raises:
      ValueError: shapes that do not fit, or values outside 0 to 1.
    """
    pairs = paired(behaviour_kps, base_ps, settings=settings, group_p=group_p)
    change_k = weighted_mean(pairs.diff_kp, pairs.weight_kp)
    base_k = weighted_mean(pairs.base_kp, pairs.weight_kp)
    draws_bp = prompt_draws(pairs.diff_kp.shape[1], settings=settings)
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
        se_k=standard_error(pairs, change_k),
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
