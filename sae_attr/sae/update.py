"""One step of an SAE's training: gradient, Adam, dead latents and the controller of L0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sae_attr.parallel import shardings
from sae_attr.sae.model import SAE
from sae_attr.sae.objectives import OBJECTIVES, Outcome, Signals
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_state import (
    SAE_RULES,
    SAEState,
    make_adam,
    running_threshold,
    schedule,
)

_QUIET_MAX = 2**30  # tokens; one more batch still fits int32
_CONTROLLER_MEMORY = 0.9


@struct.dataclass
class SAEMetrics:
    """Numbers of one step; sums are over its tokens, in normalised units, float32.

    Args:
      loss: the sum of `terms`.
      terms: the losses by name.
      residual, squares, sum_m: Σ|y - ŷ|², Σ|y|², Σ y over the batch, for the explained
        variance of many batches.
      tokens: of the batch.
      l0, dead, spilled, grad_norm, lr, sparsity, threshold: at this step; dead is the
        share of latents that fired on none of the last `dead_tokens` tokens, or of all
        so far.
    """

    loss: jax.Array
    terms: dict[str, jax.Array]
    residual: jax.Array
    squares: jax.Array
    sum_m: jax.Array
    tokens: jax.Array
    l0: jax.Array
    dead: jax.Array
    spilled: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    sparsity: jax.Array
    threshold: jax.Array


def train_step(
    state: SAEState,
    x_bd: jax.Array,
    y_bm: jax.Array,
    *,
    cfg: TrainConfig,
    mesh: Mesh | None = None,
) -> tuple[SAEState, SAEMetrics]:
    """Makes one optimiser step on raw activations; pure, to be jitted by the caller
    with `cfg` and `mesh` static.

    Args:
      state: before the step.
      x_bd, y_bm: input and target, the same array for an autoencoder.
      cfg: the run.
      mesh: where tokens lie over `data` and latents over `model`; None on one device.
    """
    # Activations may come in bfloat16 or float16; training is in float32.
    x_bd = x_bd.astype(jnp.float32) * state.scale_in
    y_bm = y_bm.astype(jnp.float32) * state.scale_out
    dead_n = state.quiet_n >= cfg.dead_after(len(x_bd))
    k = annealed_k(state, cfg)
    signals = Signals(dead_n, coefficient(state, cfg), mesh, k)
    total, outcome, grads = _gradient(state.sae, x_bd, y_bm, cfg, signals)
    params: Any = state.sae
    updates: Any
    updates, opt = make_adam(cfg).update(grads, state.opt, params)
    moved: Any = optax.apply_updates(params, updates)
    if cfg.log_threshold and state.sae.threshold_n is not None:
        factor_n = jnp.exp(updates.threshold_n)
        moved = replace(moved, threshold_n=state.sae.threshold_n * factor_n)
    sae = OBJECTIVES[cfg.objective].post_step(moved)
    counted = _counted(state, outcome, len(x_bd), cfg)
    after = replace(counted, sae=sae, opt=opt)
    metrics = SAEMetrics(
        loss=total,
        terms=outcome.terms,
        residual=jnp.sum(jnp.square(y_bm - outcome.y_bm)),
        squares=jnp.sum(jnp.square(y_bm)),
        sum_m=jnp.sum(y_bm, axis=0),
        tokens=jnp.int32(len(x_bd)),
        l0=outcome.l0,
        dead=silent_share(after, cfg, len(x_bd)),
        spilled=outcome.spilled,
        grad_norm=optax.tree.norm(grads),
        lr=jnp.asarray(schedule(cfg)(state.step)),
        sparsity=signals.sparsity,
        threshold=running_threshold(after, cfg),
    )
    return after, metrics


def _gradient(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> tuple[jax.Array, Outcome, Any]:
    """Returns the loss, what came with it, and its gradient for Adam."""
    objective = OBJECTIVES[cfg.objective]

    def loss(sae: SAE) -> tuple[jax.Array, Outcome]:
        outcome = objective.loss(sae, x_bd, y_bm, cfg, signals)
        return sum(outcome.terms.values(), jnp.float32(0)), outcome

    (total, outcome), grads = jax.value_and_grad(loss, has_aux=True)(sae)
    if objective.unit:
        grads = without_parallel(sae, grads)
    if not cfg.enc_bias:
        grads = replace(grads, enc_bias_n=jnp.zeros_like(grads.enc_bias_n))
    if cfg.log_threshold and sae.threshold_n is not None:
        # d/d log θ = θ d/dθ; `train_step` applies the update to log θ.
        by_threshold_n: Any = grads.threshold_n
        grads = replace(grads, threshold_n=by_threshold_n * sae.threshold_n)
    return total, outcome, grads


def _counted(
    state: SAEState, outcome: Outcome, tokens: int, cfg: TrainConfig
) -> SAEState:
    """Returns the state with the counts and running means of one more step."""
    l0 = _CONTROLLER_MEMORY * state.l0 + (1 - _CONTROLLER_MEMORY) * outcome.l0
    quiet_n = jnp.minimum(state.quiet_n + tokens, _QUIET_MAX)
    decay = cfg.threshold_decay
    threshold = decay * state.threshold + (1 - decay) * outcome.threshold
    if cfg.threshold_start:
        threshold = jnp.where(state.step < cfg.threshold_start, 0, threshold)
    return replace(
        state,
        quiet_n=jnp.where(outcome.fired_n, 0, quiet_n),
        threshold=threshold,
        # The integral part of the controller; `coefficient` adds the proportional one.
        log_sparsity=state.log_sparsity + cfg.controller_gain * _off_target(l0, cfg),
        l0=l0,
        step=state.step + 1,
    )


def silent_share(state: SAEState, cfg: TrainConfig, batch_size: int) -> jax.Array:
    """Returns the share of latents that fired on none of the last `dead_tokens` tokens, or of all
    tokens where there were fewer.
    """
    # Steps are bounded before the product, which would leave int32 in long runs.
    tokens = jnp.minimum(state.step, _QUIET_MAX // batch_size) * batch_size
    limit = min(cfg.dead_after(batch_size), _QUIET_MAX)
    silent_n = state.quiet_n >= jnp.minimum(tokens, limit)
    return jnp.mean(silent_n, dtype=jnp.float32)


def without_parallel(sae: SAE, grads: SAE) -> SAE:
    """Returns gradients without the part of each decoder row's that lies along the (unit) row.

    Adam would turn it into length, which the norm then takes away again (Bricken et al.
    2023, "Towards monosemanticity", appendix).
    """
    along_n1 = jnp.sum(grads.dec_nm * sae.dec_nm, axis=1, keepdims=True)
    return replace(grads, dec_nm=grads.dec_nm - along_n1 * sae.dec_nm)


def coefficient(state: SAEState, cfg: TrainConfig) -> jax.Array:
    """Returns the penalty's coefficient at this step: the controller's, risen over the first
    `sparsity_warmup` of the steps.

    The controller is a PI one on logarithms: an L0 twice the target multiplies the
    coefficient by 2^damping at once, and raises it by the gain · log 2 a step. Without
    the first part thresholds, which follow slowly, swing about the target.
    """
    steps = cfg.sparsity_warmup_steps
    if steps is None:
        steps = max(cfg.sparsity_warmup * cfg.steps, 1)
    rise = jnp.minimum(1.0, (state.step + 1) / steps)
    damping = cfg.controller_damping * _off_target(state.l0, cfg)
    return jnp.exp(state.log_sparsity + damping) * rise


def _off_target(l0: jax.Array, cfg: TrainConfig) -> jax.Array:
    """Returns log(L0 / target), within ±1; 0 without a controller."""
    if cfg.target_l0 is None or not cfg.controlled:
        return jnp.float32(0)
    # Bounded: at the start L0 is far off, and the coefficient must not run away.
    return jnp.clip(jnp.log(jnp.maximum(l0, 1e-3) / cfg.target_l0), -1, 1)


def annealed_k(state: SAEState, cfg: TrainConfig) -> jax.Array | None:
    """Returns the latents per token at this step, int32, which fall linearly from
    `k_start` to `k`; None where they do not change.
    """
    if cfg.k_start is None:
        return None
    share = jnp.minimum(1.0, state.step / max(cfg.k_anneal * cfg.steps, 1))
    k = cfg.k_start + (cfg.k - cfg.k_start) * share
    return jnp.round(k).astype(jnp.int32)


def compiled_step(
    cfg: TrainConfig, mesh: Mesh | None, state: SAEState
) -> Callable[..., tuple[SAEState, SAEMetrics]]:
    """Returns `train_step` jitted for this run; the state that goes in is donated."""
    step = partial(train_step, cfg=cfg, mesh=mesh)
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    out = shardings(state, SAE_RULES, mesh), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=out)
