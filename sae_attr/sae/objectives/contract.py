"""The contract of an objective, pure functions on one `SAE` pytree, and the first
weights of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sae_attr.sae.gates import safe_norm
from sae_attr.sae.model import SAE, SAEConfig, unit_decoder
from sae_attr.sae.train_config import TrainConfig


class Signals(NamedTuple):
    """Inputs of a loss beside the batch.

    Args:
      dead_n: bool, latents that have not fired for `TrainConfig.dead_tokens` tokens.
      sparsity: the penalty's coefficient at this step.
      mesh: where tokens lie over `data` and latents over `model`; None on one device.
      k: latents per token at this step where it is annealed; None for
        `TrainConfig.largest_k`.
    """

    dead_n: jax.Array
    sparsity: jax.Array
    mesh: Mesh | None = None
    k: jax.Array | None = None


class Outcome(NamedTuple):
    """A loss and what came with it.

    Args:
      terms: name -> scalar; their sum is the loss. "error" is the mean squared error of
        a coordinate, of a crosscoder what `TrainConfig.error` says.
      y_bm: the reconstruction, in the units of the target.
      fired_n: bool, latents with a code above 0 on some token of the batch.
      l0: mean number of codes above 0.
      threshold: smallest value that the batch's selection holds (batch_topk,
        matryoshka, crosscoder); else 0.
      spilled: whether that selection had to look beyond the candidates of some token.
    """

    terms: dict[str, jax.Array]
    y_bm: jax.Array
    fired_n: jax.Array
    l0: jax.Array
    threshold: jax.Array
    spilled: jax.Array


class Objective(NamedTuple):
    """One way to train an SAE.

    Args:
      gate: of `SAEConfig` while training, and of the result unless `finish` says
        otherwise.
      start: `(sae, x_bd, cfg) -> sae`, the fields that this gate adds, from normalised
        inputs.
      loss: `(sae, x_bd, y_bm, cfg, signals) -> Outcome`, differentiable in `sae`.
      post_step: `sae -> sae`, what must hold after every step.
      unit: the decoder has rows of norm 1: the part of its gradient along them is taken
        out before Adam.
      finish: `(sae, cfg, threshold) -> sae` as it is saved and used, the gate included.
      penalised: there is a penalty, whose coefficient a controller may move.
    """

    gate: str
    start: Callable[[SAE, jax.Array, TrainConfig], SAE]
    loss: Callable[[SAE, jax.Array, jax.Array, TrainConfig, Signals], Outcome]
    post_step: Callable[[SAE], SAE]
    unit: bool
    finish: Callable[[SAE, TrainConfig, jax.Array], SAE]
    penalised: bool


def keep(sae: SAE, *_: object) -> SAE:
    """Changes nothing."""
    return sae


def unit_rows(sae: SAE) -> SAE:
    """Scales decoder rows to norm 1."""
    return replace(sae, dec_nm=unit_decoder(sae.dec_nm))


def sae_config(cfg: TrainConfig, gate: str) -> SAEConfig:
    """Returns the static part of the SAE in training."""
    k = cfg.k if gate == "topk" else None
    return SAEConfig(
        cfg.d_in,
        cfg.width_out,
        cfg.n_latents,
        gate=gate,
        k=k,
        # A transcoder's b_dec lies in the space of its output.
        subtract_b_dec=cfg.subtract_b_dec and not cfg.transcoder,
        source="sae_attr",
    )


def first_weights(
    cfg: TrainConfig, gate: str, b_dec_m: jax.Array, key: jax.Array
) -> SAE:
    """Returns random unit decoder rows; the encoder is their transpose, or random of the same
    size where sites differ.
    """
    n, d, m = cfg.n_latents, cfg.d_in, cfg.width_out
    dec_nm = unit_decoder(jax.random.normal(key, (n, m)))
    enc_nd = dec_nm
    if cfg.transcoder:
        enc_nd = unit_decoder(jax.random.normal(jax.random.fold_in(key, 1), (n, d)))
    return SAE(
        enc_nd.T,
        jnp.zeros(n),
        dec_nm,
        jnp.asarray(b_dec_m, jnp.float32),
        cfg=sae_config(cfg, gate),
    )


def squared_error(y_bm: jax.Array, target_bm: jax.Array) -> jax.Array:
    """Returns the squared error, averaged over tokens and coordinates."""
    return jnp.mean(jnp.square(y_bm - target_bm))


def stream_norms(dec_nm: jax.Array, streams: int) -> jax.Array:
    """Returns the sum over streams of the norms of each latent's rows, `[n]`."""
    dec_nsd = dec_nm.reshape(len(dec_nm), streams, -1)
    return jnp.sum(safe_norm(dec_nsd)[..., 0], axis=1)


def stream_error(y_bm: jax.Array, target_bm: jax.Array, cfg: TrainConfig) -> jax.Array:
    """Returns the error that `TrainConfig.error` names."""
    if cfg.error == "squared":
        return squared_error(y_bm, target_bm)
    error_bsd = (y_bm - target_bm).reshape(len(y_bm), cfg.streams, -1)
    return jnp.mean(jnp.sum(safe_norm(error_bsd)[..., 0], axis=1))


def as_streams(sae: SAE, cfg: TrainConfig, *_: object) -> SAE:
    """Gives the SAE of models side by side an axis for them: widths of one stream."""
    width = cfg.d_in // cfg.streams
    widths = replace(sae.cfg, d_in=width, d_out=width, streams=cfg.streams)
    return replace(sae, cfg=widths)


def dense_codes(sae: SAE, x_bd: jax.Array) -> jax.Array:
    """Returns pre-activations `[b, n]` as the model defines them, at the default precision of
    products.
    """
    z_bd = x_bd - sae.dec_bias_m if sae.cfg.subtract_b_dec else x_bd
    return z_bd @ sae.enc_dn + sae.enc_bias_n


def dense_outcome(
    terms: dict[str, jax.Array], y_bm: jax.Array, codes_bn: jax.Array
) -> Outcome:
    """Returns the outcome of an objective without a batch threshold."""
    active_bn = codes_bn > 0
    l0 = jnp.mean(jnp.sum(active_bn, axis=1, dtype=jnp.float32))
    return Outcome(
        terms, y_bm, jnp.any(active_bn, axis=0), l0, jnp.float32(0), jnp.bool_(False)
    )
