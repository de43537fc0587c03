"""What follows attention: activations, and mixtures of experts in blocks of tokens that
share an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sae_attr.lm.config import LMConfig
from sae_attr.lm.lrp import PLAIN, Rules, half_gradient, hold, ratio_activation

_ACT: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or in float64 where it already is: the precision of
    norms, softmax and log-probabilities.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def activation(
    cfg: LMConfig, gate: jax.Array | None, up: jax.Array, rules: Rules = PLAIN
) -> jax.Array:
    """Computes the hidden units of an MLP: act(up), act(gate) up, or gpt-oss's clipped
    gate sigmoid(alpha gate) (up + 1).
    """
    act = (
        _ACT[cfg.act]
        if cfg.act != "clipped_glu"
        else lambda x: x * jax.nn.sigmoid(cfg.glu_alpha * x)
    )
    f = partial(ratio_activation, act) if "activation" in rules else act
    if gate is None:
        return f(up)
    if cfg.act == "clipped_glu":  # clips keep their own derivative under every rule
        gate = jnp.minimum(gate, cfg.glu_limit)
        up = jnp.clip(up, -cfg.glu_limit, cfg.glu_limit) + 1
    product = f(gate) * up
    return half_gradient(product) if "product" in rules else product


def route(
    logits_ne: jax.Array, n_chosen: int, norm_chosen: bool
) -> tuple[jax.Array, jax.Array]:
    """Weights `[n, c]` (float32) and numbers `[n, c]` of every token's best experts.

    With `norm_chosen` the weights sum to 1: a softmax over the chosen, which is what a
    softmax over all, divided by its sum over the chosen, comes to (Mixtral and Qwen 3
    write the latter, gpt-oss the former).
    """
    logits_ne = wide(logits_ne)
    best_nc, chosen_nc = jax.lax.top_k(logits_ne, n_chosen)
    if norm_chosen:
        return jax.nn.softmax(best_nc), chosen_nc
    return jnp.exp(
        best_nc - jax.nn.logsumexp(logits_ne, axis=-1, keepdims=True)
    ), chosen_nc


def block_size(choices: int, n_experts: int) -> int:
    """Tokens per block: a power of two that is at most half of what an expert gets on
    average, from 1 to 512.
    """
    return 1 << (max(1, min(512, choices // (2 * n_experts))).bit_length() - 1)


def dispatch(
    chosen_nc: jax.Array, n_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Slots for all choices, ordered by expert and padded to whole blocks, so that a
    block has a single expert.

    With b = `block_size`, n c choices need at most (n c + min(e, n c) (b - 1)) / b
    blocks, whatever the routing.

    Returns:
      `token_mb`: the token in every slot of every block (0 where a slot is empty);
        `slot_nc`: where each choice went;
      `expert_m`: the expert of each block.
    """
    n, c = chosen_nc.shape
    size = block_size(n * c, n_experts)
    n_blocks = (n * c + min(n_experts, n * c) * (size - 1)) // size
    flat = chosen_nc.reshape(-1)
    counts_e = jnp.zeros(n_experts, jnp.int32).at[flat].add(1)
    ends_e = jnp.cumsum(-(-counts_e // size), dtype=jnp.int32)  # in blocks
    order = jnp.argsort(flat, stable=True)
    by_expert = flat[order]
    rank = (
        jnp.arange(n * c, dtype=jnp.int32)
        - (jnp.cumsum(counts_e, dtype=jnp.int32) - counts_e)[by_expert]
    )
    slot = (
        jnp.zeros(n * c, jnp.int32)
        .at[order]
        .set((ends_e - -(-counts_e // size))[by_expert] * size + rank)
    )
    token = (
        jnp.zeros(n_blocks * size, jnp.int32)
        .at[slot]
        .set(jnp.arange(n * c, dtype=jnp.int32) // c)
    )
    expert_m = jnp.minimum(
        jnp.searchsorted(ends_e, jnp.arange(n_blocks), side="right"), n_experts - 1
    )
    return token.reshape(n_blocks, size), slot.reshape(n, c), expert_m


class Experts(nn.Module):
    """A router and its experts, each an MLP of width f: a token's output is the
    weighted sum of its experts'.

    Exact and without a capacity: tokens are ordered by expert in padded blocks and a
    loop multiplies each block with its expert's matrices. Operations: 6 d f a slot, and
    again for the gradient by the input, with at most 1.5 n c slots for n tokens with c
    choices each (1.47 for 256 tokens, 16 experts, 2 choices; no product is repeated in
    the backward pass). Every expert on every token would take e / c times n c, and
    `jax.lax.ragged_dot` e times on CPUs, where its lowering
    repeats the input for each expert: at 1024 tokens, d 256, f 512, e 16, c 2 on two
    busy cores 44 ms forward against 780 and 825.
    """

    cfg: LMConfig
    dtype: Any = jnp.float32
    rules: Rules = PLAIN

    @nn.compact
    def __call__(self, h_btd: jax.Array) -> jax.Array:
        cfg = self.cfg
        e, d, f = cfg.n_experts, cfg.d_model, cfg.d_mlp
        init = nn.initializers.lecun_normal(batch_axis=0)
        shapes = {"gate": (e, d, f), "up": (e, d, f), "down": (e, f, d)}
        weights = {
            name: self.param(name, init, shape) for name, shape in shapes.items()
        }
        if cfg.mlp_bias:
            zeros = nn.initializers.zeros
            weights |= {
                f"{n}_bias": self.param(f"{n}_bias", zeros, (e, s[2]))
                for n, s in shapes.items()
            }
        weights = {name: w.astype(self.dtype) for name, w in weights.items()}
        logits_bte = nn.Dense(
            e, use_bias=cfg.mlp_bias, dtype=self.dtype, name="router"
        )(h_btd)
        groups = cfg.token_groups if h_btd.shape[0] % cfg.token_groups == 0 else 1
        one = lambda h_nd, logits_ne: _mixture(
            cfg, weights, h_nd, logits_ne, self.rules
        )
        if groups == 1:
            return one(h_btd.reshape(-1, d), logits_bte.reshape(-1, e)).reshape(
                h_btd.shape
            )
        h_gnd = h_btd.reshape(groups, -1, d)
        logits_gne = logits_bte.reshape(groups, -1, e)
        return jax.vmap(one)(h_gnd, logits_gne).reshape(h_btd.shape)


def _mixture(
    cfg: LMConfig,
    weights: dict[str, jax.Array],
    h_nd: jax.Array,
    logits_ne: jax.Array,
    rules: Rules,
) -> jax.Array:
    # A router's softmax is a pattern like attention's: the same rule holds it.
    weight_nc, chosen_nc = route(
        hold(logits_ne, "attention" in rules), cfg.n_chosen, cfg.norm_chosen
    )
    token_mb, slot_nc, expert_m = dispatch(chosen_nc, cfg.n_experts)

    def expert_of_block(h_bd: jax.Array, expert: jax.Array) -> jax.Array:
        kernels = {
            name: jax.lax.dynamic_index_in_dim(w, expert, keepdims=False)
            for name, w in weights.items()
        }
        linear = lambda x, name: (
            x @ kernels[name] + (kernels[f"{name}_bias"] if cfg.mlp_bias else 0)
        )
        return linear(
            activation(cfg, linear(h_bd, "gate"), linear(h_bd, "up"), rules), "down"
        )

    # Products are stored for the backward pass, sliced matrices are not: they are as
    #   large as the model's layer.
    body = jax.checkpoint(
        expert_of_block, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
    )
    _, out_mbd = jax.lax.scan(
        lambda _, block: (None, body(h_nd[block[0]], block[1])),
        None,
        (token_mb, expert_m),
    )
    out_ncd = out_mbd.reshape(-1, h_nd.shape[-1])[slot_nc]
    return jnp.einsum(
        "ncd,nc->nd", wide(out_ncd), weight_nc.astype(wide(out_ncd).dtype)
    ).astype(h_nd.dtype)
