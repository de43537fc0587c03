"""Training of SAEs and transcoders: the state, one step, and the loop with checkpoints
and curves.

Batches come from a function of the step number, so that a run that goes on after a kill
sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sae_attr.parallel import Rules, shard_tree, shardings
from sae_attr.sae.model import SAE
from sae_attr.sae.objectives import OBJECTIVES, Signals, first_weights
from sae_attr.sae.train_config import TrainConfig

Batch = Any
"""`x [b, d_in]`, or the pair `(x, y [b, d_out])` of a transcoder; raw activations of
either library.
"""

# Latents over `model`, in the weights and in what Adam keeps of them.
SAE_RULES: Rules = (
    (r"enc_dn", P(None, "model")),
    (r"dec_nm", P("model", None)),
    (r"(enc_bias|threshold|gate_bias|mag_bias|mag_scale|quiet)_n", P("model")),
)
_QUIET_MAX = 2**30
_CONTROLLER_MEMORY = 0.9
_MEDIAN_ROUNDS = 20
_SCALE_TOKENS = 1024


@struct.dataclass
class TrainState:
    """All that the next step depends on beside config and batch; a pytree.

    Args:
      sae: the weights, in normalised units; `finished` gives the SAE to use.
      opt: of optax.
      quiet_n: int32, tokens since each latent last fired.
      threshold: running mean of the batch thresholds, before its correction for the
        start.
      log_sparsity: logarithm of the penalty's coefficient, as the controller has it.
      l0: running mean that the controller looks at.
      scale_in, scale_out: what inputs and targets are multiplied with.
      step: steps done.
      bad_step: the first step whose loss or gradient was not finite, or -1.
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
    bad_step: jax.Array


class Report(NamedTuple):
    """What one step says of itself; sums are over its tokens, in normalised units,
    float32.

    Args:
      terms: the losses by name.
      residual, squares, sum_m: Σ|y - ŷ|², Σ|y|², Σ y over the batch, for the explained
        variance of many batches.
      l0, dead, spilled, grad_norm, lr, sparsity, threshold: as they were at this step;
        dead is the share of latents that fired on none of the last `dead_tokens`
        tokens, or of all so far.
    """

    terms: dict[str, jax.Array]
    residual: jax.Array
    squares: jax.Array
    sum_m: jax.Array
    l0: jax.Array
    dead: jax.Array
    spilled: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    sparsity: jax.Array
    threshold: jax.Array


def as_pair(batch: Batch, cfg: TrainConfig) -> tuple[Any, Any]:
    """Input and target; an autoencoder's target is its input.

    Raises:
      ValueError: a pair for an autoencoder or none for a transcoder, or arrays of other
        widths or lengths.
    """
    if isinstance(batch, tuple) != cfg.transcoder:
        found, wanted = (
            ("a pair", "x alone")
            if not cfg.transcoder
            else ("one array", "a pair (x, y)")
        )
        raise ValueError(
            f"batches are {found}, but the config says transcoder={cfg.transcoder}; "
            f"give {wanted}"
        )
    x, y = batch if isinstance(batch, tuple) else (batch, batch)
    want = (x.shape[0], cfg.d_in), (x.shape[0], cfg.width_out)
    if (x.shape, y.shape) != want:
        raise ValueError(
            f"a batch has shapes {x.shape} and {y.shape}, but the config says "
            f"{want[0]} and {want[1]}"
        )
    return x, y


def schedule(cfg: TrainConfig) -> optax.Schedule:
    """Learning rate: linear rise over `warmup` steps, flat, linear fall to 0 over the
    last `decay` of the steps.
    """
    peak, fall = cfg.learning_rate, round(cfg.decay * cfg.steps)
    parts = [
        optax.linear_schedule(
            peak / max(cfg.warmup_steps, 1), peak, max(cfg.warmup_steps - 1, 1)
        ),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, 0.0, max(fall, 1)),
    ]
    return optax.join_schedules(parts, [cfg.warmup_steps, cfg.steps - fall])


