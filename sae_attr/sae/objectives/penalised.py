"""Objectives that penalise active latents: ReLU + L1, Gated, JumpReLU, and the L1
crosscoder.

ReLU with the decoder norm in the penalty: Anthropic, "Circuits updates, April 2024".
Gated: Rajamanoharan et al. 2024, arXiv:2404.16014. JumpReLU: Rajamanoharan et al. 2024,
arXiv:2407.14435; the tanh penalty and the loss on pre-activations
of latents that do not fire: Anthropic, "Circuits updates, January 2025".
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from sae_attr.sae.gates import safe_norm
from sae_attr.sae.model import SAE
from sae_attr.sae.objectives.contract import (
    Objective,
    Outcome,
    Signals,
    as_streams,
    dense_codes,
    dense_outcome,
    keep,
    squared_error,
    stream_error,
    stream_norms,
    unit_rows,
)
from sae_attr.sae.selection import kth_largest
from sae_attr.sae.train_config import TrainConfig


def relu_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns error + λ · mean over tokens of Σ code · |dec row|: with the norm in it,
    shrinking codes gains nothing. Of a crosscoder the norms of all streams are summed.
    """
    codes_bn = jax.nn.relu(dense_codes(sae, x_bd))
    out_bm = codes_bn @ sae.dec_nm + sae.dec_bias_m
    l1 = jnp.mean(codes_bn @ stream_norms(sae.dec_nm, cfg.streams))
    return dense_outcome(
        {"error": stream_error(out_bm, y_bm, cfg), "l1": signals.sparsity * l1},
        out_bm,
        codes_bn,
    )


