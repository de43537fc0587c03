"""The completion's log-loss, from logits at the positions that predict its tokens and
nowhere else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules
from sae_attr.lm.model import Params, logits

LOSSES = ("sum", "mean")
_TARGETS = 64  # positions of every row whose logits are in memory at once


def target_nll(
    params: Params,
    hidden_btd: jax.Array,
    tokens_bt: jax.Array,
    target_bc: jax.Array,
    target_valid_bc: jax.Array,
    *,
    cfg: LMConfig,
    rules: Rules = PLAIN,
) -> jax.Array:
    """Returns -log p of target tokens given what precedes them, `[b, c]` in nats and float32; 0
    where `target_valid_bc` is False.

    Args:
      hidden_btd: residual after the last block, before the final norm.
      target_bc: positions of the tokens that are scored, each at least 1. Only the
        hidden states that predict them are unembedded: with a vocabulary of 50 k that
        is most of what the head would cost.
      rules: backward rules; of them `norm` and `centre` concern the final norm.
    """
    before_bc = jnp.maximum(target_bc - 1, 0)
    hidden_bcd = jnp.take_along_axis(hidden_btd, before_bc[..., None], axis=1)
    logits_bcv = logits(params, hidden_bcd, cfg=cfg, rules=rules)
    ids_bc = jnp.take_along_axis(tokens_bt, target_bc, axis=1)
    target_bc1 = jnp.take_along_axis(logits_bcv, ids_bc[..., None], axis=-1)
    nll_bc = jax.nn.logsumexp(logits_bcv, axis=-1) - target_bc1[..., 0]
    return jnp.where(target_valid_bc, nll_bc, 0.0)


def text_nll(
    params: Params,
    hidden_btd: jax.Array,
    tokens_bt: jax.Array,
    aim_bt: jax.Array,
    *,
    cfg: LMConfig,
) -> jax.Array:
    """Returns the summed -log p of every row's tokens at `aim_bt`, `[b]` in nats and
    float32, a few positions of every row at a time: whole logits of ordinary text would
    not fit.

    Args:
      hidden_btd: as for `target_nll`.
      aim_bt: bool, the tokens that are scored; False at position 0, which nothing
        precedes.
    """
    b, t = tokens_bt.shape
    chunks = -(-t // _TARGETS)
    padding = (0, chunks * _TARGETS - t)
    pos_nc = jnp.pad(jnp.arange(t), padding).reshape(chunks, _TARGETS)
    aim_bnc = jnp.pad(aim_bt, ((0, 0), padding)).reshape(b, chunks, _TARGETS)

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        target_bc = jnp.broadcast_to(part[0], (b, _TARGETS))
        nll_bc = target_nll(params, hidden_btd, tokens_bt, target_bc, part[1], cfg=cfg)
        return jnp.sum(nll_bc, axis=1)

    return jnp.sum(jax.lax.map(one, (pos_nc, aim_bnc.swapaxes(0, 1))), axis=0)


def completion_loss(
    nll_bc: jax.Array, target_valid_bc: jax.Array, loss: str = "sum"
) -> jax.Array:
    """Returns L(C) per row `[b]` in nats: the sum over the completion's tokens
    (docs/method.md, The score), or their mean.

    Raises ValueError for another name than `sum` or `mean`.
    """
    check_loss(loss)
    total_b = jnp.sum(nll_bc, axis=1)
    if loss == "sum":
        return total_b
    return total_b / jnp.maximum(jnp.sum(target_valid_bc, axis=1), 1)


def check_loss(loss: str) -> None:
    """Raises ValueError for another name than `sum` or `mean`."""
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
