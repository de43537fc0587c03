"""Loads a Hugging Face folder, or a GGUF file, into our parameter tree."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging
from tqdm import tqdm

from sae_attr.files.gguf_parts import read_gguf
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import config_name, for_mesh, read_config
from sae_attr.lm.gguf_weights import (
    quantisation,
    quantisation_text,
    read_gguf_weights,
)
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.leaf_places import leaf_shapes
from sae_attr.lm.model import Params
from sae_attr.lm.peft_load import load_adapter
from sae_attr.lm.weight_checks import check_weights
from sae_attr.lm.weight_files import Weights, read_weights
from sae_attr.lm.weight_stream import leaf_pieces, streamed
from sae_attr.parallel import LM_RULES, make_mesh, shard_tree, spec_for


def load_lm(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    resid_dtype: str | None = None,
    adapter: str | None = None,
    merge: bool = True,
    cfg: LMConfig | None = None,
    progress: bool = True,
) -> tuple[LMConfig, Params]:
    """Loads config and parameters of a Hugging Face folder, hub id or GGUF model, each
    weight on the devices that `LM_RULES` gives it.

    Files are memory-mapped; the host holds a piece of `CHUNK_BYTES` at a time
    (benchmarks/load_memory.py).

    Args:
      path: folder, hub id `owner/name[@revision]`, .gguf file, or `pip:NAME`.
      mesh: axes `data` and `model`; None: every device on `data`.
      dtype: of the weights and of matrix products: float32, bfloat16 or float64 (under
        x64).
      resid_dtype: of the residual stream; default float32, float64 for float64 weights.
      adapter: folder or hub id of a PEFT LoRA adapter of this model.
      merge: add it to the weights, in float64 before they are rounded to `dtype`;
        otherwise its factors are kept apart in `params["lora"]`, where they can be
        differentiated, scaled or taken out.
      cfg: the model, where no config.json describes it: any combination of parts that
        `LMConfig` has. Its `family` says under which names and in which layout the
        tensors lie, its `names` which of them differ.
      progress: show a bar.

    Raises:
      ValueError: missing or unexpected weights (listed with - and +), shapes that
        contradict config.json, truncated files, NaN or infinity, an adapter of another
        kind or another model.
    """
    folder = resolve_model(path)
    mesh = make_mesh() if mesh is None else mesh
    resid_dtype = resid_dtype or ("float64" if dtype == "float64" else "float32")
    hf = read_config(folder) if cfg is None else {}
    cfg = for_mesh(cfg or config_from_hf(hf, config_name(folder)), resid_dtype, mesh)
    added = resolve_model(adapter) if adapter else None
    lora = load_adapter(added) if added else None
    if folder.is_file():
        weights = _weights_of_gguf(folder, cfg)
    else:
        is_adapter = added is not None and added.resolve() == folder.resolve()
        weights = read_weights(
            folder, multimodal="text_config" in hf, adapter=is_adapter
        )
    shapes = leaf_shapes(cfg)
    check_weights(cfg, shapes, weights, folder)
    if lora:
        lora.check(cfg, {leaf: want.shape for leaf, want in shapes.items()})
    params: Params = {}
    for leaf, want in tqdm(
        shapes.items(), desc="load weights", unit="leaf", disable=not progress
    ):
        *outer, last = leaf.split("/")
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        sharding = jax.NamedSharding(mesh, spec_for(leaf, want.shape, LM_RULES, mesh))
        pieces = leaf_pieces(
            cfg, leaf, weights.tensors, want.shape, sharding, lora if merge else None
        )
        node[last] = streamed(leaf, pieces, want.shape, sharding, dtype)
    if lora and not merge:
        params |= shard_tree({"lora": lora.stacked(cfg, dtype)}, LM_RULES, mesh)
    return cfg, params


def _weights_of_gguf(file: Path, cfg: LMConfig) -> Weights:
    """Maps the tensors of a GGUF file, and logs what they are quantised to."""
    header = read_gguf(file)
    types = quantisation_text(quantisation(header))
    logging.info("%s: dequantised from %s tensors", file.name, types)
    return read_gguf_weights(header, cfg)
