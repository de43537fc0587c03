"""One sparse autoencoder for every source: a pytree of weights, and pure functions that encode and decode.

    x' = norm(x);  pre = (x' - b_dec?) @ enc_dn + enc_bias_n;  codes = gate(pre)
    y  = unnorm(codes @ dec_nm + dec_bias_m) + x @ skip_dm

Norms are per token, so decoding needs the input's statistics: `decode` takes `x` for them and for the skip connection.
The loaders fold everything that folds exactly (dataset-wise scale, decoder norms), so little is left to do here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

GATES = ("relu", "jumprelu", "topk", "gated")
NORMS = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is and where it came from; static under jit.

    Args:
      d_in, d_out, n_latents: widths of input, output and code.
      gate: one of `GATES`. jumprelu compares strictly, topk keeps k pre-activations per token and then applies relu.
      k: latents kept per token (topk only).
      subtract_b_dec: the decoder bias is taken from the input.
      norm: one of `NORMS`, per token. layer_norm: (x - mean) / (std + 1e-5), std with N - 1; constant_norm_rescale:
        x sqrt(d) / |x|. The output is scaled back, and the mean added.
      rescale_by_dec_norm: topk selects and codes `pre * |dec row|`, the decoder divides it out again.
      flatten_heads: the input may come as `[..., heads, head_dim]`.
      skip: the file has a skip connection from input to output.
      source, architecture: format, and the name that the file gives its own kind.
      dtype: of the decoder on disk.
      site, site_out: where it reads and (transcoders) writes, as spelled in the file; None where the file is silent.
      layer: index of the block where the file or its path gives it.
      head_index: the one attention head that it was trained on, or None.
      model_name, context_size, prepend_bos: of the training text.
      exclude_special: True where BOS, EOS and padding were left out of training: reconstruction there means nothing.
      expected_l0: active latents per token that file or path promise.
      folded: what the loader multiplied into the weights.

    Raises:
      ValueError: unknown gate or norm, or topk without a k in 1..n_latents.
    """

    d_in: int
    d_out: int
    n_latents: int
    gate: str = "relu"
    k: int | None = None
    subtract_b_dec: bool = False
    norm: str = "none"
    rescale_by_dec_norm: bool = False
    flatten_heads: bool = False
    skip: bool = False
    source: str = ""
    architecture: str = ""
    dtype: str = "float32"
    site: str | None = None
    site_out: str | None = None
    layer: int | None = None
    head_index: int | None = None
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    exclude_special: bool | None = None
    expected_l0: float | None = None
    folded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gate not in GATES or self.norm not in NORMS:
            raise ValueError(f"gate {self.gate!r} or norm {self.norm!r} is unknown; gates: {GATES}, norms: {NORMS}")
        if self.gate == "topk" and not (self.k and 1 <= self.k <= self.n_latents):
            raise ValueError(f"gate topk with k={self.k} and {self.n_latents} latents; give k in 1..{self.n_latents}")