def optimiser(cfg: TrainConfig) -> optax.GradientTransformation:
    """Adam on `schedule`, after clipping where that is asked for."""
    adam = optax.adam(schedule(cfg), cfg.b1, cfg.b2, cfg.eps)
    return (
        adam
        if cfg.clip is None
        else optax.chain(optax.clip_by_global_norm(cfg.clip), adam)
    )


def init_state(
    cfg: TrainConfig, batch: Callable[[int], Batch], mesh: Mesh | None = None
) -> TrainState:
    """The state before the first step; scale, b_dec and thresholds come from batches 0
    to `init_batches` - 1.

    Raises:
      ValueError: batches that do not fit the config, or activations that are not finite
        or all zero.
    """
    pairs = [as_pair(batch(i), cfg) for i in range(cfg.init_batches)]
    x_bd, y_bm = (
        np.concatenate([np.asarray(p[i], np.float32) for p in pairs]) for i in range(2)
    )
    scale_in, scale_out = (
        _scale(cfg, v, name) for v, name in ((x_bd, "inputs"), (y_bm, "targets"))
    )
    state = first_state(cfg, x_bd * scale_in, centre(y_bm * scale_out, cfg.centre))
    state = replace(
        state, scale_in=jnp.float32(scale_in), scale_out=jnp.float32(scale_out)
    )
    return state if mesh is None else shard_tree(state, SAE_RULES, mesh)


def first_state(cfg: TrainConfig, x_bd: Any, b_dec_m: Any) -> TrainState:
    """The state that starts from normalised inputs `x_bd` and a decoder bias, with
    scales of 1.
    """
    objective, x_bd = OBJECTIVES[cfg.objective], jnp.asarray(x_bd)
    sae = first_weights(
        cfg, objective.gate, jnp.asarray(b_dec_m), jax.random.key(cfg.seed)
    )
    sae = objective.post_step(objective.start(sae, x_bd, cfg))
    sae = sae if cfg.transcoder else _at_scale(sae, x_bd, cfg)
    scalar = jnp.float32
    params: Any = sae
    return TrainState(
        sae,
        optimiser(cfg).init(params),
        jnp.zeros(cfg.n_latents, jnp.int32),
        scalar(0),
        scalar(np.log(cfg.sparsity)),
        scalar(cfg.target_l0 or 0),
        scalar(1),
        scalar(1),
        jnp.int32(0),
        jnp.int32(-1),
    )


