"""How well latents tell rollouts with a behaviour from those without it, task by task:
a latent that monitors one task by chance fails on the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.attribution.selectors import monitoring_auc
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import forward
from sae_attr.lm.params import Params


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Unsteered completions of one task, which are graded.

    Args:
      mean_rd: mean activation over the tokens of each completion.
      behaviour_r: bool, those that show the behaviour.
    """

    mean_rd: np.ndarray
    behaviour_r: np.ndarray

    @property
    def one_sided(self) -> str:
        """Says why nothing can be monitored here; "" where both sides are there."""
        count = int(np.sum(self.behaviour_r))
        if 0 < count < len(self.behaviour_r):
            return ""
        return (
            f"{count} of {len(self.behaviour_r)} graded completions show the behaviour: "
            "a monitor is judged on both sides"
        )


def cosine_auc(rollouts: Rollouts, dec_kd: np.ndarray) -> np.ndarray:
    """Computes the AUC of cos(d, mean activation of a completion) for k directions."""
    return monitoring_auc(cosines(rollouts.mean_rd, dec_kd), rollouts.behaviour_r)


def cosines(mean_rd: np.ndarray, dec_kd: np.ndarray) -> np.ndarray:
    """Returns the cosine of every activation with every direction, float64 `[r, k]`."""
    return _unit(mean_rd) @ _unit(dec_kd).T


def _unit(x_kd: np.ndarray) -> np.ndarray:
    x_kd = np.asarray(x_kd, np.float64)
    return x_kd / np.maximum(np.linalg.norm(x_kd, axis=1, keepdims=True), 1e-30)


def completion_means(
    params: Params,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    *,
    cfg: LMConfig,
    site: Site,
    batch_size: int = 256,
) -> np.ndarray:
    """Computes the mean activation at a site over the completion of every row, float32
    `[r, d]`.

    Args:
      rows: token ids of prompts and completions.
      n_prompts: tokens of each row's prompt.

    Raises:
      ValueError: a row without a completion.
    """
    longest = max(len(row) for row in rows)

    @jax.jit
    def means(params: Params, tokens_bt: jax.Array, counted_bt: jax.Array) -> jax.Array:
        span = (0, site.layer + 1)
        acts = forward(params, tokens_bt, cfg=cfg, keep=(site,), span=span).acts
        total_bd = jnp.einsum("bt,btd->bd", counted_bt, acts[site])
        return total_bd / jnp.sum(counted_bt, axis=1, keepdims=True)

    tokens_rt = np.zeros((len(rows), longest), np.int32)
    counted_rt = np.zeros((len(rows), longest), np.float32)
    for r, (row, n_prompt) in enumerate(zip(rows, n_prompts, strict=True)):
        if len(row) <= n_prompt:
            raise ValueError(
                f"rollout {r} has no token behind its prompt; leave it out"
            )
        tokens_rt[r, : len(row)] = row
        counted_rt[r, n_prompt : len(row)] = 1
    parts = []
    for start in range(0, len(rows), batch_size):
        # The last batch is filled up with its last row: one compiled shape.
        batch = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
        parts.append(np.asarray(means(params, tokens_rt[batch], counted_rt[batch])))
    return np.concatenate(parts)[: len(rows)]