@struct.dataclass
class SAE:
    """Weights of an SAE; a pytree.

    Shapes: enc_dn `[d_in, n]`, enc_bias_n `[n]` (zeros for gated), dec_nm `[n, d_out]`, dec_bias_m `[d_out]`,
    threshold_n `[n]` (jumprelu), gate_bias_n, mag_bias_n, mag_scale_n `[n]` (gated; the scale is a logarithm, "r_mag"),
    skip_dm `[d_in, d_out]` (skip transcoders). `dec_nm[i]` is what one unit of code i adds to the output.
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
    cfg: SAEConfig = struct.field(pytree_node=False, kw_only=True)


def encode(sae: SAE, x: jax.Array) -> jax.Array:
    """Codes of every latent, `[..., n]`.

    Args:
      sae: the SAE; weights in bfloat16 make the arithmetic bfloat16, else it is float32 (float64 for float64 input).
      x: `[..., d_in]`, or `[..., heads, head_dim]` where the SAE reads concatenated heads.

    Raises:
      ValueError: the last axis does not fit `d_in`.
    """
    x, _ = _flat(sae, x)
    return _gate(sae, _pre(sae, x))


def encode_latents(sae: SAE, x: jax.Array, latents: Any) -> jax.Array:
    """Codes of the chosen latents only, `[..., k]`, equal to `encode(sae, x)[..., latents]` without the other columns.

    Args:
      sae: an SAE whose gate looks at one latent at a time (relu, jumprelu, gated).
      x: as for `encode`.
      latents: `[k]` integers.

    Raises:
      ValueError: a topk SAE, or a latent (given as a list or numpy array) outside `0..n-1`.
    """
    if sae.cfg.gate == "topk":
        raise ValueError(
            "encode_latents on a topk SAE: whether a latent is kept depends on all the others; "
            "use encode(sae, x)[..., latents]"
        )
    if not isinstance(latents, jax.Array):
        latents = np.asarray(latents, np.int64)
        if latents.size and not 0 <= latents.min() <= latents.max() < sae.cfg.n_latents:
            raise ValueError(f"latents reach {latents.min()}..{latents.max()} but the SAE has {sae.cfg.n_latents}")
        latents = jnp.asarray(latents, jnp.int32)
    x, _ = _flat(sae, x)
    chosen = replace(
        sae,
        enc_dn=jnp.take(sae.enc_dn, latents, axis=1),
        **{name: _take(getattr(sae, name), latents) for name in _PER_LATENT},
    )
    return _gate(chosen, _pre(chosen, x))


def decode(sae: SAE, codes: jax.Array, x: jax.Array | None = None) -> jax.Array:
    """Output `[..., d_out]` that the codes stand for, in the units of the site.

    Args:
      sae: the SAE.
      codes: `[..., n]`.
      x: the input that was encoded, needed for per-token norms and skip connections; with heads, so is the output.

    Raises:
      ValueError: the SAE needs `x` and it is missing.
    """
    if x is None:
        if sae.cfg.norm != "none" or sae.skip_dm is not None:
            why = f"norm {sae.cfg.norm}" if sae.cfg.norm != "none" else "a skip connection"
            raise ValueError(f"decode without x, but the SAE has {why}; give decode(sae, codes, x)")
        return _linear(sae, codes)
    x, shape = _flat(sae, x)
    _, shift, scale = _norm(sae.cfg, x)
    y = _linear(sae, codes) * scale + shift
    if sae.skip_dm is not None:  # the skip reads the raw input, neither normalised nor centred
        y = y + _dot(x, sae.skip_dm)
    return y if shape is None else y.reshape(shape)


def reconstruct(sae: SAE, x: jax.Array) -> jax.Array:
    """`decode(encode(x))` with the norm and the skip connection in place; same leading shape as `x`."""
    return decode(sae, encode(sae, x), x)


def code_rows(sae: SAE) -> jax.Array:
    """What one unit of each code adds to the output before its scale, `[n, d_out]`: rows of the decoder as it is used."""
    return unit_decoder(sae.dec_nm) if sae.cfg.rescale_by_dec_norm else sae.dec_nm


def code_scale(sae: SAE, x: jax.Array) -> jax.Array:
    """The factor `[..., 1]` by which `decode` multiplies a token's codes: 1 unless the SAE has a norm per token."""
    x, _ = _flat(sae, x)
    return jnp.broadcast_to(jnp.asarray(_norm(sae.cfg, x)[2], x.dtype), (*x.shape[:-1], 1))


def unit_decoder(dec_nm: jax.Array) -> jax.Array:
    """Decoder rows divided by their norm, `[n, m]`, at least float32; a row of zeros stays zero."""
    dec_nm = jnp.asarray(dec_nm)
    dec_nm = dec_nm.astype(jnp.promote_types(dec_nm.dtype, jnp.float32))
    norms_n1 = _safe_norm(dec_nm)
    return dec_nm / jnp.where(norms_n1 > 0, norms_n1, 1)


_PER_LATENT = ("enc_bias_n", "threshold_n", "gate_bias_n", "mag_bias_n", "mag_scale_n")


def _take(value_n: jax.Array | None, latents: jax.Array) -> jax.Array | None:
    # jnp.take gives NaN outside the range where plain indexing would silently clamp.
    return None if value_n is None else jnp.take(value_n, latents, axis=0)