def _at_scale(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> SAE:
    """The encoder, and the thresholds with it, times `enc_scale`.

    The code is homogeneous in the two.
    """
    factor = (
        _best_scale(sae, x_bd[:_SCALE_TOKENS], cfg)
        if cfg.enc_scale is None
        else cfg.enc_scale
    )
    levels = {name: getattr(sae, name) for name in ("threshold_n", "gate_bias_n")}
    moved = {
        name: level_n * factor
        for name, level_n in levels.items()
        if level_n is not None
    }
    return replace(sae, enc_dn=sae.enc_dn * factor, **moved)


def _best_scale(sae: SAE, x_bd: jax.Array, cfg: TrainConfig) -> jax.Array:
    """The number that the first codes have to be multiplied with for the least error of
    reconstruction.

    With tied unit rows the k best latents of a token all point its way and their sum is
    several times too long; Adam would spend its first thousand steps on that
    (stories260K, TopK, 1,500 steps: explained variance 0.941 against 0.933).
    """
    signals = Signals(jnp.zeros(cfg.n_latents, bool), jnp.float32(0))
    y_bm = (
        OBJECTIVES[cfg.objective].loss(sae, x_bd, x_bd, cfg, signals).y_bm
        - sae.dec_bias_m
    )
    factor = jnp.vdot(y_bm, x_bd - sae.dec_bias_m) / jnp.vdot(y_bm, y_bm)
    return jnp.where(jnp.isfinite(factor) & (factor > 0), factor, 1)


def centre(y_bm: np.ndarray, kind: str) -> np.ndarray:
    """Mean, geometric median (20 rounds of Weiszfeld's algorithm) or zero, `[m]`."""
    if kind == "zero":
        return np.zeros(y_bm.shape[1], np.float32)
    found = y_bm.mean(0, dtype=np.float64)
    for _ in range(_MEDIAN_ROUNDS if kind == "median" else 0):
        weight_b = 1 / np.maximum(np.linalg.norm(y_bm - found, axis=1), 1e-8)
        found = weight_b @ y_bm / weight_b.sum()
    return found.astype(np.float32)


def _scale(cfg: TrainConfig, x_bd: np.ndarray, name: str) -> float:
    square = float(np.mean(np.square(x_bd, dtype=np.float64)))
    if not (np.isfinite(square) and square > 0):
        raise ValueError(
            f"the mean square of the first {len(x_bd)} {name} is {square}; check where "
            "they come from"
        )
    return square**-0.5 if cfg.scale == "rms" else 1.0


def train_step(
    state: TrainState,
    x_bd: jax.Array,
    y_bm: jax.Array,
    *,
    cfg: TrainConfig,
    shards: int = 1,
) -> tuple[TrainState, Report]:
    """One optimiser step on raw activations; pure, to be jitted by the caller with
    `cfg` and `shards` static.

    Args:
      state: before the step.
      x_bd, y_bm: input and target, the same array for an autoencoder.
      cfg: the run.
      shards: size of the mesh's `model` axis.
    """
    objective = OBJECTIVES[cfg.objective]
    x_bd = x_bd.astype(jnp.float32) * state.scale_in
    y_bm = y_bm.astype(jnp.float32) * state.scale_out
    sparsity = coefficient(state, cfg)
    signals = Signals(state.quiet_n >= cfg.dead_after(len(x_bd)), sparsity, shards)

    def loss(sae: SAE) -> tuple[jax.Array, Any]:
        outcome = objective.loss(sae, x_bd, y_bm, cfg, signals)
        return sum(outcome.terms.values(), jnp.float32(0)), outcome

    grads: Any
    (total, outcome), grads = jax.value_and_grad(loss, has_aux=True)(state.sae)
    grads = without_parallel(state.sae, grads) if objective.unit else grads
    params: Any = state.sae
    updates, opt = optimiser(cfg).update(grads, state.opt, params)
    moved: Any = optax.apply_updates(params, updates)
    sae = objective.post_step(moved)
    norm = optax.tree.norm(grads)
    bad = (state.bad_step < 0) & ~(jnp.isfinite(total) & jnp.isfinite(norm))
    l0 = _CONTROLLER_MEMORY * state.l0 + (1 - _CONTROLLER_MEMORY) * outcome.l0
    after = replace(
        state,
        sae=sae,
        opt=opt,
        quiet_n=jnp.where(
            outcome.fired_n, 0, jnp.minimum(state.quiet_n + len(x_bd), _QUIET_MAX)
        ),
        threshold=cfg.threshold_decay * state.threshold
        + (1 - cfg.threshold_decay) * outcome.threshold,
        log_sparsity=state.log_sparsity + cfg.controller_gain * _off_target(l0, cfg),
        l0=l0,
        step=state.step + 1,
        bad_step=jnp.where(bad, state.step, state.bad_step),
    )
    report = Report(
        outcome.terms,
        jnp.sum(jnp.square(y_bm - outcome.y_bm)),
        jnp.sum(jnp.square(y_bm)),
        jnp.sum(y_bm, axis=0),
        outcome.l0,
        silent_share(after, cfg, len(x_bd)),
        outcome.spilled,
        norm,
        jnp.asarray(schedule(cfg)(state.step)),
        sparsity,
        running_threshold(after, cfg),
    )
    return after, report


def silent_share(state: TrainState, cfg: TrainConfig, batch_size: int) -> jax.Array:
    """Share of latents that fired on none of the last `dead_tokens` tokens, or of all
    tokens where there were fewer.
    """
    seen = jnp.minimum(state.step, _QUIET_MAX // batch_size) * batch_size
    silent_n = state.quiet_n >= jnp.minimum(
        seen, min(cfg.dead_after(batch_size), _QUIET_MAX)
    )
    return jnp.mean(silent_n, dtype=jnp.float32)


def without_parallel(sae: SAE, grads: SAE) -> SAE:
    """Gradients without the part of each decoder row's that lies along the (unit) row.

    Adam would turn it into length, which the norm then takes away again (Bricken et al.
    2023, "Towards monosemanticity", appendix).
    """
    along_n1 = jnp.sum(grads.dec_nm * sae.dec_nm, axis=1, keepdims=True)
    return replace(grads, dec_nm=grads.dec_nm - along_n1 * sae.dec_nm)


def coefficient(state: TrainState, cfg: TrainConfig) -> jax.Array:
    """The penalty's coefficient at this step: the controller's, risen over the first
    `sparsity_warmup` of the steps.

    The controller is a PI one on logarithms: an L0 twice the target multiplies the
    coefficient by 2^damping at once, and raises it by the gain · log 2 a step. Without
    the first part thresholds, which follow slowly, swing about the target.
    """
    rise = jnp.minimum(1.0, (state.step + 1) / max(cfg.sparsity_warmup * cfg.steps, 1))
    return (
        jnp.exp(
            state.log_sparsity + cfg.controller_damping * _off_target(state.l0, cfg)
        )
        * rise
    )


def _off_target(l0: jax.Array, cfg: TrainConfig) -> jax.Array:
    """log(L0 / target), within ±1; 0 without a target."""
    if cfg.target_l0 is None:
        return jnp.float32(0)
    return jnp.clip(jnp.log(jnp.maximum(l0, 1e-3) / cfg.target_l0), -1, 1)


def running_threshold(state: TrainState, cfg: TrainConfig) -> jax.Array:
    """Mean of the batch thresholds with weights that fall by `threshold_decay` a step,
    corrected for the start.
    """
    return state.threshold / (1 - cfg.threshold_decay ** jnp.maximum(state.step, 1))


def finished(cfg: TrainConfig, state: TrainState, **said: Any) -> SAE:
    """The trained SAE in the units of the site, with the gate that it is used with.

    Everything is positively homogeneous, so biases and thresholds are divided by the
    output's scale, and the encoder takes the ratio of the scales: codes and
    reconstructions are those of training, in raw units; decoder rows stay.

    Args:
      cfg: the run.
      state: of any step.
      **said: fields of `SAEConfig` to record, such as site, model_name, layer,
        context_size.
    """
    sae = OBJECTIVES[cfg.objective].finish(
        state.sae, cfg, running_threshold(state, cfg)
    )
    over, ratio = 1 / state.scale_out, state.scale_in / state.scale_out
    scaled = ("enc_bias_n", "dec_bias_m", "threshold_n", "gate_bias_n", "mag_bias_n")
    fields = {
        name: getattr(sae, name) * over
        for name in scaled
        if getattr(sae, name) is not None
    }
    # An autoencoder has one scale: the ratio is 1 but for rounding.
    enc_dn = sae.enc_dn * ratio if cfg.transcoder else sae.enc_dn
    return replace(sae, enc_dn=enc_dn, **fields, cfg=replace(sae.cfg, **said))


def compiled_step(
    cfg: TrainConfig, mesh: Mesh | None, state: TrainState
) -> Callable[..., tuple[TrainState, Report]]:
    """`train_step` jitted for this run; the state that goes in is used up."""
    shards = 1 if mesh is None else mesh.shape["model"]
    step = partial(train_step, cfg=cfg, shards=shards)
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    out = shardings(state, SAE_RULES, mesh), NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=out)
