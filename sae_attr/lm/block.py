"""One Linen block for every decoder family; what differs is read from `LMConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from sae_attr.lm.cache import KV, extend
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules, hold
from sae_attr.lm.mlp import Experts, activation, wide

Tap = Callable[[str, jax.Array], jax.Array]


@struct.dataclass
class Context:
    """What a block needs beside its input: who may attend to whom, and the rotations of
    every rope.

    `mask_bts` is causal and excludes padding and other segments; `gap_bts` is query
    position minus key position and is present only if some layer has a window;
    `rotation` holds cos and sin, `[r, b, t, m]`, one table per rope r. With a cache the
    keys s are its slots, the new tokens' from `slot` on.
    """

    mask_bts: jax.Array
    gap_bts: jax.Array | None
    rotation: tuple[jax.Array, jax.Array] | None
    slot: jax.Array | None = None


@struct.dataclass
class LayerFacts:
    """The facts that differ between layers and ride the scan: its number, window in
    tokens and index of the rope.
    """

    layer: Any
    window: jax.Array
    rope: jax.Array


def no_tap(point: str, x: jax.Array) -> jax.Array:
    """The tap of a layer that is neither read nor changed."""
    return x


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, computed in float32 (Gemma multiplies by
    1 + scale).
    """

    cfg: LMConfig
    out_dtype: Any
    rules: Rules = PLAIN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        init = nn.initializers.zeros if cfg.norm_plus_one else nn.initializers.ones
        scale = wide(self.param("scale", init, (x.shape[-1],)))
        x = wide(x)
        if cfg.norm == "layer":
            x = x - hold(jnp.mean(x, -1, keepdims=True), "centre" in self.rules)
        scale_1 = jax.lax.rsqrt(
            jnp.mean(jnp.square(x), -1, keepdims=True) + cfg.norm_eps
        )
        x = x * hold(scale_1, "norm" in self.rules)
        x = x * (1 + scale if cfg.norm_plus_one else scale)
        if cfg.norm == "layer":
            x = x + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x.astype(self.out_dtype)


def rotate(x_bthc: jax.Array, cos_btm: jax.Array, sin_btm: jax.Array) -> jax.Array:
    """Rotates the first 2m channels of every head, first half against second half (Su
    et al. 2021, Hugging Face order).
    """
    m = cos_btm.shape[-1]
    first, second, rest = x_bthc[..., :m], x_bthc[..., m : 2 * m], x_bthc[..., 2 * m :]
    cos = cos_btm[:, :, None].astype(x_bthc.dtype)
    sin = sin_btm[:, :, None].astype(x_bthc.dtype)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
    )


def attend(
    q_bthc: jax.Array,
    k_bksc: jax.Array,
    v_bksc: jax.Array,
    mask_bts: jax.Array,
    softcap: float,
    sinks_h: jax.Array | None = None,
    *,
    fixed_pattern: bool = False,
) -> jax.Array:
    """Grouped-query attention, softmax in float32; returns `[b, t, h, c]`.

    `sinks_h`: one more logit per head, which takes its share of the softmax and adds
    nothing. `fixed_pattern`: the probabilities are constants, so that gradients flow
    through v alone.

    The products have their batch axes first and the softmax is normalised after the
    second one, on c numbers a query instead of s: on two CPU cores a tenth less time
    for a whole gradient of GPT-2's shape at 256 tokens.
    """
    b, t, h, c = q_bthc.shape
    q_bkgtc = jnp.moveaxis(q_bthc.reshape(b, t, k_bksc.shape[1], -1, c), 1, 3)
    scores = wide(jnp.einsum("bkgtc,bksc->bkgts", q_bkgtc, k_bksc))
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores + jnp.where(mask_bts, 0, jnp.finfo(scores.dtype).min)[:, None, None]
    scores = hold(scores, fixed_pattern)
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks_h is not None:
        sinks_kg11 = hold(wide(sinks_h), fixed_pattern).reshape(
            k_bksc.shape[1], -1, 1, 1
        )
        top = jnp.maximum(top, sinks_kg11)
    top = jax.lax.stop_gradient(top)
    powers = jnp.exp(scores - top)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    if sinks_h is not None:
        total = total + jnp.exp(sinks_kg11 - top)
    z_bkgtc = jnp.einsum("bkgts,bksc->bkgtc", powers.astype(v_bksc.dtype), v_bksc)
    z_bkgtc = (z_bkgtc / total).astype(v_bksc.dtype)
    return jnp.moveaxis(z_bkgtc, 3, 1).reshape(b, t, h, c)


