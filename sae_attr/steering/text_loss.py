"""The loss on ordinary text while a model is edited: what an intervention costs where
nobody asked for the behaviour.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Edit, Site, Within
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import text_nll
from sae_attr.lm.model import Params, forward
from sae_attr.lm.sites import edited_suffix
from sae_attr.parallel import shard_batch, to_host


@dataclass(frozen=True, eq=False)
class TextLoss:
    """Loss on ordinary text under edits.

    Args:
      nats_kr: summed nats of every condition and row of text, float64.
      plain_r: the same without an edit.
      tokens_r: how many tokens of each row were predicted.
    """

    nats_kr: np.ndarray
    plain_r: np.ndarray
    tokens_r: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens that were predicted."""
        return int(self.tokens_r.sum())

    @property
    def plain(self) -> float:
        """Mean nats per token of the model without an edit."""
        return float(self.plain_r.sum() / self.tokens)

    @property
    def nats_k(self) -> np.ndarray:
        """Mean nats per token of every condition."""
        return self.nats_kr.sum(1) / self.tokens

    @property
    def cost_k(self) -> np.ndarray:
        """Edited − unedited, nats per token."""
        return self.nats_k - self.plain


def edited_text_loss(
    params: Params,
    batches: Iterable[Any],
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    skip: int = 0,
    bar: bool = False,
) -> TextLoss:
    """Measures the loss of a model on ordinary text under one condition after another,
    edited at all positions of every row.

    Predicted are the tokens that count by the batches' masks, but for the first of
    each row, which nothing precedes.

    Args:
      batches: `CorpusBatch`es, one document a row.
      edits: site -> edit; every array in them has the conditions as its first axis, of
        which the first changes nothing: the model without an edit runs in the same
        compiled program.
      skip: positions at the start of every row that are not edited.
      bar: show progress, in conditions.

    Raises:
      ValueError: no token counts.
    """
    start, moved = edited_suffix(edits, cfg)
    count = len(jax.tree.leaves(edits)[0])
    nats, tokens = [], []
    for batch in batches:
        aim_bt = np.array(batch.counted_bt)
        aim_bt[:, 0] = False
        tokens.append(aim_bt.sum(1))
        placed = shard_batch((batch.tokens_bt, batch.valid_bt, aim_bt), mesh)
        x_btd = _before(params, *placed[:2], cfg=cfg, start=start)
        of_batch = np.zeros((count, len(aim_bt)))
        for k in tqdm(range(count), "text", unit="condition", disable=not bar):
            edit = jax.tree.map(lambda x_k, k=k: np.asarray(x_k[k]), moved)
            nats_b = _nats(
                params, x_btd, *placed, edit, cfg=cfg, start=start, skip=skip
            )
            of_batch[k] = to_host(nats_b)
        nats.append(of_batch)
    if not sum(map(np.sum, tokens)):
        raise ValueError("no token of the text counts; give more text, or mask less")
    nats_kr = np.concatenate(nats, axis=1)
    return TextLoss(nats_kr[1:], nats_kr[0], np.concatenate(tokens))


@functools.partial(jax.jit, static_argnames=("cfg", "start"))
def _before(
    params: Params,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    *,
    cfg: LMConfig,
    start: int,
) -> jax.Array:
    """Returns the residual `[b, t, d]` that enters layer `start`."""
    span = (0, start)
    return forward(params, tokens_bt, cfg=cfg, valid_bt=valid_bt, span=span).hidden_btd


@functools.partial(jax.jit, static_argnames=("cfg", "start", "skip"))
def _nats(
    params: Params,
    x_btd: jax.Array,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    aim_bt: jax.Array,
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    start: int,
    skip: int,
) -> jax.Array:
    """Returns summed nats `[b]` of every row's tokens at `aim_bt` under one condition."""
    rows = len(tokens_bt)
    # As many copies of the condition as rows: an edit may hold matrices, of which one
    # without a first axis for rows would mean something else.
    edits = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape)), edits)
    within = {}
    for site, edit in edits.items():
        within[site] = Within(edit, start=skip)
    hidden_btd = forward(
        params,
        None,
        cfg=cfg,
        valid_bt=valid_bt,
        edits=within,
        span=(start, cfg.n_layers),
        x_btd=x_btd,
    ).hidden_btd
    return text_nll(params, hidden_btd, tokens_bt, aim_bt, cfg=cfg)
