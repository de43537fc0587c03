"""The config of a model in a Hugging Face folder or GGUF file, fitted to a mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from sae_attr.files.gguf_parts import read_gguf
from sae_attr.lm.config import LMConfig
from sae_attr.lm.gguf_config import config_from_gguf
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_folder import ADAPTER, CONFIG, read_object, resolve_config
from sae_attr.lm.weight_files import weight_files


def load_config(
    path: str | Path,
    *,
    resid_dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> LMConfig:
    """Reads the `LMConfig` of a model, without its weights; ValueError if config.json
    is missing or unknown.

    With a mesh, the tokens of each `data` shard go to experts by themselves, so that no
    shard waits for another's.
    """
    folder = resolve_config(path)
    return for_mesh(
        config_from_hf(read_config(folder), config_name(folder)), resid_dtype, mesh
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model's folder, or what would stand there of a GGUF
    file.

    Raises:
      ValueError: no such file, or one that cannot be read.
    """
    if folder.is_file():
        return config_from_gguf(read_gguf(folder))
    file = folder / CONFIG
    if file.is_file():
        return read_object(file)
    if (folder / ADAPTER).is_file():
        weight_files(folder)  # which says what to do with an adapter
    raise ValueError(
        f"{folder} holds no {CONFIG}, so it is no Hugging Face model folder"
    )


def config_name(folder: Path) -> str:
    """Returns where the config of a folder or GGUF file stands, for messages."""
    return f"{folder}" if folder.is_file() else str(folder / CONFIG)


def for_mesh(
    cfg: LMConfig, resid_dtype: str, mesh: jax.sharding.Mesh | None
) -> LMConfig:
    """Returns the config with a residual stream's dtype, and experts' tokens in as many
    groups as the mesh has parts of rows.

    Raises:
      ValueError: the mesh's model axis would cut heads apart.
    """
    cfg = replace(cfg, resid_dtype=resid_dtype)
    if mesh is not None:
        _check_heads(cfg, mesh)
    return (
        replace(cfg, token_groups=mesh.shape["data"])
        if mesh is not None and cfg.n_experts
        else cfg
    )


def _check_heads(cfg: LMConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where the model axis would cut heads apart."""
    model = mesh.shape["model"]
    if cfg.n_heads % model:
        fits = [m for m in range(1, cfg.n_heads + 1) if cfg.n_heads % m == 0]
        raise ValueError(
            f"mesh data × model = {mesh.shape['data']} × {model} cannot split the "
            f"model's {cfg.n_heads} heads ({cfg.n_kv_heads} for keys) over "
            f"model={model}; choose one of {', '.join(map(str, fits))}, and data × "
            f"model for {mesh.size} devices"
        )