class Block(nn.Module):
    """Attention and MLP with their norms and residual additions; `tap(point, x)` sees
    and may change every site point.

    Returns the residual stream and, where one is given, the cache's keys and values
    with this layer's new ones.

    `rules` change how it is differentiated and no value (see `sae_attr.lm.lrp`).
    `dense`: one MLP of width `d_dense` although the model has experts.
    """

    cfg: LMConfig
    dtype: Any = jnp.float32
    rules: Rules = PLAIN
    dense: bool = False

    def _dense(self, x: jax.Array, features: int, bias: bool, name: str) -> jax.Array:
        """A linear map, and beside it the adapter that the collection "lora" may hold
        for it: x W + (x A) B.
        """
        out = nn.Dense(features, use_bias=bias, dtype=self.dtype, name=name)(x)
        if not self.has_variable("lora", name):
            return out
        lora = self.get_variable("lora", name)
        return out + (x @ lora["a"].astype(self.dtype)) @ lora["b"].astype(self.dtype)

    def _norm(self, name: str, out_dtype: Any = None) -> Norm:
        return Norm(self.cfg, out_dtype or self.dtype, self.rules, name=name)

    @nn.compact
    def __call__(
        self,
        x_btd: jax.Array,
        ctx: Context,
        facts: LayerFacts,
        tap: Tap = no_tap,
        kv: KV | None = None,
    ) -> tuple[jax.Array, KV | None]:
        cfg, resid = self.cfg, x_btd.dtype
        x_btd = tap("resid_pre", x_btd)
        h_btd = (
            self._norm("attn_norm")(x_btd) if cfg.pre_norm else x_btd.astype(self.dtype)
        )
        attn_btd, kv = self._attention(h_btd, ctx, facts, tap, kv)
        attn_btd = tap("attn_raw", attn_btd.astype(resid))
        if cfg.post_norm:
            attn_btd = self._norm("attn_post_norm")(attn_btd)
        attn_btd = tap("attn_out", attn_btd.astype(resid))
        mid_btd = (
            tap("resid_mid", x_btd + attn_btd) if not cfg.parallel_residual else x_btd
        )
        h_btd = (
            self._norm("mlp_norm")(mid_btd)
            if cfg.pre_norm
            else mid_btd.astype(self.dtype)
        )
        mlp_btd = tap("mlp_raw", self._mlp(tap("mlp_in", h_btd), tap).astype(resid))
        if cfg.post_norm:
            mlp_btd = self._norm("mlp_post_norm")(mlp_btd)
        mlp_btd = tap("mlp_out", mlp_btd.astype(resid))
        return tap(
            "resid_post", mid_btd + mlp_btd + (attn_btd if cfg.parallel_residual else 0)
        ), kv

    def _attention(
        self, h_btd: jax.Array, ctx: Context, facts: LayerFacts, tap: Tap, kv: KV | None
    ) -> tuple[jax.Array, KV | None]:
        cfg = self.cfg
        b, t, _ = h_btd.shape
        q = self._dense(h_btd, cfg.n_heads * cfg.head_dim, cfg.qkv_bias, "q")
        k = self._dense(h_btd, cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, "k")
        v = self._dense(h_btd, cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, "v")
        if cfg.qk_norm == "all":
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        q, k, v = (x.reshape(b, t, -1, cfg.head_dim) for x in (q, k, v))
        if cfg.qk_norm == "head":
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        if ctx.rotation is not None:
            cos, sin = (table[facts.rope] for table in ctx.rotation)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
        if kv is not None:
            kv, k, v = extend(kv, facts.layer, ctx.slot, k, v)
        mask = (
            ctx.mask_bts
            if ctx.gap_bts is None
            else ctx.mask_bts & (ctx.gap_bts < facts.window)
        )
        sinks_h = (
            self.param("sinks", nn.initializers.zeros, (cfg.n_heads,))
            if cfg.sinks
            else None
        )
        scale = (
            cfg.query_scale / (facts.layer + 1)
            if cfg.inverse_layer_scale
            else cfg.query_scale
        )
        q, fixed = q * jnp.asarray(scale, q.dtype), "attention" in self.rules
        z = attend(q, k, v, mask, cfg.attn_softcap, sinks_h, fixed_pattern=fixed)
        z = tap("attn_z", z.reshape(b, t, -1))
        return self._dense(z, cfg.d_model, cfg.out_bias, "o"), kv

    def _mlp(self, h_btd: jax.Array, tap: Tap) -> jax.Array:
        cfg = self.cfg
        if cfg.n_experts and not self.dense:
            return Experts(cfg, self.dtype, self.rules, name="moe")(h_btd)
        width = cfg.d_dense if self.dense else cfg.d_mlp
        up_btf = self._dense(h_btd, width, cfg.mlp_bias, "up")
        gate_btf = (
            self._dense(h_btd, width, cfg.mlp_bias, "gate") if cfg.gated_mlp else None
        )
        hidden_btf = tap("mlp_hidden", activation(cfg, gate_btf, up_btf, self.rules))
        return self._dense(hidden_btf, cfg.d_model, cfg.mlp_bias, "down")
