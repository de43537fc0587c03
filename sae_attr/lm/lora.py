"""LoRA adapters that are trained here: start, scale, merging, PEFT folders, and the
hidden state of every token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from sae_attr.hooks import Site
from sae_attr.lm.block import Norm
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_layouts import source_of
from sae_attr.lm.model import Params, forward
from sae_attr.lm.peft_load import adaptable
from sae_attr.lm.weights import tensor_name
from sae_attr.parallel import is_main, to_host
from sae_attr.store import write_atomic

# The site at which a matrix's input arises; q, k and v read the normed residual stream.
_INPUT = {"o": "attn_z", "gate": "mlp_in", "up": "mlp_in", "down": "mlp_hidden"}
_INPUT |= dict.fromkeys("qkv", "resid_pre")


@dataclass(frozen=True)
class Lora:
    """W + s A B on chosen matrices of chosen layers (Hu et al. 2021).

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
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def check_lora(cfg: LMConfig, lora: Lora) -> tuple[int, ...]:
    """The adapted layers in order.

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
    layers = (
        tuple(range(cfg.n_layers))
        if lora.layers is None
        else tuple(sorted(lora.layers))
    )
    outside = [layer for layer in layers if not 0 <= layer < cfg.n_layers]
    if outside or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"LoRA layers {list(lora.layers or ())} of a model whose layers are "
            f"0..{cfg.n_layers - 1}: "
            "name at least one, each once, of those"
        )
    return layers


def init_lora(cfg: LMConfig, params: Params, lora: Lora, key: jax.Array) -> Params:
    """Stacked factors `{"lora": {name: {a [l, in, r], b [l, r, out]}}}`, float32: b is
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
        drawn = jax.random.uniform(
            jax.random.fold_in(key, number),
            (len(layers), d_in, lora.rank),
            jnp.float32,
            -bound,
            bound,
        )
        a_lir = jnp.zeros((cfg.n_layers, d_in, lora.rank)).at[layers].set(drawn)
        tree[name] = {"a": a_lir, "b": jnp.zeros((cfg.n_layers, lora.rank, d_out))}
    return {"lora": tree}


def attach(frozen: Params, trained: Params, *, scale: float) -> Params:
    """The parameter tree with the adapter kept apart and its scale in b, as
    `load_lm(merge=False)` gives it.
    """
    scaled = {
        name: {"a": leaf["a"], "b": scale * leaf["b"]}
        for name, leaf in trained["lora"].items()
    }
    return {**frozen, "lora": scaled}


def merged(params: Params) -> Params:
    """The tree without "lora", its products added to the kernels (at the highest
    precision).
    """

    def add(w_lio: jax.Array, leaf: Params) -> jax.Array:
        product = jnp.einsum(
            "lir,lro->lio", leaf["a"], leaf["b"], precision=jax.lax.Precision.HIGHEST
        )
        return (w_lio.astype(product.dtype) + product).astype(w_lio.dtype)

    blocks = dict(params["blocks"])
    for name, leaf in params["lora"].items():
        blocks[name] = {**blocks[name], "kernel": add(blocks[name]["kernel"], leaf)}
    return {**{k: v for k, v in params.items() if k != "lora"}, "blocks": blocks}


