"""Writes parameters as a Hugging Face folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_layouts import as_is, source_of, tensor_name, transposed
from sae_attr.lm.leaf_places import leaf_shapes, places
from sae_attr.lm.model import Params
from sae_attr.parallel import is_main, to_host
from sae_attr.store import write_atomic


def save_lm(folder: Path, hf: Mapping[str, Any], params: Params) -> None:
    """Writes a Hugging Face folder: model.safetensors in the parameters' dtype, then
    config.json. Every process calls it.

    Args:
      hf: config.json of the model, from which `params` were made; its dtype is set to
        that of the weights.

    Raises:
      ValueError: an adapter kept apart (`lm.lora.merged` adds it to the weights);
        parameters of another model.
    """
    cfg = config_from_hf(hf)
    if "lora" in params:
        raise ValueError(
            "these parameters keep an adapter apart, which the folder has no place "
            "for; merge it on loading, or with "
            "lm.lora.merged"
        )
    parts: dict[str, list[_Part]] = {}
    for leaf, want in leaf_shapes(cfg).items():
        array: Any = params
        for key in leaf.split("/"):
            array = array[key]
        value = to_host(array)
        if value.shape != want.shape:
            raise ValueError(
                f"{leaf} is {value.shape} but config.json asks for {want.shape}; take "
                "both from one model"
            )
        for at, name in places(cfg, leaf):
            parts.setdefault(name, []).append(
                _Part(leaf, at[-1] if at else 0, value[at])
            )
    if not is_main():
        return
    tensors = {
        tensor_name(cfg, name): _joined(cfg, name, pieces)
        for name, pieces in parts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    plain = {key: value for key, value in hf.items() if key != "quantization_config"}
    plain["dtype" if "dtype" in hf else "torch_dtype"] = params["embed"][
        "table"
    ].dtype.name
    write_atomic(folder / "config.json", json.dumps(plain, indent=1))


@dataclass(frozen=True, eq=False)
class _Part:
    """Holds what a leaf has of a file's tensor; `expert` as `LeafSource.view` takes it."""

    leaf: str
    expert: int
    value: np.ndarray


def _joined(cfg: LMConfig, name: str, parts: list[_Part]) -> np.ndarray:
    """The file's tensor, of which every part is a view: the inverse of `LeafSource.view`,
    whatever that does.

    A tensor of element numbers goes through the view; what comes out says where each
    element of the part belongs.
    """
    if len(parts) == 1 and (read := source_of(cfg, parts[0].leaf).read) in (
        transposed,
        as_is,
    ):
        return np.ascontiguousarray(
            parts[0].value.T if read is transposed else parts[0].value
        )
    size = sum(part.value.size for part in parts)
    for shape in _shapes(cfg, parts):
        numbers = (
            np.arange(size).reshape(shape)
            if math.prod(shape) == size
            else np.zeros(0, int)
        )
        try:
            views = [
                source_of(cfg, p.leaf).view({name: numbers}, name, p.expert, cfg)
                for p in parts
            ]
        except (ValueError, IndexError):  # it cannot be cut into heads or experts
            continue
        if all(view.shape == part.value.shape for view, part in zip(views, parts)):
            out = np.empty(size, parts[0].value.dtype)
            for view, part in zip(views, parts):
                out[view] = part.value
            return out.reshape(shape)
    raise ValueError(
        f"the parts of {name} do not make one tensor of a {cfg.family} model"
    )


def _shapes(cfg: LMConfig, parts: list[_Part]) -> list[tuple[int, ...]]:
    """Shapes that the joined tensor may have: parts beside or below each other, with or
    without an axis of experts.
    """
    first = parts[0].value.shape
    leaves = {part.leaf: part.value.shape[-1] for part in parts}
    wide = (*first[:-1], sum(leaves.values()))
    return [wide, wide[::-1], (cfg.n_experts, *wide)]
