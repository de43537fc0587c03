"""Next-token training of a language model, whole or by adapter: state, loss on chosen
tokens, one step and many.

Parameters are split into what is trained and what is frozen, both parts of one tree:
`{**frozen, **trained}` is what `forward` reads. Full fine-tuning and pretraining train
every leaf; LoRA trains `{"lora": ...}` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import target_nll
from sae_attr.lm.model import Params, forward

SCHEDULES = ("cosine", "linear", "constant")
_DECAYED = (
    "kernel",
    "table",
    "gate",
    "up",
    "down",
    "a",
    "b",
)  # matrices; norms, biases and sinks are not decayed


@dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), clipping by the
    global norm, and a schedule.

    Args:
      lr: peak learning rate.
      steps: of the whole run, warm-up included.
      warmup: steps in which the rate rises linearly; step s has lr (s + 1) / warmup.
      schedule: how it falls from then on: cosine, linear or constant.
      final: rate at the end as a share of the peak.
      clip: largest global norm of the gradient; 0 leaves it as it is.
      weight_decay: of matrices and embeddings; norms and biases have none.
    """

    lr: float
    steps: int
    warmup: int = 0
    schedule: str = "cosine"
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True)
class Compute:
    """How a step is computed, not what: static under jit.

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
class State:
    """What a checkpoint holds: the trained leaves, the optimiser's state, and the
    number of steps made.
    """

    trained: Params
    opt_state: Any
    step: jax.Array


@struct.dataclass
class Batch:
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
class Metrics:
    """Of one step: mean loss in nats per target, targets, norm of the unclipped
    gradient, learning rate.
    """

    loss: jax.Array
    targets: jax.Array
    grad_norm: jax.Array
    lr: jax.Array


Assemble = Callable[[Params, Params], Params]
"""(frozen, trained) -> the tree that `forward` reads; where an adapter's scale is
applied.
"""


def join(frozen: Params, trained: Params) -> Params:
    """The whole parameter tree; trained leaves win."""
    return {**frozen, **trained}


# ---- optimiser -----------------------------------------------------------------------


def learning_rate(opt: Optimizer) -> optax.Schedule:
    """Step -> rate: linear warm-up, then cosine or linear decay to `final`, or none.

    Raises:
      ValueError: an unknown schedule, or a warm-up that takes all steps.
    """
    if opt.schedule not in SCHEDULES:
        raise ValueError(
            f"schedule {opt.schedule!r} is unknown; choose one of "
            f"{', '.join(SCHEDULES)}"
        )
    if not 0 <= opt.warmup < max(opt.steps, 1):
        raise ValueError(
            f"a warm-up of {opt.warmup} steps does not fit a run of {opt.steps}; make "
            "it shorter"
        )
    after = max(opt.steps - opt.warmup, 1)
    falling = {
        "cosine": optax.cosine_decay_schedule(opt.lr, after, opt.final),
        "linear": optax.linear_schedule(opt.lr, opt.lr * opt.final, after),
        "constant": optax.constant_schedule(opt.lr),
    }[opt.schedule]
    if not opt.warmup:
        return falling
    rising = lambda step: (
        opt.lr * (step + 1) / opt.warmup
    )  # from 0 the first step would be lost
    return optax.join_schedules([rising, falling], [opt.warmup])


def decay_mask(params: Params) -> Params:
    """True for leaves with weight decay: kernels, embeddings, experts and adapters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in _DECAYED, params
    )


def optimizer(opt: Optimizer) -> optax.GradientTransformation:
    """The optax chain: clip, then AdamW at `learning_rate`.

    Raises:
      ValueError: as `learning_rate`.
    """
    adamw = optax.adamw(
        learning_rate(opt),
        b1=opt.b1,
        b2=opt.b2,
        eps=opt.eps,
        weight_decay=opt.weight_decay,
        mask=decay_mask,
    )
    return (
        optax.chain(optax.clip_by_global_norm(opt.clip), adamw) if opt.clip else adamw
    )


def init_state(trained: Params, opt: Optimizer) -> State:
    """The state before the first step; `trained` is taken over, not copied."""
    return State(trained, optimizer(opt).init(trained), jnp.zeros((), jnp.int32))


