"""One Linen block for every decoder family; what differs is read from `LMConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sae_attr.lm.attention import Context, LayerFacts, attend, rotate
from sae_attr.lm.cache import KV, on_layer
from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules, hold
from sae_attr.lm.mlp import Experts, activation, wide

Tap = Callable[[str, jax.Array], jax.Array]


def no_tap(point: str, x: jax.Array) -> jax.Array:
    """Returns x: the tap of a layer that is neither read nor changed."""
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
        if cfg.norm_plus_one:
            scale = 1 + scale
        x = wide(x)
        if cfg.norm == "layer":
            x = x - hold(jnp.mean(x, -1, keepdims=True), "centre" in self.rules)
        variance = jnp.mean(jnp.square(x), -1, keepdims=True)
        inverse_std = jax.lax.rsqrt(variance + cfg.norm_eps)
        x = x * hold(inverse_std, "norm" in self.rules) * scale
        if cfg.norm == "layer":
            x = x + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x.astype(self.out_dtype)


class Block(nn.Module):
    """Attention and MLP with their norms and residual additions; `tap(point, x)` sees
    and may change every site point.

    Returns the residual stream and, where `past` are the keys and values of a cache,
    those of the new tokens in this layer, `[b, k, c, t]` and `[b, k, t, c]`.

    Args:
      dtype: of the weights and of the activations between the residual additions.
      rules: change gradients only, never values (see `sae_attr.lm.lrp`).
      dense: one MLP of width `d_dense` in a model with experts.
    """

    cfg: LMConfig
    dtype: Any = jnp.float32
    rules: Rules = PLAIN
    dense: bool = False

    @nn.compact
    def __call__(
        self,
        x_btd: jax.Array,
        ctx: Context,
        facts: LayerFacts,
        tap: Tap = no_tap,
        past: tuple[KV, ...] | None = None,
    ) -> tuple[jax.Array, KV | None]:
        cfg, resid = self.cfg, x_btd.dtype
        x_btd = tap("resid_pre", x_btd)
        attn_btd, new = self._attention(
            self._before("attn_norm", x_btd), ctx, facts, tap, past
        )
        attn_btd = tap("attn_raw", attn_btd.astype(resid))
        if cfg.post_norm:
            attn_btd = self._norm("attn_post_norm")(attn_btd)
        attn_btd = tap("attn_out", attn_btd.astype(resid))

        mid_btd = x_btd
        if not cfg.parallel_residual:
            mid_btd = tap("resid_mid", x_btd + attn_btd)
        mlp_btd = self._mlp(tap("mlp_in", self._before("mlp_norm", mid_btd)), tap)
        mlp_btd = tap("mlp_raw", mlp_btd.astype(resid))
        if cfg.post_norm:
            mlp_btd = self._norm("mlp_post_norm")(mlp_btd)
        mlp_btd = tap("mlp_out", mlp_btd.astype(resid))

        out_btd = mid_btd + mlp_btd
        if cfg.parallel_residual:
            out_btd = out_btd + attn_btd
        return tap("resid_post", out_btd), new

    def _attention(
        self,
        h_btd: jax.Array,
        ctx: Context,
        facts: LayerFacts,
        tap: Tap,
        past: tuple[KV, ...] | None,
    ) -> tuple[jax.Array, KV | None]:
        cfg = self.cfg
        q_bthc, k_btkc, v_btkc = self._heads(h_btd)
        if ctx.rotation is not None:
            cos, sin = (table[facts.rope] for table in ctx.rotation)
            q_bthc, k_btkc = rotate(q_bthc, cos, sin), rotate(k_btkc, cos, sin)
        here = KV(jnp.moveaxis(k_btkc, 1, 3), jnp.moveaxis(v_btkc, 1, 2))
        if past is not None:
            # Rounded as the cache keeps them: later tokens see these same numbers.
            dtype = past[0].k_bkcs.dtype
            here = jax.tree.map(lambda x: x.astype(dtype), here)

        mask_bts = ctx.mask_bts
        if ctx.gap_bts is not None:
            mask_bts = mask_bts & (ctx.gap_bts < facts.window)
        q_bthc = self._scaled(q_bthc, facts)
        sinks_h = None
        if cfg.sinks:
            sinks_h = self.param("sinks", nn.initializers.zeros, (cfg.n_heads,))

        def attended(*parts: KV) -> jax.Array:
            return attend(
                q_bthc,
                tuple([part.k_bkcs for part in parts]),
                tuple([part.v_bksc for part in parts]),
                mask_bts,
                cfg.attn_softcap,
                sinks_h,
                fixed_pattern="attention" in self.rules,
            )

        if past is not None and past[0].k_bkcs.shape[3]:
            z_bthc = on_layer(past, facts.layer, lambda kv: attended(kv, here))
        else:
            z_bthc = attended(here)
        z = tap("attn_z", z_bthc.reshape(*h_btd.shape[:2], -1))
        out_btd = self._dense(z, cfg.d_model, cfg.out_bias, "o")
        return out_btd, None if past is None else here

    def _heads(self, h_btd: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[b, t, h, c]`, keys and values `[b, t, k, c]`, not rotated yet."""
        cfg = self.cfg
        q = self._dense(h_btd, cfg.n_heads * cfg.head_dim, cfg.qkv_bias, "q")
        k = self._dense(h_btd, cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, "k")
        v = self._dense(h_btd, cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, "v")
        if cfg.qk_norm == "all":
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        q, k, v = (x.reshape(*x.shape[:2], -1, cfg.head_dim) for x in (q, k, v))
        if cfg.qk_norm == "head":
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        return q, k, v

    def _scaled(self, q_bthc: jax.Array, facts: LayerFacts) -> jax.Array:
        """Queries whose products with keys are the scores of attention."""
        scale = self.cfg.query_scale
        if self.cfg.inverse_layer_scale:
            scale = scale / (facts.layer + 1)
        return q_bthc * jnp.asarray(scale, q_bthc.dtype)

    def _mlp(self, h_btd: jax.Array, tap: Tap) -> jax.Array:
        cfg = self.cfg
        if cfg.n_experts and not self.dense:
            return Experts(cfg, self.dtype, self.rules, name="moe")(h_btd)
        width = cfg.d_dense if self.dense else cfg.d_mlp
        up_btf = self._dense(h_btd, width, cfg.mlp_bias, "up")
        gate_btf = None
        if cfg.gated_mlp:
            gate_btf = self._dense(h_btd, width, cfg.mlp_bias, "gate")
        hidden_btf = tap("mlp_hidden", activation(cfg, gate_btf, up_btf, self.rules))
        return self._dense(hidden_btf, cfg.d_model, cfg.mlp_bias, "down")

    def _before(self, name: str, x_btd: jax.Array) -> jax.Array:
        """What a sublayer reads of the residual stream."""
        if self.cfg.pre_norm:
            return self._norm(name)(x_btd)
        return x_btd.astype(self.dtype)

    def _norm(self, name: str) -> Norm:
        return Norm(self.cfg, self.dtype, self.rules, name=name)

    def _dense(self, x: jax.Array, features: int, bias: bool, name: str) -> jax.Array:
        """A linear map, and beside it the adapter that the collection "lora" may hold
        for it: x W + (x A) B.
        """
        out = nn.Dense(features, use_bias=bias, dtype=self.dtype, name=name)(x)
        if not self.has_variable("lora", name):
            return out
        lora = self.get_variable("lora", name)
        return out + (x @ lora["a"].astype(self.dtype)) @ lora["b"].astype(self.dtype)
