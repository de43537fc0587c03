"""One sparse autoencoder for every source: a pytree of weights, and pure functions that
encode and decode.

    x' = norm(x);   pre = (x' - b_dec?) @ enc_dn + enc_bias_n;   codes = gate(pre)
    y  = unnorm(codes @ dec_nm + dec_bias_m) + x @ skip_dm

Norms are per token, so decoding needs the input's statistics: `decode` takes `x` for
them and for the skip connection. The loaders fold everything that folds exactly
(dataset-wise scale, decoder norms), so little is left to do here. A crosscoder is the
same with its streams side by side: it reads `[..., streams, d_in]`, and writes that
shape.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.sae.config import LOCAL_GATES, SAEConfig
from sae_attr.sae.gates import GATES, safe_norm
from sae_attr.sae.temporal import Attention, split


@struct.dataclass
class SAE:
    """Weights of an SAE; a pytree.

    Shapes: enc_dn `[d_in, n]`, enc_bias_n `[n]` (zeros for gated), dec_nm `[n, d_out]`,
    dec_bias_m `[d_out]`, threshold_n `[n]` (jumprelu; `[streams, n]` where decoupled),
    gate_bias_n, mag_bias_n, mag_scale_n `[n]` (gated; the scale is a logarithm,
    "r_mag"), skip_dm `[d_in, d_out]` (skip transcoders), attention (temporal, a layer
    each). `dec_nm[i]` is what one unit of code i adds to the output. Crosscoders have
    `streams * d_in` and `streams * d_out` for the widths; a block encoder keeps enc_dn
    at `[streams * d_in, n / streams]`, one block of rows per stream.
    """

    enc_dn: jax.Array
    enc_bias_n: jax.Array
    dec_nm: jax.Array
    dec_bias_m: jax.Array
    threshold_n: jax.Array | None = None
    gate_bias_n: jax.Array | None = None
    mag_bias_n: jax.Array | None = None
    mag_scale_n: jax.Array | None = None
    skip_dm: jax.Array | None = None
    attention: tuple[Attention, ...] = ()
    cfg: SAEConfig = struct.field(pytree_node=False, kw_only=True)


_PER_LATENT = ("enc_bias_n", "threshold_n", "gate_bias_n", "mag_bias_n", "mag_scale_n")


def encode(sae: SAE, x: jax.Array) -> jax.Array:
    """Computes the code of every latent, `[..., n]` (decoupled crosscoders: `[...,
    streams, n]`).

    Args:
      sae: the SAE; weights in bfloat16 make the arithmetic bfloat16, else it is float32
        (float64 for float64 input).
      x: `[..., d_in]`, or `[..., heads, head_dim]` where the SAE reads concatenated
        heads, or `[..., streams, d_in]`.

    Raises:
      ValueError: the last axes do not fit the SAE.
    """
    return _codes(sae, _flat(sae, x))


def encode_latents(sae: SAE, x: jax.Array, latents: Any) -> jax.Array:
    """Computes the codes of some latents, `[..., k]`: `encode(sae, x)[..., latents]`
    without the other columns.

    Args:
      sae: an SAE whose gate looks at one latent at a time (relu, identity, jumprelu,
        gated).
      x: as for `encode`.
      latents: `[k]` integers.

    Raises:
      ValueError: a gate that compares latents, a block encoder, or a latent (given as a
        list or numpy array) outside `0..n-1`.
    """
    _check_separable(sae.cfg)
    if not isinstance(latents, jax.Array):
        latents = _checked_latents(sae.cfg, latents)
    columns = {"enc_dn": jnp.take(sae.enc_dn, latents, axis=1)}
    for name in _PER_LATENT:
        value_n = getattr(sae, name)
        if value_n is not None:
            # jnp.take gives NaN outside the range, where indexing would clamp.
            columns[name] = jnp.take(value_n, latents, axis=-1)
    return _codes(replace(sae, **columns), _flat(sae, x))


def decode(sae: SAE, codes: jax.Array, x: jax.Array | None = None) -> jax.Array:
    """Computes the output of codes, `[..., d_out]` (crosscoders: `[..., streams,
    d_out]`), in the units of the site.

    Args:
      sae: the SAE.
      codes: `[..., n]`.
      x: the input that was encoded, needed for per-token norms and skip connections;
        with heads, so is the output.

    Raises:
      ValueError: the SAE needs `x` and it is missing.
    """
    if x is None:
        _check_needs_no_input(sae)
        return _unflat(sae.cfg, _linear(sae, codes))
    flat = _flat(sae, x)
    norm = _norm(sae.cfg, flat)
    if sae.attention:
        predicted = split(sae, _sequences(sae, flat))[1]
        codes = codes + predicted.astype(codes.dtype)
    y = _linear(sae, codes) * norm.scale + norm.shift
    if sae.skip_dm is not None:
        # The skip reads the raw input, neither normalised nor centred.
        y = y + _dot(flat, sae.skip_dm)
    if sae.cfg.streams == 1 and flat.shape != jnp.shape(x):
        return y.reshape(jnp.shape(x))
    return _unflat(sae.cfg, y)


def reconstruct(sae: SAE, x: jax.Array) -> jax.Array:
    """Computes `decode(encode(x))` with the norm and the skip connection in place; same
    leading shape as `x`.
    """
    return decode(sae, encode(sae, x), x)


def code_rows(sae: SAE) -> jax.Array:
    """Returns what one unit of each code adds to the output before its scale, `[n,
    d_out]`: the decoder's rows as `decode` uses them.
    """
    return unit_decoder(sae.dec_nm) if sae.cfg.rescale_by_dec_norm else sae.dec_nm


def code_scale(sae: SAE, x: jax.Array) -> jax.Array:
    """Returns the factor `[..., 1]` by which `decode` multiplies a token's codes: 1
    unless the SAE has a norm per token.
    """
    flat = _flat(sae, x)
    scale = jnp.asarray(_norm(sae.cfg, flat).scale, flat.dtype)
    return jnp.broadcast_to(scale, (*flat.shape[:-1], 1))


@jax.jit
def unit_decoder(dec_nm: jax.Array) -> jax.Array:
    """Divides decoder rows `[n, m]` by their norms, in float32 at least; a row of zeros
    stays zero.
    """
    dec_nm = jnp.asarray(dec_nm)
    dec_nm = dec_nm.astype(jnp.promote_types(dec_nm.dtype, jnp.float32))
    norms_n1 = safe_norm(dec_nm)
    return dec_nm / jnp.where(norms_n1 > 0, norms_n1, 1)


def scaled_input(sae: SAE, factor_d: jax.Array) -> SAE:
    """Returns the SAE that reads x as this one reads x · factor `[d]`.

    Raises:
      ValueError: the SAE normalises its input or subtracts its decoder bias from it.
    """
    cfg = sae.cfg
    if cfg.norm != "none" or cfg.subtract_b_dec or cfg.streams > 1:
        raise ValueError(
            "the input's scale per channel cannot be moved into an encoder that "
            "centres or normalises it"
        )
    scaled = {"enc_dn": (sae.enc_dn * factor_d[:, None]).astype(sae.enc_dn.dtype)}
    if sae.skip_dm is not None:
        skip_dm = sae.skip_dm * factor_d[:, None]
        scaled["skip_dm"] = skip_dm.astype(sae.skip_dm.dtype)
    return replace(sae, **scaled)


# ---- the input -----------------------------------------------------------------------


def _flat(sae: SAE, x: jax.Array) -> jax.Array:
    """The input as `[..., d]`, heads or streams side by side, in the dtype of the
    arithmetic.
    """
    x, cfg = jnp.asarray(x), sae.cfg
    dtype = sae.enc_dn.dtype
    if dtype in (jnp.float32, jnp.float64):
        dtype = jnp.promote_types(x.dtype, dtype)
    x = x.astype(dtype)
    if cfg.streams > 1:
        if x.shape[-2:] != (cfg.streams, cfg.d_in):
            raise ValueError(
                f"x has shape {x.shape} but the crosscoder reads [..., "
                f"streams={cfg.streams}, d_in={cfg.d_in}]; stack "
                f"the activations of {cfg.stream_names or 'its layers or models'} on "
                "the last axis but one"
            )
        return x.reshape(*x.shape[:-2], -1)
    if x.shape[-1] == cfg.d_in:
        return x
    if cfg.flatten_heads and x.ndim > 1 and x.shape[-2] * x.shape[-1] == cfg.d_in:
        return x.reshape(*x.shape[:-2], cfg.d_in)
    raise ValueError(
        f"x has shape {x.shape} but the SAE reads d_in={cfg.d_in}; was it taken at "
        f"{cfg.site}?"
    )


class _Norm(NamedTuple):
    """The input as the encoder sees it, and what takes the output back to the site's
    units: y * scale + shift, each `[..., 1]`.
    """

    x: jax.Array
    shift: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0


def _norm(cfg: SAEConfig, x: jax.Array) -> _Norm:
    if cfg.norm == "none":
        return _Norm(x)
    # Statistics in bfloat16 would have 8 bits.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if cfg.norm == "layer_norm":
        mean = wide.mean(-1, keepdims=True)
        std = safe_norm(wide - mean) / math.sqrt(cfg.d_in - 1)
        # SAELens adds the epsilon on the way in and not on the way out.
        normed = ((wide - mean) / (std + 1e-5)).astype(x.dtype)
        return _Norm(normed, mean.astype(x.dtype), std.astype(x.dtype))
    scale = safe_norm(wide) / math.sqrt(cfg.d_in)
    normed = (wide / jnp.where(scale > 0, scale, 1)).astype(x.dtype)
    return _Norm(normed, scale=scale.astype(x.dtype))


def _sequences(sae: SAE, x: jax.Array) -> jax.Array:
    """The input of a temporal SAE, `[b, t, d]`."""
    if x.ndim != 3:
        raise ValueError(
            f"x has shape {x.shape} but a temporal SAE reads whole sequences [b, t, "
            "d]: its codes depend on earlier tokens"
        )
    return x - sae.dec_bias_m.astype(x.dtype) if sae.cfg.subtract_b_dec else x


# ---- the two linear maps -------------------------------------------------------------


def _codes(sae: SAE, x: jax.Array) -> jax.Array:
    """Codes of a flat input."""
    z = _norm(sae.cfg, x).x
    gate = GATES[sae.cfg.gate]
    if sae.cfg.gate == "temporal":
        pre, _ = split(sae, _sequences(sae, z))
        return gate(sae, pre, z)
    if sae.cfg.subtract_b_dec:
        z = z - sae.dec_bias_m.astype(z.dtype)
    pre = _project(sae, z) + sae.enc_bias_n.astype(z.dtype)
    return gate(sae, pre, z)


def _project(sae: SAE, z: jax.Array) -> jax.Array:
    """`z @ enc_dn`; a block encoder takes each stream through its own block."""
    if not sae.cfg.block_encoder:
        return _dot(z, sae.enc_dn)
    z_sd = z.reshape(*z.shape[:-1], sae.cfg.streams, sae.cfg.d_in)
    enc_sdn = sae.enc_dn.reshape(sae.cfg.streams, sae.cfg.d_in, -1).astype(z.dtype)
    pre_sn = jnp.einsum("...sd,sdn->...sn", z_sd, enc_sdn, precision="highest")
    return pre_sn.reshape(*z.shape[:-1], -1)


def _linear(sae: SAE, codes: jax.Array) -> jax.Array:
    """`codes @ dec + bias`, before the norm is undone."""
    dec_nm, bias_m = code_rows(sae), sae.dec_bias_m.astype(codes.dtype)
    if not sae.cfg.decoupled:
        return _dot(codes, dec_nm) + bias_m
    dec_nsd = dec_nm.reshape(-1, sae.cfg.streams, sae.cfg.d_out).astype(codes.dtype)
    y_sd = jnp.einsum("...sn,nsd->...sd", codes, dec_nsd, precision="highest")
    return y_sd.reshape(*y_sd.shape[:-2], -1) + bias_m


def _unflat(cfg: SAEConfig, y: jax.Array) -> jax.Array:
    """The output with an axis of its own for streams."""
    if cfg.streams == 1:
        return y
    return y.reshape(*y.shape[:-1], cfg.streams, cfg.d_out)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.astype(a.dtype), precision="highest")


# ---- checks --------------------------------------------------------------------------


def _check_separable(cfg: SAEConfig) -> None:
    """Raises ValueError where a latent has no code without the others."""
    if cfg.gate not in LOCAL_GATES:
        reason = "whether a latent is kept depends on all the others"
    elif cfg.block_encoder:
        reason = "which block a latent reads depends on its number"
    else:
        return
    raise ValueError(
        f"encode_latents on a {cfg.gate} SAE: {reason}; use encode(sae, x)[..., "
        "latents]"
    )


def _checked_latents(cfg: SAEConfig, latents: Any) -> jax.Array:
    numbers = np.asarray(latents, np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < cfg.n_latents:
        raise ValueError(
            f"latents reach {numbers.min()}..{numbers.max()} but the SAE has "
            f"{cfg.n_latents}"
        )
    return jnp.asarray(numbers, jnp.int32)


def _check_needs_no_input(sae: SAE) -> None:
    """Raises ValueError where codes alone do not make the output."""
    if sae.attention:
        part = "codes that the input predicts"
    elif sae.cfg.norm != "none":
        part = f"norm {sae.cfg.norm}"
    elif sae.skip_dm is not None:
        part = "a skip connection"
    else:
        return
    raise ValueError(
        f"decode without x, but the SAE has {part}; give decode(sae, codes, x)"
    )