def gated_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns error + gate_coef · (λ Σ relu(gate) + the error of decoding relu(gate) with a
    frozen decoder); equation 8, with 1.

    The gate's step has no gradient: gates learn from the last two terms, magnitudes
    from the first.
    """
    assert sae.gate_bias_n is not None
    assert sae.mag_bias_n is not None
    assert sae.mag_scale_n is not None
    pre_bn = dense_codes(sae, x_bd)
    gate_bn = pre_bn + sae.gate_bias_n
    size_bn = jax.nn.relu(pre_bn * jnp.exp(sae.mag_scale_n) + sae.mag_bias_n)
    codes_bn = jnp.where(gate_bn > 0, size_bn, 0)
    out_bm = codes_bn @ sae.dec_nm + sae.dec_bias_m
    open_bn = jax.nn.relu(gate_bn)
    # Frozen: the decoder shall not learn to serve codes that are never used.
    dec_nm, dec_bias_m = jax.lax.stop_gradient((sae.dec_nm, sae.dec_bias_m))
    frozen_bm = open_bn @ dec_nm + dec_bias_m
    l1 = jnp.mean(jnp.sum(open_bn, axis=1))
    terms = {
        "error": squared_error(out_bm, y_bm),
        "l1": cfg.gate_coef * signals.sparsity * l1,
        "frozen": cfg.gate_coef * squared_error(frozen_bm, y_bm),
    }
    return dense_outcome(terms, out_bm, codes_bn)


def jumprelu_loss(
    sae: SAE, x_bd: jax.Array, y_bm: jax.Array, cfg: TrainConfig, signals: Signals
) -> Outcome:
    """Returns error + λ · penalty, both through straight-through estimators, + a pull on the
    latents that are dead.

    penalty "step": the number of active latents (arXiv:2407.14435, equations 9 to 12).
    "tanh": Σ tanh(c · code · |row|). "quadratic": 2 / target · (active - target)² of each
    token (Gemma Scope 2). "quadratic_mean": (mean active / target - 1)².
    """
    assert sae.threshold_n is not None
    pre_bn = dense_codes(sae, x_bd)
    codes_bn = jump(pre_bn, sae.threshold_n, cfg.bandwidth)
    out_bm = codes_bn @ sae.dec_nm + sae.dec_bias_m
    if cfg.penalty == "tanh":
        count_bn = jnp.tanh(cfg.tanh_scale * codes_bn * safe_norm(sae.dec_nm)[:, 0])
    else:
        count_bn = step(pre_bn, sae.threshold_n, cfg.bandwidth)
    penalty = _penalty(jnp.sum(count_bn, axis=1), cfg)
    below_n = jnp.sum(jax.nn.relu(sae.threshold_n - pre_bn), axis=0) / len(x_bd)
    terms = {
        "error": squared_error(out_bm, y_bm),
        "l0": signals.sparsity * penalty,
        "pre_act": cfg.pre_act * jnp.sum(jnp.where(signals.dead_n, below_n, 0)),
    }
    return dense_outcome(terms, out_bm, codes_bn)


def _penalty(count_b: jax.Array, cfg: TrainConfig) -> jax.Array:
    """Returns jumprelu's penalty from the count of each token's active latents."""
    if not cfg.quadratic:
        return jnp.mean(count_b)
    assert cfg.target_l0 is not None
    if cfg.penalty == "quadratic":
        return jnp.mean(jnp.square(count_b - cfg.target_l0)) * 2 / cfg.target_l0
    return jnp.square(jnp.mean(count_b) / cfg.target_l0 - 1)


@jax.custom_vjp
def step(pre: jax.Array, threshold_n: jax.Array, bandwidth: float) -> jax.Array:
    """Returns 1 where pre > threshold. No gradient for pre; for the threshold -K((pre - θ) / ε)
    / ε, K = 1 on [-½, ½].
    """
    return (pre > threshold_n).astype(pre.dtype)


@jax.custom_vjp
def jump(pre: jax.Array, threshold_n: jax.Array, bandwidth: float) -> jax.Array:
    """Returns relu(pre) where pre > threshold. Gradient 1 there for pre; for the threshold -θ
    K((pre - θ) / ε) / ε.
    """
    return jnp.where(pre > threshold_n, jax.nn.relu(pre), 0)


def _kernel(pre: jax.Array, threshold_n: jax.Array, bandwidth: float) -> jax.Array:
    return (jnp.abs(pre - threshold_n) <= bandwidth / 2).astype(pre.dtype) / bandwidth


def _save(pre, threshold_n, bandwidth, run):
    return run(pre, threshold_n, bandwidth), (pre, threshold_n, bandwidth)


def _step_backward(saved, grad):
    pre, threshold_n, bandwidth = saved
    # Summed over tokens: one threshold serves them all. The bandwidth has no gradient.
    by_threshold = -grad * _kernel(pre, threshold_n, bandwidth)
    return jnp.zeros_like(pre), by_threshold.sum(tuple(range(pre.ndim - 1))), None


def _jump_backward(saved, grad):
    pre, threshold_n, bandwidth = saved
    by_threshold = -grad * threshold_n * _kernel(pre, threshold_n, bandwidth)
    by_pre = jnp.where((pre > threshold_n) & (pre > 0), grad, 0)
    return by_pre, by_threshold.sum(tuple(range(pre.ndim - 1))), None


step.defvjp(lambda *args: _save(*args, run=step), _step_backward)
jump.defvjp(lambda *args: _save(*args, run=jump), _jump_backward)


def _gated_start(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> SAE:
    """Adds gates that open where the pre-activation is above one threshold; magnitudes
    are the pre-activations.
    """
    zeros_n = jnp.zeros(cfg.n_latents)
    # Copied below: a state whose two leaves share a buffer cannot be donated.
    gate_bias_n = jnp.full(
        cfg.n_latents, -_first_threshold(sae, x_bd, cfg), jnp.float32
    )
    return replace(
        sae, gate_bias_n=gate_bias_n, mag_bias_n=zeros_n, mag_scale_n=jnp.copy(zeros_n)
    )


def _gated_post(sae: SAE) -> SAE:
    """Scales rows to norm 1; the gated encoder has no bias beside those of gate and
    magnitude.
    """
    return replace(unit_rows(sae), enc_bias_n=jnp.zeros_like(sae.enc_bias_n))


def _jump_start(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> SAE:
    return replace(
        sae,
        threshold_n=jnp.full(
            cfg.n_latents, _first_threshold(sae, x_bd, cfg), jnp.float32
        ),
    )


def _first_threshold(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> jax.Array:
    """Returns one threshold for all latents: the config's, or the one that leaves twice
    the intended number of latents on the data.
    """
    if cfg.threshold_init is not None:
        return jnp.float32(cfg.threshold_init)
    per_token = min(2 * (cfg.target_l0 or cfg.k), cfg.n_latents)
    pre_bn = jax.nn.relu(dense_codes(sae, x_bd))
    return kth_largest(pre_bn, max(1, round(len(x_bd) * per_token)))


def _jump_post(sae: SAE) -> SAE:
    assert sae.threshold_n is not None
    return replace(unit_rows(sae), threshold_n=jnp.maximum(sae.threshold_n, 0))


CROSSCODER_L1 = Objective("relu", keep, relu_loss, keep, False, as_streams, True)
RELU = Objective("relu", keep, relu_loss, keep, False, keep, True)
GATED = Objective("gated", _gated_start, gated_loss, _gated_post, True, keep, True)
JUMPRELU = Objective(
    "jumprelu", _jump_start, jumprelu_loss, _jump_post, True, keep, True
)