def adapter_states(
    params: Params,
    tokens_bt: jax.Array,
    *,
    cfg: LMConfig,
    layers: tuple[int, ...],
    pos_bt: jax.Array | None = None,
    valid_bt: jax.Array | None = None,
    segment_bt: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """x A, what every adapter reads off its input, for every token; of rank 1 a scalar
    per token.

    B alone says what an adapter writes, so these are all that a token decides (what
    studies of rank-1 organisms read).

    Args:
      params: with the adapter kept apart in `params["lora"]`.
      layers: adapted ones.

    Returns:
      name of the matrix -> float32 `[layers, b, t, r]`.
    """
    lora = params["lora"]
    keep = tuple({Site(layer, _INPUT[name]): None for name in lora for layer in layers})
    acts = forward(
        params,
        tokens_bt,
        cfg=cfg,
        pos_bt=pos_bt,
        valid_bt=valid_bt,
        segment_bt=segment_bt,
        keep=keep,
    ).acts

    def state(name: str, layer: int) -> jax.Array:
        x_bti = acts[Site(layer, _INPUT[name])]
        if name in "qkv" and cfg.pre_norm:
            norm = jax.tree.map(lambda w: w[layer], params["blocks"]["attn_norm"])
            x_bti = Norm(cfg, params["embed"]["table"].dtype).apply(
                {"params": norm}, x_bti
            )
        return jnp.einsum(
            "bti,ir->btr",
            x_bti,
            lora[name]["a"][layer],
            precision=jax.lax.Precision.HIGHEST,
        )

    return {
        name: jnp.stack([state(name, layer) for layer in layers]).astype(jnp.float32)
        for name in lora
    }


# ---- PEFT folders --------------------------------------------------------------------


def save_adapter(
    folder: Path, cfg: LMConfig, lora: Lora, trained: Params, *, base: str
) -> None:
    """Writes adapter_model.safetensors and adapter_config.json, which peft loads onto
    the base model.

    Matrices that are parts of one in the family's files (q, k, v of GPT-2; gate and up
    of Phi-3) become one adapter of that one: A below A, and B with a block for each, so
    of n times the rank and with the same product.

    Every process calls it; the first one writes.

    Args:
      trained: as from `init_lora`, b without the scale.
      base: name or folder of the model that was adapted.

    Raises:
      ValueError: as `check_lora`.
    """
    layers, joined = check_lora(cfg, lora), _modules(cfg, sorted(trained["lora"]))
    host = {
        name: {half: to_host(leaf[half]) for half in "ab"}
        for name, leaf in trained["lora"].items()
    }
    if not is_main():
        return
    tensors: dict[str, np.ndarray] = {}
    for module, names in joined.items():
        for layer in layers:
            prefix = f"base_model.model.{module.format(layer)}"
            a_ri = np.concatenate([host[name]["a"][layer].T for name in names])
            b_or = _joined_b(
                cfg, module, {name: host[name]["b"][layer] for name in names}
            )
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(a_ri, np.float32)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(b_or, np.float32)
    write_atomic(
        folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"})
    )
    write_atomic(
        folder / "adapter_config.json",
        json.dumps(_peft_config(cfg, lora, layers, joined, base), indent=1),
    )


def _modules(cfg: LMConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """Path of a matrix in the Hugging Face model, {} for the layer -> which of our
    matrices are parts of it.
    """
    out: dict[str, list[str]] = {}
    for name in names:
        module = tensor_name(
            cfg, source_of(cfg, f"blocks/{name}/kernel").name
        ).removesuffix(".weight")
        out.setdefault(module, []).append(name)
    return out


def _width(cfg: LMConfig, name: str) -> int:
    """Outputs of a matrix."""
    heads = {"q": cfg.n_heads, "k": cfg.n_kv_heads, "v": cfg.n_kv_heads}
    return (
        heads[name] * cfg.head_dim
        if name in heads
        else cfg.d_mlp
        if name in ("gate", "up")
        else cfg.d_model
    )


def _joined_b(
    cfg: LMConfig, module: str, parts: Mapping[str, np.ndarray]
) -> np.ndarray:
    """B `[out, n r]` of the file's matrix: the block of part i has its rows, found by
    sending row numbers through its view.
    """
    rows_o = np.arange(
        sum(_width(cfg, name) for name in _modules(cfg, adaptable(cfg))[module])
    )
    out = np.zeros((len(rows_o), sum(len(b_ro) for b_ro in parts.values())))
    start = 0
    for name, b_ro in parts.items():
        read = source_of(cfg, f"blocks/{name}/kernel").read
        own = read(rows_o[None] if cfg.family == "gpt2" else rows_o[:, None], cfg)[0]
        out[own, start : start + len(b_ro)] = b_ro.T
        start += len(b_ro)
    return out


def _peft_config(
    cfg: LMConfig,
    lora: Lora,
    layers: tuple[int, ...],
    joined: Mapping[str, Sequence[str]],
    base: str,
) -> Mapping[str, Any]:
    own = {module.split("{}.")[1]: len(names) for module, names in joined.items()}
    several = {
        name: n for name, n in own.items() if n > 1
    }  # the same scale at n times the rank
    grown = lambda n: lora.alpha * (math.sqrt(n) if lora.rslora else n)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "rank_pattern": {name: n * lora.rank for name, n in several.items()},
        "alpha_pattern": {name: grown(n) for name, n in several.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": cfg.family == "gpt2",
        "target_modules": sorted(own),
        "layers_to_transform": list(layers),
        "inference_mode": True,
        "init_lora_weights": True,
    }
