"""How fast this device computes: measured on a short stand-in for the model, or stated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from sae_attr.lm.cache import Cache, init_cache
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling, draw
from sae_attr.lm.model import Params, forward, logits
from sae_attr.report.numbers import duration
from sae_attr.study.cost import StageCost
from sae_attr.study.dry_run.memory import param_shapes, parameter_count


@dataclass(frozen=True)
class Batch:
    """A batch of completions that is sampled at a time.

    Args:
      rows: of the batch.
      slots: tokens that a row may come to hold.
    """

    rows: int = 1
    slots: int = 64


RatesOf = Callable[[LMConfig, Batch, str], "Rates"]
"""(model, batch of completions, dtype of the weights) -> how fast it computes."""

LAYERS = 2  # of the stand-in
READ_ROWS, READ_WIDTH = 8, 64
_MOST = 1 << 26  # parameters of a stand-in's layer
_MOST_HEAD = 1 << 25  # parameters of its table of tokens
_SECONDS = 0.25  # that each program is timed for
_STEPS = 8  # tokens of a loop that is timed, as sampling is a loop
_PAYS_ONE_PASS = 2  # floating point operations of a parameter and token


@dataclass(frozen=True)
class Rates:
    """Seconds of each kind of work that a `StageCost` counts.

    Args:
      read: of a token in one layer, in batches.
      head: of a token's next-token probabilities, in batches.
      step: of one more token of every row of a batch of completions.
      flop: of one floating point operation of a large product.
      source: where the numbers come from, for readers.
    """

    read: float
    head: float
    step: float
    flop: float
    source: str

    @property
    def text(self) -> str:
        """Returns the rates for readers."""
        return (
            f"rates {self.source}: {self.read:.1e} s a token and layer, "
            f"{self.head:.1e} s a token's vocabulary, {duration(self.step)} for one "
            "more token of a batch of completions"
        )

    def seconds(self, cost: StageCost) -> float:
        """Returns the time that a stage takes at these rates."""
        reading = cost.read * self.read + cost.heads * self.head
        return reading + cost.steps * self.step + cost.flops * self.flop


def stated_rates(cfg: LMConfig, *, read: float, sampled: float, rows: int) -> Rates:
    """Returns rates from two numbers that someone measured.

    Args:
      read: tokens per second of a forward pass through the whole model.
      sampled: new tokens per second of a batch of `rows` completions.
    """
    layer = layer_parameters(cfg)
    whole = cfg.n_layers * layer + cfg.vocab * cfg.d_model
    per_parameter = 1 / (read * whole)
    return Rates(
        read=per_parameter * layer,
        head=per_parameter * cfg.vocab * cfg.d_model,
        step=rows / sampled,
        flop=per_parameter / _PAYS_ONE_PASS,
        source=f"stated: {read:g} tokens/s read, {sampled:g} tokens/s sampled",
    )


def layer_parameters(cfg: LMConfig) -> float:
    """Returns the parameters of a layer that a token is multiplied with, the mean over
    layers: of a mixture only the experts that it goes to.
    """
    dense = replace(_without_experts(cfg), vocab=1, learned_pos=False, tied_head=True)
    return parameter_count(param_shapes(dense, "float32")["blocks"]) / cfg.n_layers


def measured_rates(
    cfg: LMConfig, mesh: jax.sharding.Mesh, *, batch: Batch, dtype: str
) -> Rates:
    """Times a stand-in of two layers with this model's shapes on the first device.

    Args:
      batch: of completions.
      dtype: of the weights.
    """
    short = stand_in(cfg)
    params = _filled(short, dtype)
    data, model = mesh.shape["data"], mesh.shape["model"]
    scale = layer_parameters(cfg) / layer_parameters(short) / model
    read = _read_seconds(params, short, dtype) * scale
    flop, head = _head_seconds(params, short)
    per_device = replace(batch, rows=max(batch.rows // data, 1))
    layer_step, head_step = _step_seconds(params, short, dtype, per_device)
    tokens = cfg.vocab / short.vocab / model
    step = cfg.n_layers * layer_step * scale + head_step * tokens
    device = mesh.devices.flat[0]
    return Rates(
        read=read / data,
        head=head * tokens / data,
        step=step,
        flop=flop / (data * model),
        source=f"measured just now on {device.device_kind} with {short.n_layers} layers "
        "of the model's shapes",
    )


def stand_in(cfg: LMConfig) -> LMConfig:
    """Returns a model of a few layers like those of `cfg`, as far as they fit a quick
    measurement.
    """
    short = _without_experts(cfg)
    layers = min(LAYERS, cfg.n_layers)
    short = replace(
        short,
        n_layers=layers,
        rope_of_layer=cfg.rope_of_layer[:layers],
        window_of_layer=cfg.window_of_layer[:layers],
        vocab=max(min(cfg.vocab, _MOST_HEAD // cfg.d_model), 2),
        max_len=max(cfg.max_len, READ_WIDTH),
        tied_head=True,
    )
    while layer_parameters(short) > _MOST and short.d_mlp > 256:
        short = replace(short, d_mlp=short.d_mlp // 2)
    return short


def _without_experts(cfg: LMConfig) -> LMConfig:
    """Returns the dense model that does as much for a token as the mixture."""
    if not cfg.n_experts:
        return cfg
    return replace(
        cfg,
        n_experts=0,
        n_chosen=0,
        dense_layers=(),
        d_dense=0,
        d_mlp=cfg.d_mlp * cfg.n_chosen,
    )


def _filled(cfg: LMConfig, dtype: str) -> Params:
    """Returns parameters that are all alike: drawing them would take longer than the
    measurement.
    """
    shapes = param_shapes(cfg, dtype)
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)


def _read_seconds(params: Params, cfg: LMConfig, dtype: str) -> float:
    tokens_bt = jnp.ones((READ_ROWS, READ_WIDTH), jnp.int32)
    run = jax.jit(lambda params, tokens: forward(params, tokens, cfg=cfg).hidden_btd)
    seconds = _timed(lambda: run(params, tokens_bt))
    return seconds / (READ_ROWS * READ_WIDTH * cfg.n_layers)


def _head_seconds(params: Params, cfg: LMConfig) -> tuple[float, float]:
    """Returns the seconds of a floating point operation and of a token."""
    count = READ_ROWS * READ_WIDTH
    hidden_kd = jnp.ones((count, cfg.d_model), cfg.resid_dtype)
    run = jax.jit(lambda params, hidden: logits(params, hidden, cfg=cfg))
    seconds = _timed(lambda: run(params, hidden_kd)) / count
    return seconds / (_PAYS_ONE_PASS * cfg.vocab * cfg.d_model), seconds


def _step_seconds(
    params: Params, cfg: LMConfig, dtype: str, batch: Batch
) -> tuple[float, float]:
    """Returns the seconds of one more token of every row: in a layer, and of its draw."""
    rows, used = batch.rows, batch.slots // 2
    cache = init_cache(cfg, rows=rows, slots=batch.slots, dtype=dtype)
    tokens_b1, pos_b1 = jnp.ones((rows, 1), jnp.int32), jnp.full((rows, 1), used)

    def layers(params: Params, cache: Cache) -> Cache:
        # A loop, so that the cache is written in place, as it is when sampling.
        def step(_: jax.Array, cache: Cache) -> Cache:
            at = replace(cache, used=jnp.asarray(used, jnp.int32))
            out = forward(params, tokens_b1, cfg=cfg, pos_bt=pos_b1, cache=at)
            assert out.cache is not None
            # What is drawn depends on the last layer: nothing of it may be left out.
            seen = out.cache.pos_bs + 0 * out.hidden_btd[:1, 0, :1].astype(jnp.int32)
            return replace(out.cache, pos_bs=seen)

        return jax.lax.fori_loop(0, _STEPS, step, cache)

    def drawn(params: Params, hidden_bd: jax.Array, keys_b: jax.Array) -> jax.Array:
        logits_bv = logits(params, hidden_bd, cfg=cfg)
        return draw(logits_bv, keys_b, sampling=Sampling())

    keys_b = jax.random.split(jax.random.key(0), rows)
    hidden_bd = jnp.ones((rows, cfg.d_model), cfg.resid_dtype)
    run_layers, run_draw = jax.jit(layers), jax.jit(drawn)
    of_layers = _timed(lambda: run_layers(params, cache)) / (_STEPS * cfg.n_layers)
    return of_layers, _timed(lambda: run_draw(params, hidden_bd, keys_b))


def _timed(run: Callable[[], Any]) -> float:
    """Returns the least seconds of a call, after one that compiles: other programs only
    slow one down.
    """
    jax.block_until_ready(run())
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not times or (time.perf_counter() < end and len(times) < 50):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
