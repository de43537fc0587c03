"""The ground truth of every latent: what steering with it and ablating it do to the
behaviour's rate, by exact probabilities (docs/method.md, Ground truth).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Add, SetProjection, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.organism.exact import PromptPaths, exact_rates

# Strengths, in mean lengths of the activation; at 0.7 hardly a latent leaves so small a
# model coherent.
GRID = (0.2, 0.3, 0.4, 0.5)
BUDGET = 0.10  # of coherence that may be lost
ROWS = 256  # edits of a batch: with more of them a CPU needs longer for each


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The measured effect of every latent, or of any other directions.

    Args:
      effect_np: change of the behaviour's rate on each prompt in the intended
        direction: a fall for steering away or ablation, a rise for steering toward.
      strength_n: signed strength in mean lengths; 0 where every one of the grid cost
        too much coherence (effect 0), NaN for ablation.
      loss_n: coherence lost on the prompts that were scored.
      base: the rate without an edit.
    """

    effect_np: np.ndarray
    strength_n: np.ndarray
    loss_n: np.ndarray
    base: float

    @property
    def effect_n(self) -> np.ndarray:
        """The mean effect over prompts."""
        return self.effect_np.mean(1)


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
    """Steers with every latent: chooses the strength of the largest effect within the
    budget, and measures its effect on other prompts.

    Args:
      strength_prompts, effect_prompts: that strengths are chosen on, and others that
        effects are measured on.
      dec_nd: unit decoder rows.
      norm: mean length of the site's activation.
      sign: -1 steers away, +1 toward.
    """
    n = len(dec_nd)

    def rates(prompts: PromptPaths, strength_n: np.ndarray) -> _Rates:
        run = partial(_steered, params, prompts, cfg=cfg, site=site)
        return _rates(run, dec_nd, strength_n * norm)

    tried = [rates(strength_prompts, np.full(n, sign * c)) for c in grid]
    effect_cn = np.stack([sign * r.change_np.mean(1) for r in tried])
    loss_cn = np.stack([r.loss_n for r in tried])
    allowed_cn = np.where(loss_cn <= budget, effect_cn, -np.inf)
    largest_n = sign * np.asarray(grid)[allowed_cn.argmax(0)]
    strength_n = np.where(np.isfinite(allowed_cn.max(0)), largest_n, 0.0)
    steered = rates(effect_prompts, strength_n)
    return GroundTruth(
        sign * steered.change_np, strength_n, steered.loss_n, steered.base
    )


def both_ways(
    params: Params,
    strength_prompts: PromptPaths,
    effect_prompts: PromptPaths,
    dec_nd: np.ndarray,
    norm: float,
    **options: Any,
) -> dict[str, GroundTruth]:
    """Steers with every latent `along` its direction, for a rise of the rate, and
    `against` it, for a fall; arguments are those of `steering_ground_truth`.
    """
    arrays = strength_prompts, effect_prompts, dec_nd, norm
    return {
        "along": steering_ground_truth(params, *arrays, sign=1, **options),
        "against": steering_ground_truth(params, *arrays, sign=-1, **options),
    }


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
    value_n = np.asarray(dec_nd) @ mean_d
    run = partial(_ablated, params, effect_prompts, cfg=cfg, site=site)
    ablated = _rates(run, dec_nd, value_n)
    no_strength_n = np.full(len(dec_nd), np.nan)
    return GroundTruth(-ablated.change_np, no_strength_n, ablated.loss_n, ablated.base)


@partial(jax.jit, static_argnames=("cfg", "site"))
def _steered(
    params: Params,
    prompts: PromptPaths,
    dec_kd: Any,
    scale_k: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    edits = {site: Add(dec_kd, scale_k)}
    return exact_rates(params, prompts, edits, cfg=cfg, rows=len(dec_kd))


@partial(jax.jit, static_argnames=("cfg", "site"))
def _ablated(
    params: Params,
    prompts: PromptPaths,
    dec_kd: Any,
    value_k: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> Any:
    k, length = len(dec_kd), np.shape(prompts.tokens_pmt)[2]
    where_kt = jnp.broadcast_to(jnp.arange(length) > 0, (k, length))
    edits = {site: SetProjection(dec_kd, value_k, where_kt)}
    return exact_rates(params, prompts, edits, cfg=cfg, rows=k)


class _Rates(NamedTuple):
    """`change_np`: of the behaviour's rate under every edit, on each prompt; `loss_n`:
    of coherence, mean over prompts; `base`: the rate without an edit.
    """

    change_np: np.ndarray
    loss_n: np.ndarray
    base: float


def _rates(run: Callable[..., Any], dec_nd: Any, value_n: np.ndarray) -> _Rates:
    """Measures edits in batches of equal size, and beside them one that changes nothing.

    Args:
      run: (`[k, d]`, `[k]`) -> behaviour and coherence, `[k, p]` each.
    """
    n = len(dec_nd)
    # Rows of zeros fill the last batch. They steer nowhere, and ablate nothing: the
    # rate without an edit is one of them, so that both are rounded alike.
    batches = -(-(n + 1) // ROWS)
    size = -(-(n + 1) // batches)
    padding = batches * size - n
    dec_nd = np.pad(np.asarray(dec_nd, np.float32), ((0, padding), (0, 0)))
    value_n = np.pad(np.asarray(value_n, np.float32), (0, padding))
    parts = []
    for start in range(0, batches * size, size):
        part = slice(start, start + size)
        parts.append(run(dec_nd[part], value_n[part]))
    behaviour_np, coherent_np = (
        np.concatenate([np.asarray(x_kp, np.float64) for x_kp in of_parts])
        for of_parts in zip(*parts, strict=True)
    )
    return _Rates(
        behaviour_np[:n] - behaviour_np[n],
        (coherent_np[n] - coherent_np[:n]).mean(1),
        float(behaviour_np[n].mean()),
    )
