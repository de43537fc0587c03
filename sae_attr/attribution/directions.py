"""Directions that need no SAE: what latents are compared with (docs/method.md, Ground
truth).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.evidence import Evidence
from sae_attr.attribution.scores import best_direction

DIRECTIONS = {
    "mean_difference": "mean activation on C − on C′, completion tokens",
    "model_difference": "mean activation of the studied model − of the second one",
    "gradient": "−Δg: the contrastive gradient, by which the behaviour rises most",
    "best_of_moment": "the unit direction of the highest Δ, signed as the gradient",
}


def gradient_vector(evidence: Evidence, scope: str) -> np.ndarray:
    """Returns the contrastive gradient vector, of length 1, float32 `[d]`: the mean
    gradient of log p on completions with the behaviour minus that on the others.

    Args:
      scope: of tokens that the gradient is averaged over.
    """
    return _unit(-evidence.moment(scope).g_d)


def plain_directions(evidence: Evidence, scope: str = "all") -> dict[str, np.ndarray]:
    """Computes `DIRECTIONS` as unit vectors `[d]`, float32, each toward the behaviour.

    Args:
      scope: tokens of the gradient and the moment.

    `model_difference` is left out where there is no second model.
    """
    gradient_d = gradient_vector(evidence, scope)
    _, best_d = best_direction(evidence.moment(scope), evidence.mean_d)
    # A direction and its opposite have one Δ.
    best_d = best_d * jnp.where(best_d @ gradient_d < 0, -1, 1)
    vectors = {
        "mean_difference": evidence.mean_acts(evidence.weights("completion")),
        "gradient": gradient_d,
        "best_of_moment": best_d,
    }
    if evidence.aligned_kd is not None:
        vectors["model_difference"] = _model_difference(evidence)
    return {name: _unit(vectors[name]) for name in DIRECTIONS if name in vectors}


def _unit(vector_d: Any) -> np.ndarray:
    vector_d = np.asarray(vector_d, np.float32)
    return vector_d / max(float(np.linalg.norm(vector_d)), 1e-30)


def _model_difference(evidence: Evidence) -> jax.Array:
    """Mean over the prompts' tokens, as Δ-activation has it."""
    weights_k = evidence.mean_weights("prompt")
    aligned_kd = np.asarray(evidence.aligned_kd, np.float64)
    aligned_d = jnp.asarray(weights_k @ aligned_kd, jnp.float32)
    return evidence.mean_acts(weights_k) - aligned_d
