"""The state of an SAE's training: what the first one is, and the SAE that any one
gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sae_attr.parallel import Rules, shard_tree
from sae_attr.sae.model import SAE
from sae_attr.sae.objectives import OBJECTIVES, Signals, first_weights
from sae_attr.sae.train_config import TrainConfig

ActBatch = Any
"""`x [b, d_in]`, or the pair `(x, y [b, d_out])` of a transcoder: raw activations in
numpy or JAX.
"""

# Latents over `model`, in the weights and in what Adam keeps of them.
SAE_RULES: Rules = (
    (r"enc_dn", P(None, "model")),
    (r"dec_nm", P("model", None)),
    (r"(enc_bias|threshold|gate_bias|mag_bias|mag_scale|quiet)_n", P("model")),
)
_MEDIAN_ROUNDS = 20
_SCALE_TOKENS = 1024


@struct.dataclass
class SAEState:
    """Holds everything that the next step depends on beside config and batch; a pytree.

    Args:
      sae: the weights, in normalised units; `finished` gives the SAE to use.
      opt: of optax.
      quiet_n: int32, tokens since each latent last fired; tokens rather than steps, so
        that the batch size does not decide which latents are dead.
      threshold: running mean of the batch thresholds, before its correction for the
        start.
      log_sparsity: logarithm of the penalty's coefficient, as the controller has it.
      l0: running mean that the controller looks at.
      scale_in, scale_out: factors of inputs and targets that normalise them.
      step: steps done.
    """

    sae: SAE
    opt: Any
    quiet_n: jax.Array
    threshold: jax.Array
    log_sparsity: jax.Array
    l0: jax.Array
    scale_in: jax.Array
    scale_out: jax.Array
    step: jax.Array


def as_pair(batch: ActBatch, cfg: TrainConfig) -> tuple[Any, Any]:
    """Returns input and target; an autoencoder's target is its input.

    Raises:
      ValueError: a pair for an autoencoder or none for a transcoder, or arrays of other
        widths or lengths.
    """
    if isinstance(batch, tuple) and not cfg.transcoder:
        raise ValueError(
            "batches are a pair, but the config says transcoder=False; give x alone"
        )
    if cfg.transcoder and not isinstance(batch, tuple):
        raise ValueError(
            "batches are one array, but the config says transcoder=True; give a pair "
            "(x, y)"
        )
    x, y = batch if isinstance(batch, tuple) else (batch, batch)
    shapes = (x.shape[0], cfg.d_in), (x.shape[0], cfg.width_out)
    if (x.shape, y.shape) != shapes:
        raise ValueError(
            f"a batch has shapes {x.shape} and {y.shape}, but the config says "
            f"{shapes[0]} and {shapes[1]}"
        )
    return x, y


# ---- optimiser -----------------------------------------------------------------------


def schedule(cfg: TrainConfig) -> optax.Schedule:
    """Returns the learning rate of a step: rise over `warmup` steps, flat, linear fall
    to 0 over the last `decay` of the steps.
    """
    peak = cfg.learning_rate
    rise, fall = cfg.warmup_steps, round(cfg.decay * cfg.steps)
    # Begins at peak / rise: at a rate of 0 the first step would be lost.
    start = optax.linear_schedule(peak / max(rise, 1), peak, max(rise - 1, 1))
    if cfg.warmup_shape == "cosine":
        # A cosine decay of the part that is missing, from 0.9 of the peak to 0.
        missing = optax.cosine_decay_schedule(0.9 * peak, max(rise, 1))
        start = lambda step: peak - missing(step)
    parts = [
        start,
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, 0.0, max(fall, 1)),
    ]
    return optax.join_schedules(parts, [rise, cfg.steps - fall])


def make_adam(cfg: TrainConfig) -> optax.GradientTransformation:
    """Returns Adam on `schedule`, after clipping if the config clips."""
    adam = optax.adam(schedule(cfg), cfg.b1, cfg.b2, cfg.eps)
    if cfg.clip is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(cfg.clip), adam)


# ---- the first state -----------------------------------------------------------------


def init_state(
    cfg: TrainConfig, batch_of: Callable[[int], ActBatch], mesh: Mesh | None = None
) -> SAEState:
    """Returns the state before the first step; scale, b_dec and thresholds come from
    batches 0 to `init_batches` - 1.

    Raises:
      ValueError: batches that do not fit the config, or activations that are not finite
        or all zero.
    """
    pairs = [as_pair(batch_of(i), cfg) for i in range(cfg.init_batches)]
    x_bd = np.concatenate([np.asarray(x, np.float32) for x, _ in pairs])
    y_bm = np.concatenate([np.asarray(y, np.float32) for _, y in pairs])
    scale_in = _scale(cfg, x_bd, "inputs")
    scale_out = _scale(cfg, y_bm, "targets")
    state = first_state(cfg, x_bd * scale_in, centre(y_bm * scale_out, cfg.centre))
    state = replace(
        state, scale_in=jnp.float32(scale_in), scale_out=jnp.float32(scale_out)
    )
    return state if mesh is None else shard_tree(state, SAE_RULES, mesh)


@partial(jax.jit, static_argnames="cfg")
def first_state(cfg: TrainConfig, x_bd: Any, b_dec_m: Any) -> SAEState:
    """Returns the state that starts from normalised inputs `x_bd` and a decoder bias,
    with scales of 1.
    """
    objective, x_bd = OBJECTIVES[cfg.objective], jnp.asarray(x_bd)
    sae = first_weights(
        cfg, objective.gate, jnp.asarray(b_dec_m), jax.random.key(cfg.seed)
    )
    # The state itself holds what must hold after every step, such as unit rows.
    sae = objective.post_step(objective.start(sae, x_bd, cfg))
    if not cfg.transcoder:
        sae = _at_scale(sae, x_bd, cfg)
    params: Any = sae
    return SAEState(
        sae=sae,
        opt=make_adam(cfg).init(params),
        quiet_n=jnp.zeros(cfg.n_latents, jnp.int32),
        threshold=jnp.float32(0),
        log_sparsity=jnp.float32(np.log(cfg.sparsity)),
        l0=jnp.float32(cfg.target_l0 or 0),
        scale_in=jnp.float32(1),
        scale_out=jnp.float32(1),
        step=jnp.int32(0),
    )


def _at_scale(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> SAE:
    """Multiplies the encoder, and the thresholds with it, by `enc_scale`: codes are
    homogeneous in the two.
    """
    factor: Any = cfg.enc_scale
    if factor is None:
        factor = _best_scale(sae, x_bd[:_SCALE_TOKENS], cfg)
    fields = {"enc_dn": sae.enc_dn * factor}
    for name in ("threshold_n", "gate_bias_n"):
        level_n = getattr(sae, name)
        if level_n is not None:
            fields[name] = level_n * factor
    return replace(sae, **fields)


def _best_scale(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> jax.Array:
    """Returns the factor of the first codes with the least error of reconstruction.

    With tied unit rows the k best latents of a token all point its way and their sum is
    several times too long; Adam would spend its first thousand steps on that
    (stories260K, TopK, 1,500 steps: explained variance 0.941 against 0.933).
    """
    signals = Signals(jnp.zeros(cfg.n_latents, bool), jnp.float32(0))
    outcome = OBJECTIVES[cfg.objective].loss(sae, x_bd, x_bd, cfg, signals)
    y_bm = outcome.y_bm - sae.dec_bias_m
    factor = jnp.vdot(y_bm, x_bd - sae.dec_bias_m) / jnp.vdot(y_bm, y_bm)
    return jnp.where(jnp.isfinite(factor) & (factor > 0), factor, 1)


def centre(y_bm: np.ndarray, kind: str) -> np.ndarray:
    """Returns mean, geometric median (20 rounds of Weiszfeld's algorithm) or zero,
    `[m]`.
    """
    if kind == "zero":
        return np.zeros(y_bm.shape[1], np.float32)
    centre_m = y_bm.mean(0, dtype=np.float64)
    for _ in range(_MEDIAN_ROUNDS if kind == "median" else 0):
        weight_b = 1 / np.maximum(np.linalg.norm(y_bm - centre_m, axis=1), 1e-8)
        centre_m = weight_b @ y_bm / weight_b.sum()
    return centre_m.astype(np.float32)


def _scale(cfg: TrainConfig, x_bd: np.ndarray, name: str) -> float:
    # In float64: a mean over millions of squares.
    square = float(np.mean(np.square(x_bd, dtype=np.float64)))
    if not (np.isfinite(square) and square > 0):
        raise ValueError(
            f"the mean square of the first {len(x_bd)} {name} is {square}; check where "
            "they come from"
        )
    if cfg.scale == "none":
        return 1.0
    if cfg.scale == "unit":
        square *= x_bd.shape[1]
    return square**-0.5


# ---- the SAE of a state --------------------------------------------------------------


@partial(jax.jit, static_argnames="cfg")
def running_threshold(state: SAEState, cfg: TrainConfig) -> jax.Array:
    """Returns the mean of the batch thresholds since `threshold_start`, with weights that
    fall by `threshold_decay` a step, corrected for the start; 0 before it.
    """
    steps = jnp.maximum(state.step - cfg.threshold_start, 1)
    return state.threshold / (1 - cfg.threshold_decay**steps)


def finished(cfg: TrainConfig, state: SAEState, **fields: Any) -> SAE:
    """Returns the trained SAE in the units of the site, with the gate that it is used
    with.

    Everything is positively homogeneous, so biases and thresholds are divided by the
    output's scale, and the encoder takes the ratio of the scales: codes and
    reconstructions are those of training, in raw units; decoder rows stay.

    Args:
      cfg: the run.
      state: of any step.
      **fields: of `SAEConfig` to record, such as site, model_name, layer, context_size.
    """
    objective = OBJECTIVES[cfg.objective]
    sae = objective.finish(state.sae, cfg, running_threshold(state, cfg))
    over = 1 / state.scale_out
    scaled = {}
    for name in (
        "enc_bias_n",
        "dec_bias_m",
        "threshold_n",
        "gate_bias_n",
        "mag_bias_n",
    ):
        level = getattr(sae, name)
        if level is not None:
            scaled[name] = level * over
    if cfg.transcoder:
        # An autoencoder has one scale: there the ratio is 1 but for rounding.
        scaled["enc_dn"] = sae.enc_dn * (state.scale_in / state.scale_out)
    return replace(sae, **scaled, cfg=replace(sae.cfg, **fields))
