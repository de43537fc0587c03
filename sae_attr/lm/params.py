"""The tree of parameters: its layers, its dtype, and random ones.

    {embed, pos?, blocks, final_norm, head?, lora?}

Every leaf of `blocks` and of `lora`, an adapter that was kept apart, has the layers as
its first axis. `unstacked` gives each layer its own arrays instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sae_attr.device_memory import device_memory
from sae_attr.lm.attention import layer_facts, whole_rows
from sae_attr.lm.block import Block, Norm
from sae_attr.lm.config import LMConfig

Params = dict[str, Any]


def weights_dtype(params: Params) -> Any:
    """Returns the dtype that the weights were loaded in."""
    return params["embed"]["table"].dtype


def layer_of(blocks: Params, layer: Any) -> Params:
    """Returns one layer's parameters, sliced out of the stack inside the loop: a slice
    outside it would copy whole segments.
    """
    one = lambda w: jax.lax.dynamic_index_in_dim(w, layer, keepdims=False)
    return jax.tree.map(one, blocks)


def layer_of_kind(cfg: LMConfig, blocks: Params, layer: Any, first: int) -> Params:
    """Returns `layer_of` where layers may differ in kind: a leaf that only some of them
    have counts those alone.

    Args:
      layer: its number, which may be traced.
      first: a layer of the same kind, with none of another kind between them.
    """
    out: Params = {}
    for name, leaves in blocks.items():
        holders = cfg.layers_of(name)
        if first in holders:
            out[name] = layer_of(leaves, layer - first + holders.index(first))
    return out


def layer_variables(cfg: LMConfig, params: Params, layer: Any, first: int) -> Params:
    """Returns the collections that the block of one layer is applied with: "params",
    and "lora" where there is an adapter.

    Args:
      layer, first: as for `layer_of_kind`.
    """
    if isinstance(params["blocks"], tuple):
        out = {"params": params["blocks"][layer]}
        return out | ({"lora": params["lora"][layer]} if "lora" in params else {})
    out = {"params": layer_of_kind(cfg, params["blocks"], layer, first)}
    return out | ({"lora": layer_of(params["lora"], layer)} if "lora" in params else {})


def unstacked(params: Params, *, cfg: LMConfig) -> Params:
    """Returns a copy of the parameters in which `blocks` and `lora` are tuples with one
    tree a layer; what is no block is shared.

    A loop over layers copies each layer's weights out of the stack before it multiplies
    by them. A step of sampling, one token a row, is a tenth faster with arrays by
    themselves, where memory has room for both (see `room_for_copy`).
    """
    layers = []
    adapters = []
    for first, end in spans_of_one_kind(cfg, 0, cfg.n_layers):
        for layer in range(first, end):
            variables = _layer_copy(params, jnp.int32(layer), cfg=cfg, kind_of=first)
            layers.append(variables["params"])
            adapters.append(variables.get("lora"))
    out = {**params, "blocks": tuple(layers)}
    return {**out, "lora": tuple(adapters)} if "lora" in params else out


@partial(jax.jit, static_argnames=("cfg", "kind_of"))
def _layer_copy(
    params: Params, layer: jax.Array, *, cfg: LMConfig, kind_of: int
) -> Params:
    return layer_variables(cfg, params, layer, kind_of)


def room_for_copy(size: int, mesh: Mesh) -> bool:
    """Returns whether blocks of so many bytes on each device may lie there twice: they
    take a quarter of its memory at most.
    """
    memory = device_memory(mesh)
    return memory is not None and size <= memory // 4


def spans_of_one_kind(cfg: LMConfig, start: int, stop: int) -> list[tuple[int, int]]:
    """Splits a span of layers where the kind changes; each part shares one scanned
    body.
    """
    dense = set(cfg.dense_layers)
    starts = []
    for layer in range(start, stop):
        if layer == start or (layer in dense) != (layer - 1 in dense):
            starts.append(layer)
    return list(zip(starts, [*starts[1:], stop]))


def init_params(cfg: LMConfig, key: jax.Array, dtype: str = "float32") -> Params:
    """Draws random parameters in the layout that `forward` reads: embeddings N(0,
    0.02), Linen's defaults in the blocks.
    """
    keys = jax.random.split(key, cfg.n_layers + 3)
    x_btd = jnp.zeros((1, 2, cfg.d_model), cfg.resid_dtype)
    table = lambda key, rows: {
        "table": 0.02 * jax.random.normal(key, (rows, cfg.d_model))
    }
    params: Params = {
        "embed": table(keys[0], cfg.vocab),
        "blocks": _init_blocks(cfg, keys[3:], x_btd),
        "final_norm": Norm(cfg, jnp.float32).init(keys[1], x_btd)["params"],
    }
    if cfg.learned_pos:
        params["pos"] = table(keys[1], cfg.max_len)
    if not cfg.tied_head:
        params["head"] = table(keys[2], cfg.vocab)
    return jax.tree.map(lambda w: w.astype(dtype), params)


def _init_blocks(cfg: LMConfig, keys_l: jax.Array, x_btd: jax.Array) -> Params:
    ctx, facts = whole_rows(cfg, jnp.arange(2)[None], None, None), layer_facts(cfg, 0)

    def stack(block: Block) -> Params:
        init = lambda key: block.init(key, x_btd, ctx, facts)["params"]
        return dict(jax.vmap(init)(keys_l))

    blocks = stack(Block(cfg))
    if not cfg.dense_layers:
        return blocks
    blocks = {**stack(Block(cfg, dense=True)), **blocks}
    for name in blocks:
        holders = np.array(cfg.layers_of(name))
        blocks[name] = jax.tree.map(lambda w, at=holders: w[at], blocks[name])
    return blocks
