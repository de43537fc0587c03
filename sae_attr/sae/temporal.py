"""Temporal SAEs (Lubana et al. 2025, arXiv:2511.01836): attention predicts codes, the
rest is coded sparsely.

    for every attention layer:   z = relu(r @ enc);  p = relu(attend(queries z_t, keys and values z_{<t}));  v = p @ dec
                                 predicted += p s;  r -= v s,   s = (v . r) / (|v| + eps)^2;   r starts as x - b_dec
    codes = top-k of relu(r @ enc);   y = (codes + predicted) @ dec + b_dec

The predicted part depends on the input alone, so decoding takes it from x as a skip
connection is taken. A token's context is the codes of the tokens before it, the first
one's is zeros. Source: SAELens 6.54 `temporal_sae.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

if TYPE_CHECKING:
    from sae_attr.sae.model import SAE


@struct.dataclass
class Attention:
    """One attention layer over codes, `[in, out]` kernels: q and k `[n, e]`, v and o
    `[n, n]`, and their biases.
    """

    q: jax.Array
    q_bias: jax.Array
    k: jax.Array
    k_bias: jax.Array
    v: jax.Array
    v_bias: jax.Array
    o: jax.Array
    o_bias: jax.Array


def split(sae: SAE, z_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the pre-activations of the novel part and the predicted codes, `[b, t,
    n]` each.

    Args:
      sae: with `attention`; its encoder holds the library's factor 1 / (4 d).
      z_btd: whole sequences, less the decoder bias.
    """
    rest_btd = z_btd
    enc_dn = sae.enc_dn.astype(z_btd.dtype)
    dec_nd = sae.dec_nm.astype(z_btd.dtype)
    predicted_btn = jnp.zeros((*z_btd.shape[:-1], dec_nd.shape[0]), z_btd.dtype)
    for layer in sae.attention:
        codes_btn = jax.nn.relu(_dot(rest_btd, enc_dn))
        guess_btn = jax.nn.relu(_attend(layer, codes_btn, sae.cfg.heads))
        written_btd = _dot(guess_btn, dec_nd)
        length_bt1 = jnp.linalg.norm(written_btd, axis=-1, keepdims=True)
        length_bt1 = length_bt1 + sae.cfg.projection_eps
        overlap_bt1 = jnp.sum(written_btd * rest_btd, axis=-1, keepdims=True)
        share_bt1 = overlap_bt1 / length_bt1**2
        predicted_btn = predicted_btn + guess_btn * share_bt1
        rest_btd = rest_btd - share_bt1 * written_btd
    return _dot(rest_btd, enc_dn), predicted_btn


def _attend(layer: Attention, codes_btn: jax.Array, heads: int) -> jax.Array:
    """Causal attention with the codes of the token before in the place of each key and
    value.
    """
    before_btn = jnp.pad(codes_btn[:, :-1], ((0, 0), (1, 0), (0, 0)))
    q_bthe = _heads(_affine(codes_btn, layer.q, layer.q_bias), heads)
    k_bthe = _heads(_affine(before_btn, layer.k, layer.k_bias), heads)
    v_bthe = _heads(_affine(before_btn, layer.v, layer.v_bias), heads)
    scores_bhts = jnp.einsum("bthe,bshe->bhts", q_bthe, k_bthe, precision="highest")
    scores_bhts = scores_bhts / jnp.sqrt(q_bthe.shape[-1])
    causal_ts = jnp.tril(jnp.ones(scores_bhts.shape[-2:], bool))
    weights_bhts = jax.nn.softmax(jnp.where(causal_ts, scores_bhts, -jnp.inf), axis=-1)
    weights_bhts = weights_bhts.astype(v_bthe.dtype)
    mixed_bthe = jnp.einsum(
        "bhts,bshe->bthe", weights_bhts, v_bthe, precision="highest"
    )
    return _affine(mixed_bthe.reshape(codes_btn.shape), layer.o, layer.o_bias)


def _affine(x_btn: jax.Array, kernel_nm: jax.Array, bias_m: jax.Array) -> jax.Array:
    return _dot(x_btn, kernel_nm) + bias_m.astype(x_btn.dtype)


def _heads(x_btn: jax.Array, heads: int) -> jax.Array:
    return x_btn.reshape(*x_btn.shape[:2], heads, -1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.astype(a.dtype), precision="highest")
