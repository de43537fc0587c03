"""The loss on ordinary text while a model is steered: what an intervention costs where
nobody asked for the behaviour.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Add, Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import text_nll
from sae_attr.lm.model import Params, forward
from sae_attr.lm.sites import suffix_start
from sae_attr.parallel import shard_batch, to_host


@dataclass(frozen=True, eq=False)
class TextLoss:
    """Loss on ordinary text under steering.

    Args:
      nats_k: mean nats per token of every steered direction, float64.
      plain: mean nats per token of the unsteered model.
      tokens: that were predicted.
    """

    nats_k: np.ndarray
    plain: float
    tokens: int

    @property
    def cost_k(self) -> np.ndarray:
        """Steered − unsteered, nats per token."""
        return self.nats_k - self.plain


def steered_text_loss(
    params: Params,
    batches: Iterable[Any],
    vectors_kd: np.ndarray,
    strengths_k: Sequence[float] | np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    skip: int = 0,
    bar: bool = False,
) -> TextLoss:
    """Measures the loss of a model on ordinary text, steered by one direction after
    another at all positions of every row.

    Predicted are the tokens that count by the batches' masks, but for the first of
    each row, which nothing precedes.

    Args:
      batches: `CorpusBatch`es, one document a row.
      vectors_kd: directions, of unit length as a rule.
      strengths_k: what is added is `strength · vector`; 0 leaves the model unsteered.
      skip: positions at the start of every row that are not steered.
      bar: show progress, in directions.

    Raises:
      ValueError: no token counts.
    """
    # The unsteered model runs with an edit too, of nothing: one compiled program.
    rows_kd = np.concatenate([np.zeros((1, cfg.width(site.point))), vectors_kd])
    sizes_k = np.concatenate([[0.0], np.asarray(strengths_k, np.float64)])
    totals_k, tokens = np.zeros(len(rows_kd)), 0
    for batch in batches:
        aim_bt = np.array(batch.counted_bt)
        aim_bt[:, 0] = False
        tokens += int(aim_bt.sum())
        placed = shard_batch((batch.tokens_bt, batch.valid_bt, aim_bt), mesh)
        x_btd = _before(params, *placed[:2], cfg=cfg, site=site)
        for k in tqdm(range(len(rows_kd)), "text", unit="row", disable=not bar):
            vector_d = (sizes_k[k] * rows_kd[k]).astype(np.float32)
            nats = _nats(
                params, x_btd, *placed, vector_d, cfg=cfg, site=site, skip=skip
            )
            totals_k[k] += float(to_host(nats))
    if not tokens:
        raise ValueError("no token of the text counts; give more text, or mask less")
    mean_k = totals_k / tokens
    return TextLoss(mean_k[1:], float(mean_k[0]), tokens)


@functools.partial(jax.jit, static_argnames=("cfg", "site"))
def _before(
    params: Params,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
) -> jax.Array:
    """Returns the residual `[b, t, d]` that enters the first layer which steering
    reaches.
    """
    span = (0, suffix_start(site, cfg)[0])
    return forward(params, tokens_bt, cfg=cfg, valid_bt=valid_bt, span=span).hidden_btd


@functools.partial(jax.jit, static_argnames=("cfg", "site", "skip"))
def _nats(
    params: Params,
    x_btd: jax.Array,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    aim_bt: jax.Array,
    vector_d: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    skip: int,
) -> jax.Array:
    """Returns summed nats of the tokens at `aim_bt` with a vector added at the site."""
    edit = Within(Add(jnp.asarray(vector_d)), start=skip)
    start, at = suffix_start(site, cfg)
    hidden_btd = forward(
        params,
        None,
        cfg=cfg,
        valid_bt=valid_bt,
        edits={at: edit},
        span=(start, cfg.n_layers),
        x_btd=x_btd,
    ).hidden_btd
    return text_nll(params, hidden_btd, tokens_bt, aim_bt, cfg=cfg)