def _flat(sae: SAE, x: jax.Array) -> tuple[jax.Array, tuple[int, ...] | None]:
    """`x` as `[..., d_in]` in the dtype of the arithmetic, and the shape to give back where heads were flattened."""
    x = jnp.asarray(x)
    wide = sae.enc_dn.dtype in (jnp.float32, jnp.float64)
    x = x.astype(jnp.promote_types(x.dtype, sae.enc_dn.dtype) if wide else sae.enc_dn.dtype)
    if x.shape[-1] == sae.cfg.d_in:
        return x, None
    if sae.cfg.flatten_heads and x.ndim > 1 and x.shape[-2] * x.shape[-1] == sae.cfg.d_in:
        return x.reshape(*x.shape[:-2], sae.cfg.d_in), x.shape
    raise ValueError(f"x has shape {x.shape} but the SAE reads d_in={sae.cfg.d_in}; was it taken at {sae.cfg.site}?")


def _like(value_n: jax.Array | None, x: jax.Array) -> jax.Array:
    if value_n is None:
        raise ValueError(
            "the SAE lacks a tensor of its gate: jumprelu needs threshold_n, gated needs gate_ and mag_ ones"
        )
    return value_n.astype(x.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.astype(a.dtype), precision="highest")


def _pre(sae: SAE, x: jax.Array) -> jax.Array:
    """Pre-activations, biases included."""
    x, _, _ = _norm(sae.cfg, x)
    if sae.cfg.subtract_b_dec:
        x = x - sae.dec_bias_m.astype(x.dtype)
    return _dot(x, sae.enc_dn) + sae.enc_bias_n.astype(x.dtype)


def _gate(sae: SAE, pre_bn: jax.Array) -> jax.Array:
    if sae.cfg.gate == "jumprelu":
        return jnp.where(pre_bn > _like(sae.threshold_n, pre_bn), jax.nn.relu(pre_bn), 0)
    if sae.cfg.gate == "gated":
        # Rajamanoharan et al. 2024 (arXiv:2404.16014): gate and magnitude share enc_dn up to the factor exp(r_mag).
        bias_n, scale_n = _like(sae.mag_bias_n, pre_bn), jnp.exp(_like(sae.mag_scale_n, pre_bn))
        is_open = pre_bn + _like(sae.gate_bias_n, pre_bn) > 0
        return jnp.where(is_open, jax.nn.relu(pre_bn * scale_n + bias_n), 0)
    if sae.cfg.gate == "topk":
        if sae.cfg.rescale_by_dec_norm:
            pre_bn = pre_bn * _safe_norm(sae.dec_nm)[..., 0].astype(pre_bn.dtype)
        # relu after the selection, as in SAELens; before it gives the same codes, since only positive values survive.
        values_bk, latents_bk = jax.lax.top_k(pre_bn, sae.cfg.k or 0)
        return jnp.put_along_axis(jnp.zeros_like(pre_bn), latents_bk, jax.nn.relu(values_bk), axis=-1, inplace=False)
    return jax.nn.relu(pre_bn)


def _linear(sae: SAE, codes: jax.Array) -> jax.Array:
    """`codes @ dec + bias`, before the norm is undone."""
    return _dot(codes, code_rows(sae)) + sae.dec_bias_m.astype(codes.dtype)


def _norm(cfg: SAEConfig, x: jax.Array) -> tuple[jax.Array, jax.Array | float, jax.Array | float]:
    """The input as the encoder sees it, and the shift and scale `[..., 1]` that take the output back."""
    if cfg.norm == "none":
        return x, 0.0, 1.0
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # statistics of a bfloat16 token would lose 8 bits
    if cfg.norm == "layer_norm":
        mean = wide.mean(-1, keepdims=True)
        std = _safe_norm(wide - mean) / math.sqrt(cfg.d_in - 1)
        # SAELens adds the epsilon on the way in and not on the way out.
        return ((wide - mean) / (std + 1e-5)).astype(x.dtype), mean.astype(x.dtype), std.astype(x.dtype)
    scale = _safe_norm(wide) / math.sqrt(cfg.d_in)
    return (wide / jnp.where(scale > 0, scale, 1)).astype(x.dtype), 0.0, scale.astype(x.dtype)


def _safe_norm(x: jax.Array) -> jax.Array:
    """Norm over the last axis, kept as size 1, whose gradient at zero is zero and not NaN."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
