"""Adapters that were trained here as PEFT folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_layouts import layout_of, source_of, tensor_name
from sae_attr.lm.lora import Lora, check_lora
from sae_attr.lm.model import Params
from sae_attr.lm.peft_load import adaptable
from sae_attr.parallel import is_main, to_host
from sae_attr.store import write_atomic


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
    # Gathered on every process before the others leave: gathering needs all of them.
    host = {}
    for name, leaf in trained["lora"].items():
        host[name] = {half: to_host(leaf[half]) for half in "ab"}
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
    """Returns path of a matrix in the Hugging Face model, {} for the layer -> those of
    our matrices that are parts of it.
    """
    modules: dict[str, list[str]] = {}
    for name in names:
        source = source_of(cfg, f"blocks/{name}/kernel")
        module = tensor_name(cfg, source.name).removesuffix(".weight")
        modules.setdefault(module, []).append(name)
    return modules


def _width(cfg: LMConfig, name: str) -> int:
    """Returns the number of outputs of a matrix."""
    heads = {"q": cfg.n_heads, "k": cfg.n_kv_heads, "v": cfg.n_kv_heads}
    if name in heads:
        return heads[name] * cfg.head_dim
    return cfg.d_mlp if name in ("gate", "up") else cfg.d_model


def _joined_b(
    cfg: LMConfig, module: str, parts: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Returns B `[out, n r]` of the file's matrix, with a block for each part."""
    widths = [_width(cfg, name) for name in _modules(cfg, adaptable(cfg))[module]]
    ranks = [len(b_ro) for b_ro in parts.values()]
    joined_or = np.zeros((sum(widths), sum(ranks)))
    # Row numbers, sent through the view that reads a part, say which rows are the part's.
    numbers_o = np.arange(sum(widths))
    column_o = numbers_o[None] if layout_of(cfg).in_out else numbers_o[:, None]
    start = 0
    for name, b_ro in parts.items():
        rows = source_of(cfg, f"blocks/{name}/kernel").read(column_o, cfg)[0]
        joined_or[rows, start : start + len(b_ro)] = b_ro.T
        start += len(b_ro)
    return joined_or


def _peft_config(
    cfg: LMConfig,
    lora: Lora,
    layers: tuple[int, ...],
    joined: Mapping[str, Sequence[str]],
    base: str,
) -> Mapping[str, Any]:
    ranks, alphas = {}, {}
    targets = []
    for module, names in joined.items():
        target = module.split("{}.")[1]
        targets.append(target)
        n = len(names)
        if n > 1:
            # The same scale at n times the rank.
            ranks[target] = n * lora.rank
            alphas[target] = lora.alpha * (math.sqrt(n) if lora.rslora else n)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": layout_of(cfg).in_out,
        "target_modules": sorted(targets),
        "layers_to_transform": list(layers),
        "inference_mode": True,
        "init_lora_weights": True,
    }
