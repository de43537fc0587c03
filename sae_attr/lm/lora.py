"""LoRA adapters that are trained here: first factors, scale, merging."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.lm.peft_load import adaptable


@dataclass(frozen=True)
class Lora:
    """W + s A B on some matrices of some layers (Hu et al. 2021).

    Args:
      rank: r; A is `[in, r]`, B `[r, out]`.
      alpha: s = alpha / r, or alpha / sqrt(r) with `rslora` (Kalajdzievski 2023).
      targets: of q, k, v, o, gate, up, down.
      layers: which; None is all. The nine rank-1 adapters of the published model
        organisms are rank=1, targets=("down",) and nine layers.
    """

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    layers: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """Returns s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def check_lora(cfg: LMConfig, lora: Lora) -> tuple[int, ...]:
    """Returns the adapted layers in order.

    Raises:
      ValueError: a rank below 1, no or unknown matrices, layers that the model lacks or
        that are named twice.
    """
    if lora.rank < 1:
        raise ValueError(
            f"LoRA of rank {lora.rank} adds nothing; choose a rank of at least 1"
        )
    unknown = [name for name in lora.targets if name not in adaptable(cfg)]
    if unknown or not lora.targets:
        raise ValueError(
            f"LoRA targets {', '.join(unknown) or 'none'}: adapted can be "
            f"{', '.join(adaptable(cfg))} of a {cfg.family} model"
        )
    layers = tuple(range(cfg.n_layers))
    if lora.layers is not None:
        layers = tuple(sorted(lora.layers))
    outside = [layer for layer in layers if not 0 <= layer < cfg.n_layers]
    if outside or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"LoRA layers {list(lora.layers or ())} of a model whose layers are "
            f"0..{cfg.n_layers - 1}: "
            "name at least one, each once, of those"
        )
    return layers


def init_lora(cfg: LMConfig, params: Params, lora: Lora, key: jax.Array) -> Params:
    """Returns stacked factors `{"lora": {name: {a [l, in, r], b [l, r, out]}}}`, float32: b is
    0, a uniform ± 1/sqrt(in) as in peft.

    Layers without an adapter have a = b = 0, where both gradients vanish, so they stay
    there. b lacks the scale, which `attach` applies: Adam's steps are then those of
    peft.

    Raises:
      ValueError: as `check_lora`.
    """
    layers = np.array(check_lora(cfg, lora))
    tree: Params = {}
    for number, name in enumerate(sorted(set(lora.targets))):
        _, d_in, d_out = params["blocks"][name]["kernel"].shape
        bound = 1 / math.sqrt(d_in)
        # Drawn for the adapted layers alone, then spread: leaves are stacked over all
        # layers, as the blocks' weights are.
        a_kir = jax.random.uniform(
            jax.random.fold_in(key, number),
            (len(layers), d_in, lora.rank),
            jnp.float32,
            -bound,
            bound,
        )
        a_lir = jnp.zeros((cfg.n_layers, d_in, lora.rank)).at[layers].set(a_kir)
        # With b = 0 the adapted model begins as the base model.
        tree[name] = {"a": a_lir, "b": jnp.zeros((cfg.n_layers, lora.rank, d_out))}
    return {"lora": tree}


def attach(frozen: Params, trained: Params, *, scale: float) -> Params:
    """Returns the parameter tree with the adapter kept apart and its scale in b, as
    `load_lm(merge=False)` gives it.
    """
    scaled = {}
    for name, leaf in trained["lora"].items():
        scaled[name] = {"a": leaf["a"], "b": scale * leaf["b"]}
    return {**frozen, "lora": scaled}


def merged(params: Params) -> Params:
    """Returns the tree without "lora", its products added to the kernels (at the highest
    precision).
    """

    def add(w_lio: jax.Array, leaf: Params) -> jax.Array:
        product = jnp.einsum(
            "lir,lro->lio", leaf["a"], leaf["b"], precision=jax.lax.Precision.HIGHEST
        )
        # Added in float32, rounded once: a product may be smaller than a step of bfloat16.
        return (w_lio.astype(product.dtype) + product).astype(w_lio.dtype)

    blocks = dict(params["blocks"])
    for name, leaf in params["lora"].items():
        blocks[name] = {**blocks[name], "kernel": add(blocks[name]["kernel"], leaf)}
    return {**{k: v for k, v in params.items() if k != "lora"}, "blocks": blocks}