# ---- loss ----------------------------------------------------------------------------


def loss_sum(
    params: Params, batch: Batch, *, cfg: LMConfig, compute: Compute = Compute()
) -> jax.Array:
    """Σ -log p of the batch's targets in nats, float32; divide by the number of targets
    for the mean.
    """
    if compute.dtype:
        params = jax.tree.map(lambda w: w.astype(compute.dtype), params)
    out = forward(
        params,
        batch.tokens_bt,
        cfg=cfg,
        pos_bt=batch.pos_bt,
        segment_bt=batch.segment_bt,
        remat=compute.remat,
    )
    one = lambda target_bc, valid_bc: jnp.sum(
        target_nll(
            params, out.hidden_btd, batch.tokens_bt, target_bc, valid_bc, cfg=cfg
        )
    )
    chunk, width = compute.loss_chunk, batch.target_bc.shape[1]
    if not 0 < chunk < width:
        return one(batch.target_bc, batch.target_valid_bc)
    cut = lambda x: jnp.moveaxis(
        jnp.pad(x, ((0, 0), (0, -width % chunk))).reshape(len(x), -1, chunk), 1, 0
    )
    body = jax.checkpoint(one, prevent_cse=False)
    chunks = (cut(batch.target_bc), cut(batch.target_valid_bc))
    return jax.lax.scan(
        lambda total, x: (total + body(*x), None), jnp.zeros(()), chunks
    )[0]


def mean_loss(
    params: Params, batch: Batch, *, cfg: LMConfig, compute: Compute = Compute()
) -> jax.Array:
    """Mean -log p per target in nats."""
    return loss_sum(params, batch, cfg=cfg, compute=compute) / jnp.maximum(
        jnp.sum(batch.target_valid_bc), 1
    )


# ---- steps ---------------------------------------------------------------------------


def gradients(
    trained: Params,
    frozen: Params,
    micro: Batch,
    *,
    cfg: LMConfig,
    compute: Compute = Compute(),
    assemble: Assemble = join,
) -> tuple[jax.Array, jax.Array, Params]:
    """Mean loss, targets and the mean loss's gradient over micro-batches `[m, b, ...]`,
    one at a time.

    Sums are divided once, at the end, so that m micro-batches give what one batch of m
    b rows gives, however the targets are spread.
    """
    grad = jax.value_and_grad(
        lambda w, batch: loss_sum(assemble(frozen, w), batch, cfg=cfg, compute=compute)
    )

    def add(carry: Any, batch: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, grad(trained, batch)), None

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (total, grads), _ = jax.lax.scan(add, start, micro)
    targets = jnp.sum(micro.target_valid_bc)
    count = jnp.maximum(targets, 1)
    return (
        total / count,
        targets,
        jax.tree.map(lambda g: g / count.astype(g.dtype), grads),
    )


def train_step(
    state: State,
    frozen: Params,
    micro: Batch,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: Compute = Compute(),
    assemble: Assemble = join,
) -> tuple[State, Metrics]:
    """One AdamW step on the mean loss of micro-batches `[m, b, ...]`."""
    loss, targets, grads = gradients(
        state.trained, frozen, micro, cfg=cfg, compute=compute, assemble=assemble
    )
    updates, opt_state = optimizer(opt).update(grads, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    lr = jnp.asarray(learning_rate(opt)(state.step), jnp.float32)
    metrics = Metrics(loss, targets, optax.tree.norm(grads), lr)
    return State(trained, opt_state, state.step + 1), metrics  # type: ignore[arg-type]


def train_steps(
    state: State,
    frozen: Params,
    batches: Batch,
    *,
    cfg: LMConfig,
    opt: Optimizer,
    compute: Compute = Compute(),
    assemble: Assemble = join,
) -> tuple[State, Metrics]:
    """`train_step` for each of the batches `[k, m, b, ...]` in one program; metrics
    `[k]`.
    """
    step = lambda state, micro: train_step(
        state, frozen, micro, cfg=cfg, opt=opt, compute=compute, assemble=assemble
    )
    return jax.lax.scan(step, state, batches)
