"""Reading a direction: the tokens whose unembedding vectors lie nearest to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def nearest_tokens(
    directions_kd: jax.Array, unembedding_vd: jax.Array, *, count: int = 5
) -> tuple[jax.Array, jax.Array]:
    """Ids `[k, count]` and cosines of the tokens nearest to each direction (method, section 6: the logit lens).

    Args:
      directions_kd: directions in the residual stream.
      unembedding_vd: from `lm.model.unembedding`, which folds the final norm's gain in.
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    cosines_kv = jnp.einsum("kd,vd->kv", unit(directions_kd), unit(unembedding_vd), precision="highest")
    values, ids = jax.lax.top_k(cosines_kv, count)
    return ids, values
