"""Next-token training of a language model, whole or by adapter: state, loss on the
target tokens, gradient, one step and many.

Parameters are split into trained and frozen ones, both parts of one tree:
`{**frozen, **trained}` is what `forward` reads. Full fine-tuning and pretraining train
every leaf; LoRA trains `{"lora": ...}` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import target_nll
from sae_attr.lm.model import Params, forward
from sae_attr.lm.optimizer import Optimizer, learning_rate, make_optimizer


@dataclass(frozen=True)
class ComputeOptions:
    """Sets how the loss is computed; the mathematics do not depend on it. Static under
    jit.

    Args:
      dtype: of weights and matrix products in the forward and backward pass; "" leaves
        the parameters' own. With float32 parameters and bfloat16 here, master weights,
        optimiser state and gradient sums stay float32.
      remat: recompute every block in the backward pass instead of keeping its products.
      loss_chunk: targets per row that are unembedded at a time; 0: all. Bounds the
        memory of the logits.
    """

    dtype: str = ""
    remat: bool = False
    loss_chunk: int = 0


@struct.dataclass
class LMState:
    """The trained leaves, the optimiser's state, and the number of steps made."""

    trained: Params
    opt_state: Any
    step: jax.Array


@struct.dataclass
class TokenBatch:
    """Rows of one fixed shape, possibly of several segments each that do not see each
    other.

    Args:
      tokens_bt: int32.
      pos_bt: int32, from 0 in every segment.
      segment_bt: int32, number of the segment in its row, -1 on padding.
      target_bc: int32, positions of the tokens that are predicted; never the first of a
        segment.
      target_valid_bc: bool, False on the padding of `target_bc`.
    """

    tokens_bt: Any
    pos_bt: Any
    segment_bt: Any
    target_bc: Any
    target_valid_bc: Any


@struct.dataclass
class LMMetrics:
    """Numbers of one step: mean loss in nats per target, targets, tokens without
    padding, norm of the unclipped gradient, learning rate.
    """

    loss: jax.Array
    targets: jax.Array
    tokens: jax.Array
    grad_norm: jax.Array
    lr: jax.Array


Assemble = Callable[[Params, Params], Params]
"""(frozen, trained) -> the tree that `forward` reads; an adapter's scale is applied
here.
"""


def join(frozen: Params, trained: Params) -> Params:
    """Returns the whole parameter tree; trained leaves win."""
    return {**frozen, **trained}


def init_state(trained: Params, opt: Optimizer) -> LMState:
    """Returns the state before the first step; `trained` is taken over, not copied."""
    opt_state = make_optimizer(opt).init(trained)
    return LMState(trained, opt_state, jnp.zeros((), jnp.int32))


# ---- loss ----------------------------------------------------------------------------


def loss_sum(
    params: Params,
    batch: TokenBatch,
    *,
    cfg: LMConfig,
    compute: ComputeOptions = ComputeOptions(),
) -> jax.Array:
    """Returns Σ -log p of the batch's targets in nats and float32; divide by the number
    of targets for the mean.
    """
    # Cast inside the gradient: it comes back in float32, and the optimiser moves float32
    # master weights. A step of AdamW is often below half a unit in the last place of a
    # bfloat16 weight, which would then stay where it is.
    if compute.dtype:
        params = jax.tree.map(lambda w: w.astype(compute.dtype), params)
    hidden_btd = forward(
        params,
        batch.tokens_bt,
        cfg=cfg,
        pos_bt=batch.pos_bt,
        segment_bt=batch.segment_bt,
        remat=compute.remat,
    ).hidden_btd

    def nll_sum(target_bc: jax.Array, valid_bc: jax.Array) -> jax.Array:
        nll_bc = target_nll(
            params, hidden_btd, batch.tokens_bt, target_bc, valid_bc, cfg=cfg
        )
        return jnp.sum(nll_bc)

    targets = (batch.target_bc, batch.target_valid_bc)
    chunk, width = compute.loss_chunk, batch.target_bc.shape[1]
    if not 0 < chunk < width:
        return nll_sum(*targets)
    # Recomputed in the backward pass, so that the logits of one chunk exist at a time.
    nll_of_chunk = jax.checkpoint(nll_sum, prevent_cse=False)

    def add(total: jax.Array, targets: Any) -> tuple[jax.Array, None]:
        return total + nll_of_chunk(*targets), None

    chunks = jax.tree.map(partial(_cut, width=chunk), targets)
    total, _ = jax.lax.scan(add, jnp.zeros(()), chunks)
    return total


def _cut(x_bc: jax.Array, width: int) -> jax.Array:
    """Returns chunks `[n, b, width]` of the columns, padded with 0 (no target)."""
    rows, columns = x_bc.shape
    padded_bc = jnp.pad(x_bc, ((0, 0), (0, -columns % width)))
    return jnp.moveaxis(padded_bc.reshape(rows, -1, width), 1, 0)


# ---- steps ---------------------------------------------------------------------------


def gradients(
    trained: Params,
    frozen: Params,
    micro: TokenBatch,
    *,
    cfg: LMConfig,
    compute: ComputeOptions = ComputeOptions(),
    assemble: Assemble = join,
) -> tuple[jax.Array, jax.Array, Params]:
    """Returns mean loss, number of targets and the mean loss's gradient over
    micro-batches `[m, b, ...]`, one at a time.

    Sums are divided once, at the end, so that m micro-batches give what one batch of m
    b rows gives, however the targets are spread.
    """

    def loss(trained: Params, batch: TokenBatch) -> jax.Array:
        return loss_sum(assemble(frozen, trained), batch, cfg=cfg, compute=compute)

    loss_and_grad = jax.value_and_grad(loss)

    # A scan, so that the products of one micro-batch exist at a time.
    def add(sums: Any, batch: TokenBatch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, loss_and_grad(trained, batch)), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (total, grads), _ = jax.lax.scan(add, zeros, micro)
    targets = jnp.sum(micro.target_valid_bc)
    count = jnp.maximum(targets, 1)
    mean_grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
    return total / count, targets, mean_grads


def train_step(
    state: LMState,
    frozen: Params,
    micro: TokenBatch,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: ComputeOptions = ComputeOptions(),
    assemble: Assemble = join,
) -> tuple[LMState, LMMetrics]:
    """Makes one AdamW step on the mean loss of micro-batches `[m, b, ...]`."""
    loss, targets, grads = gradients(
        state.trained, frozen, micro, cfg=cfg, compute=compute, assemble=assemble
    )
    adamw = make_optimizer(opt)
    updates, opt_state = adamw.update(grads, state.opt_state, state.trained)
    trained: Any = optax.apply_updates(state.trained, updates)
    metrics = LMMetrics(
        loss=loss,
        targets=targets,
        tokens=jnp.sum(micro.segment_bt >= 0),
        grad_norm=optax.tree.norm(grads),
        lr=jnp.asarray(learning_rate(opt)(state.step), jnp.float32),
    )
    return LMState(trained, opt_state, state.step + 1), metrics


def train_steps(
    state: LMState,
    frozen: Params,
    batches: TokenBatch,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: ComputeOptions = ComputeOptions(),
    assemble: Assemble = join,
) -> tuple[LMState, LMMetrics]:
    """Makes a `train_step` for each of the batches `[k, m, b, ...]` in one program;
    metrics `[k]`.
    """

    def step(state: LMState, micro: TokenBatch) -> tuple[LMState, LMMetrics]:
        return train_step(
            state, frozen, micro, cfg=cfg, opt=opt, compute=compute, assemble=assemble
        )

    return jax.lax.scan(step, state, batches)
