"""One sparse autoencoder for every source: a pytree of weights, and pure functions that
encode and decode.

    x' = norm(x);  pre = (x' - b_dec?) @ enc_dn + enc_bias_n;  codes = gate(pre)
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
from typing import Any

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


def encode(sae: SAE, x: jax.Array) -> jax.Array:
    """Codes of every latent, `[..., n]` (decoupled crosscoders: `[..., streams, n]`).

    Args:
      sae: the SAE; weights in bfloat16 make the arithmetic bfloat16, else it is float32
        (float64 for float64 input).
      x: `[..., d_in]`, or `[..., heads, head_dim]` where the SAE reads concatenated
        heads, or `[..., streams, d_in]`.

    Raises:
      ValueError: the last axes do not fit the SAE.
    """
    x, _ = _flat(sae, x)
    return _codes(sae, x)


def encode_latents(sae: SAE, x: jax.Array, latents: Any) -> jax.Array:
    """Codes of the chosen latents only, `[..., k]`, equal to `encode(sae, x)[...,
    latents]` without the other columns.

    Args:
      sae: an SAE whose gate looks at one latent at a time (relu, identity, jumprelu,
        gated).
      x: as for `encode`.
      latents: `[k]` integers.

    Raises:
      ValueError: a gate that compares latents, a block encoder, or a latent (given as a
        list or numpy array) outside `0..n-1`.
    """
    if sae.cfg.gate not in LOCAL_GATES or sae.cfg.block_encoder:
        why = "which block a latent reads depends on its number"
        if sae.cfg.gate not in LOCAL_GATES:
            why = "whether a latent is kept depends on all the others"
        raise ValueError(
            f"encode_latents on a {sae.cfg.gate} SAE: {why}; use encode(sae, x)[..., "
            "latents]"
        )
    if not isinstance(latents, jax.Array):
        latents = np.asarray(latents, np.int64)
        if latents.size and not 0 <= latents.min() <= latents.max() < sae.cfg.n_latents:
            raise ValueError(
                f"latents reach {latents.min()}..{latents.max()} but the SAE has "
                f"{sae.cfg.n_latents}"
            )
        latents = jnp.asarray(latents, jnp.int32)
    x, _ = _flat(sae, x)
    chosen = replace(
        sae,
        enc_dn=jnp.take(sae.enc_dn, latents, axis=1),
        **{name: _take(getattr(sae, name), latents) for name in _PER_LATENT},
    )
    return _codes(chosen, x)


def decode(sae: SAE, codes: jax.Array, x: jax.Array | None = None) -> jax.Array:
    """Output `[..., d_out]` (crosscoders: `[..., streams, d_out]`) that the codes stand
    for, in the units of the site.

    Args:
      sae: the SAE.
      codes: `[..., n]`.
      x: the input that was encoded, needed for per-token norms and skip connections;
        with heads, so is the output.

    Raises:
      ValueError: the SAE needs `x` and it is missing.
    """
    if x is None:
        if sae.cfg.norm != "none" or sae.skip_dm is not None or sae.attention:
            why = (
                f"norm {sae.cfg.norm}"
                if sae.cfg.norm != "none"
                else "a skip connection"
            )
            why = "codes that the input predicts" if sae.attention else why
            raise ValueError(
                f"decode without x, but the SAE has {why}; give decode(sae, codes, x)"
            )
        return _unflat(sae.cfg, _linear(sae, codes), None)
    x, shape = _flat(sae, x)
    _, shift, scale = _norm(sae.cfg, x)
    if sae.attention:
        codes = codes + split(sae, _sequences(sae, x))[1].astype(codes.dtype)
    y = _linear(sae, codes) * scale + shift
    if (
        sae.skip_dm is not None
    ):  # the skip reads the raw input, neither normalised nor centred
        y = y + _dot(x, sae.skip_dm)
    return _unflat(sae.cfg, y, shape)


def reconstruct(sae: SAE, x: jax.Array) -> jax.Array:
    """`decode(encode(x))` with the norm and the skip connection in place; same leading
    shape as `x`.
    """
    return decode(sae, encode(sae, x), x)


def code_rows(sae: SAE) -> jax.Array:
    """What one unit of each code adds to the output before its scale, `[n, d_out]`:
    rows of the decoder as it is used.
    """
    return unit_decoder(sae.dec_nm) if sae.cfg.rescale_by_dec_norm else sae.dec_nm


def code_scale(sae: SAE, x: jax.Array) -> jax.Array:
    """The factor `[..., 1]` by which `decode` multiplies a token's codes: 1 unless the
    SAE has a norm per token.
    """
    x, _ = _flat(sae, x)
    return jnp.broadcast_to(
        jnp.asarray(_norm(sae.cfg, x)[2], x.dtype), (*x.shape[:-1], 1)
    )


def unit_decoder(dec_nm: jax.Array) -> jax.Array:
    """Decoder rows divided by their norm, `[n, m]`, at least float32; a row of zeros
    stays zero.
    """
    dec_nm = jnp.asarray(dec_nm)
    dec_nm = dec_nm.astype(jnp.promote_types(dec_nm.dtype, jnp.float32))
    norms_n1 = safe_norm(dec_nm)
    return dec_nm / jnp.where(norms_n1 > 0, norms_n1, 1)


def scaled_input(sae: SAE, factor_d: jax.Array) -> SAE:
    """The SAE that reads x as this one reads x · factor `[d]`.

    Raises ValueError for an SAE that normalises its input or subtracts its decoder bias
    from it.
    """
    if sae.cfg.norm != "none" or sae.cfg.subtract_b_dec or sae.cfg.streams > 1:
        raise ValueError(
            "the input's scale per channel cannot be moved into an encoder that "
            "centres or normalises it"
        )
    times = lambda w: None if w is None else (w * factor_d[:, None]).astype(w.dtype)
    return replace(sae, enc_dn=times(sae.enc_dn), skip_dm=times(sae.skip_dm))


_PER_LATENT = ("enc_bias_n", "threshold_n", "gate_bias_n", "mag_bias_n", "mag_scale_n")


def _take(value_n: jax.Array | None, latents: jax.Array) -> jax.Array | None:
    # jnp.take gives NaN outside the range where plain indexing would silently clamp.
    return None if value_n is None else jnp.take(value_n, latents, axis=-1)


def _flat(sae: SAE, x: jax.Array) -> tuple[jax.Array, tuple[int, ...] | None]:
    """`x` as `[..., d]` in the dtype of the arithmetic, and the shape to give back
    where heads were flattened.
    """
    x, cfg = jnp.asarray(x), sae.cfg
    wide = sae.enc_dn.dtype in (jnp.float32, jnp.float64)
    x = x.astype(
        jnp.promote_types(x.dtype, sae.enc_dn.dtype) if wide else sae.enc_dn.dtype
    )
    if cfg.streams > 1:
        if x.shape[-2:] != (cfg.streams, cfg.d_in):
            raise ValueError(
                f"x has shape {x.shape} but the crosscoder reads [..., "
                f"streams={cfg.streams}, d_in={cfg.d_in}]; stack "
                f"the activations of {cfg.stream_names or 'its layers or models'} on "
                "the last axis but one"
            )
        return x.reshape(*x.shape[:-2], -1), None
    if x.shape[-1] == cfg.d_in:
        return x, None
    if cfg.flatten_heads and x.ndim > 1 and x.shape[-2] * x.shape[-1] == cfg.d_in:
        return x.reshape(*x.shape[:-2], cfg.d_in), x.shape
    raise ValueError(
        f"x has shape {x.shape} but the SAE reads d_in={cfg.d_in}; was it taken at "
        f"{cfg.site}?"
    )


def _unflat(cfg: SAEConfig, y: jax.Array, shape: tuple[int, ...] | None) -> jax.Array:
    if cfg.streams > 1:
        shape = (*y.shape[:-1], cfg.streams, cfg.d_out)
    return y if shape is None else y.reshape(shape)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.astype(a.dtype), precision="highest")


def _codes(sae: SAE, x: jax.Array) -> jax.Array:
    z, _, _ = _norm(sae.cfg, x)
    if sae.cfg.gate == "temporal":
        return GATES["temporal"](sae, split(sae, _sequences(sae, z))[0], z)
    if sae.cfg.subtract_b_dec:
        z = z - sae.dec_bias_m.astype(z.dtype)
    return GATES[sae.cfg.gate](
        sae, _project(sae, z) + sae.enc_bias_n.astype(z.dtype), z
    )


def _sequences(sae: SAE, x: jax.Array) -> jax.Array:
    """What a temporal SAE codes, `[b, t, d]`."""
    if x.ndim != 3:
        raise ValueError(
            f"x has shape {x.shape} but a temporal SAE reads whole sequences [b, t, "
            "d]: its codes depend on earlier tokens"
        )
    return x - sae.dec_bias_m.astype(x.dtype) if sae.cfg.subtract_b_dec else x


def _project(sae: SAE, z: jax.Array) -> jax.Array:
    """`z @ enc_dn`; a block encoder takes each stream through its own block."""
    if not sae.cfg.block_encoder:
        return _dot(z, sae.enc_dn)
    blocks_sdn = sae.enc_dn.reshape(sae.cfg.streams, sae.cfg.d_in, -1).astype(z.dtype)
    apart = z.reshape(*z.shape[:-1], sae.cfg.streams, sae.cfg.d_in)
    return jnp.einsum(
        "...sd,sdn->...sn", apart, blocks_sdn, precision="highest"
    ).reshape(*z.shape[:-1], -1)


def _linear(sae: SAE, codes: jax.Array) -> jax.Array:
    """`codes @ dec + bias`, before the norm is undone."""
    dec_nm = code_rows(sae)
    if not sae.cfg.decoupled:
        return _dot(codes, dec_nm) + sae.dec_bias_m.astype(codes.dtype)
    apart_nsd = dec_nm.reshape(dec_nm.shape[0], sae.cfg.streams, sae.cfg.d_out).astype(
        codes.dtype
    )
    y = jnp.einsum("...sn,nsd->...sd", codes, apart_nsd, precision="highest")
    return y.reshape(*y.shape[:-2], -1) + sae.dec_bias_m.astype(codes.dtype)


def _norm(
    cfg: SAEConfig, x: jax.Array
) -> tuple[jax.Array, jax.Array | float, jax.Array | float]:
    """The input as the encoder sees it, and the shift and scale `[..., 1]` that take
    the output back.
    """
    if cfg.norm == "none":
        return x, 0.0, 1.0
    wide = x.astype(
        jnp.promote_types(x.dtype, jnp.float32)
    )  # statistics of a bfloat16 token would lose 8 bits
    if cfg.norm == "layer_norm":
        mean = wide.mean(-1, keepdims=True)
        std = safe_norm(wide - mean) / math.sqrt(cfg.d_in - 1)
        # SAELens adds the epsilon on the way in and not on the way out.
        return (
            ((wide - mean) / (std + 1e-5)).astype(x.dtype),
            mean.astype(x.dtype),
            std.astype(x.dtype),
        )
    scale = safe_norm(wide) / math.sqrt(cfg.d_in)
    return (
        (wide / jnp.where(scale > 0, scale, 1)).astype(x.dtype),
        0.0,
        scale.astype(x.dtype),
    )
