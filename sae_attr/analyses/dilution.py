"""Whether a ranking keeps to the behaviour when a fine-tune changes unrelated, harmless
things besides: how much of the behaviour's rate the best latents of each score move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.completion_scores import token_means
from sae_attr.sae.model import SAE, encode
from sae_attr.text.rows import TokenRow


def activation_differences(
    sae: SAE,
    rows: Sequence[TokenRow],
    acts_kd: np.ndarray,
    aligned_kd: np.ndarray,
    scope: str,
    exclude: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Returns Δ-activation within each prompt, float32 `[p, n]`: mean latent activation
    in the studied model minus in the aligned one, over the tokens of a prompt's rows.

    Args:
      acts_kd, aligned_kd: what the SAE encodes on every token of the rows, of either
        model.
    """
    # In one block each: one compiled shape.
    step = jax.jit(partial(encode, sae))
    codes_kn = np.asarray(step(jnp.asarray(acts_kd)))
    codes_kn = codes_kn - np.asarray(step(jnp.asarray(aligned_kd)))
    means_rn = token_means(rows, codes_kn, scope, exclude)
    pair_r = np.array([row.pair for row in rows])
    of_prompt = [means_rn[pair_r == pair].mean(0) for pair in np.unique(pair_r)]
    return np.stack(of_prompt).astype(np.float32)


def best_latents(scores_n: np.ndarray, count: int) -> np.ndarray:
    """Returns the latents of the highest scores, best first; NaN never among them."""
    ranked_n = np.where(np.isnan(scores_n), -np.inf, scores_n)
    return np.argsort(-ranked_n, kind="stable")[:count]


def candidates(differences: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Returns the latents that are among the best `count` by the mean over prompts of
    any score, in order of index.

    Args:
      differences: score -> its value within each prompt, `[p, n]`.
    """
    best = [best_latents(pn.mean(0), count) for pn in differences.values()]
    return np.unique(np.concatenate(best))


def moved_shares(
    differences: Mapping[str, np.ndarray],
    effects: Mapping[str, np.ndarray],
    bases: Mapping[str, float],
    first_best: Mapping[str, np.ndarray],
    *,
    draws: int,
    top: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws prompts with replacement and looks at the best `top` latents of each score.

    Args:
      differences: score -> its value within each prompt, `[p, n]`.
      effects: ground truth -> effect of every latent, NaN where it was not measured;
        latents are ranked among those that were.
      bases: ground truth -> the behaviour's rate without an edit.
      first_best: score -> the best latents of the fine-tune without harmless changes.

    Returns:
      shares `[score, effect, draw]`: mean effect of the best as a share of the rate
      without an edit; overlap `[score, draw]` with `first_best`.

    Raises:
      ValueError: a rate of 0: the fine-tune does not show the behaviour.
    """
    for name, base in bases.items():
        if base <= 0:
            raise ValueError(
                f"the rate of the behaviour without an edit is 0 ({name}), so that no "
                "latent can take a share of it away; train longer"
            )
    shares = np.zeros((len(differences), len(effects), draws))
    overlap = np.zeros((len(differences), draws))
    for s, (name, difference_pn) in enumerate(differences.items()):
        generator = np.random.default_rng(seed)
        for b in range(draws):
            drawn = generator.integers(0, len(difference_pn), len(difference_pn))
            scores_n = difference_pn[drawn].mean(0)
            for e, (effect_name, effect_n) in enumerate(effects.items()):
                measured_n = np.where(np.isfinite(effect_n), scores_n, np.nan)
                best = best_latents(measured_n, top)
                shares[s, e, b] = effect_n[best].mean() / bases[effect_name]
            best = best_latents(scores_n, top)
            overlap[s, b] = len(np.intersect1d(best, first_best[name])) / top
    return shares, overlap
