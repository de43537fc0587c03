"""The ground truth of every latent: what steering with it and ablating it do to the
behaviour's rate, by exact probabilities (docs/method.md, Ground truth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_attr.hooks import Add, SetProjection, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.organism.exact import PromptPaths, exact_rates

# Strengths, in mean lengths of the activation; at 0.7 hardly a latent leaves so small a
# model coherent.
GRID = (0.2, 0.3, 0.4, 0.5)
BUDGET = 0.10  # of coherence that may be lost


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The measured effect of every latent.

    Args:
      effect_n: change of the behaviour's rate in the intended direction: a fall for
        steering away or ablation, a rise for steering toward.
      strength_n: signed strength in mean lengths; 0 where every one of the grid cost
        too much coherence (effect 0), NaN for ablation.
      loss_n: coherence lost on the prompts that were scored.
      base: the rate without an edit.
    """

    effect_n: np.ndarray
    strength_n: np.ndarray
    loss_n: np.ndarray
    base: float


def steering_ground_truth(
    params: Params,
    strength_prompts: PromptPaths,
    effect_prompts: PromptPaths,
    dec_nd: Any,
    norm: float,
    *,
    cfg: LMConfig,
    site: Site,
    sign: int,
    grid: Sequence[float] = GRID,
    budget: float = BUDGET,
) -> GroundTruth:
    """Steers with every latent at once: chooses the strength of the largest effect
    within the budget, and measures its effect on other prompts.

    Args:
      strength_prompts, effect_prompts: that strengths are chosen on, and others that
        effects are measured on.
      dec_nd: unit decoder rows.
      norm: mean length of the site's activation.
      sign: -1 steers away, +1 toward.
    """
    n = len(dec_nd)

    def rates(prompts: PromptPaths, strength_n: np.ndarray) -> list[np.ndarray]:
        scale_n = np.asarray(strength_n * norm, np.float32)
        return _means(_steered(params, prompts, dec_nd, scale_n, cfg=cfg, site=site))

    unsteered_n = np.zeros(n)
    behaviour_n, coherent_n = rates(strength_prompts, unsteered_n)
    steered = [rates(strength_prompts, np.full(n, sign * c)) for c in grid]
    effect_cn = np.stack([sign * (steered_n - behaviour_n) for steered_n, _ in steered])
    loss_cn = np.stack([coherent_n - steered_n for _, steered_n in steered])
    allowed_cn = np.where(loss_cn <= budget, effect_cn, -np.inf)
    largest_n = sign * np.asarray(grid)[allowed_cn.argmax(0)]
    strength_n = np.where(np.isfinite(allowed_cn.max(0)), largest_n, 0.0)
    before_n, coherent_before_n = rates(effect_prompts, unsteered_n)
    after_n, coherent_after_n = rates(effect_prompts, strength_n)
    return GroundTruth(
        effect_n=sign * (after_n - before_n),
        strength_n=strength_n,
        loss_n=coherent_before_n - coherent_after_n,
        base=float(before_n[0]),
    )


def ablation_ground_truth(
    params: Params,
    effect_prompts: PromptPaths,
    dec_nd: Any,
    mean_d: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
) -> GroundTruth:
    """Sets every latent's projection to its mean at all tokens but BOS, one latent at a
    time, and measures the fall of the behaviour's rate.
    """
    n, length = len(dec_nd), np.shape(effect_prompts.tokens_pmt)[2]
    value_n = np.asarray(np.asarray(dec_nd) @ mean_d, np.float32)

    def rates(where_t: np.ndarray) -> list[np.ndarray]:
        where_nt = np.broadcast_to(where_t, (n, length))
        effects = _ablated(
            params, effect_prompts, dec_nd, value_n, where_nt, cfg=cfg, site=site
        )
        return _means(effects)

    # Nothing ablated is the same program with an empty mask, so that both are rounded
    # alike.
    before_n, coherent_before_n = rates(np.zeros(length, bool))
    after_n, coherent_after_n = rates(np.arange(length) > 0)
    return GroundTruth(
        effect_n=before_n - after_n,
        strength_n=np.full(n, np.nan),
        loss_n=coherent_before_n - coherent_after_n,
        base=float(before_n[0]),
    )


@partial(jax.jit, static_argnames=("cfg", "site"))
def _steered(
    params: Params,
    prompts: PromptPaths,
    dec_nd: Any,
    scale_n: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    edits = {site: Add(dec_nd, scale_n)}
    return exact_rates(params, prompts, edits, cfg=cfg, rows=len(dec_nd))


@partial(jax.jit, static_argnames=("cfg", "site"))
def _ablated(
    params: Params,
    prompts: PromptPaths,
    dec_nd: Any,
    value_n: Any,
    where_nt: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    edits = {site: SetProjection(dec_nd, value_n, where_nt)}
    return exact_rates(params, prompts, edits, cfg=cfg, rows=len(dec_nd))


def _means(rates: tuple[Any, Any]) -> list[np.ndarray]:
    """Returns behaviour and coherence of every row, mean over prompts, float64."""
    return [np.asarray(x_kp, np.float64).mean(1) for x_kp in rates]
