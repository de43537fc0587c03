"""Whether files hold the weights that a config describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import is_gguf
from sae_attr.files.text import printable
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_folder import CONFIG
from sae_attr.lm.hf_layouts import source_of
from sae_attr.lm.leaf_places import names, places
from sae_attr.lm.weight_files import (
    Weights,
    quantised_names,
    same_numbers,
)

_SHOWN = 200  # characters of a tensor's name in a message


def check_weights(
    cfg: LMConfig, shapes: Mapping[str, Any], weights: Weights, folder: Path
) -> None:
    """Raises ValueError, with a line for each fault, if the files do not hold what
    config.json describes.
    """
    tensors = weights.tensors
    expected = {name for leaf in shapes for name in names(cfg, leaf)}
    spare = {name for name in _HEADS if name in tensors} if cfg.tied_head else set()
    lines = [
        f"- {printable(name, _SHOWN)} (missing)"
        for name in sorted(expected - set(tensors))
    ]
    lines += [
        f"+ {printable(name, _SHOWN)} (unexpected)"
        for name in sorted(set(tensors) - expected - spare)
    ]
    if len(lines) > 20:
        lines[20:] = [f"... and {len(lines) - 20} more"]
    if lines:
        quantised = quantised_names(set(tensors) - expected)
        cure = "Use the config.json that belongs to these weights."
        if folder.is_file():
            cure = "Fetch the file again, or convert the model anew."
        if quantised:
            cure = (
                f"{printable(quantised[0], _SHOWN)} belongs to quantised weights, whose "
                "config.json has a quantization_config; take "
                "the unquantised model."
            )
        raise ValueError(
            f"the weights in {folder} are not those of the {cfg.family} model that "
            f"{_described_by(folder)} describes:\n" + "\n".join([*lines, cure])
        )
    for name in spare:
        _check_tied(cfg, name, weights, folder)
    for leaf, want in shapes.items():
        for at, name in places(cfg, leaf):
            _check_shape(cfg, leaf, weights, name, at, want.shape[len(at) :])


def _described_by(source: Path) -> str:
    return "its metadata" if is_gguf(source) else CONFIG


_HEADS = ("lm_head.weight", "embed_out.weight")


def _check_tied(cfg: LMConfig, name: str, weights: Weights, folder: Path) -> None:
    """The head of a tied model is a second copy of its embedding, or not this model's
    at all.
    """
    embedding = source_of(cfg, "embed/table").name
    if not same_numbers(weights.tensors[name], weights.tensors[embedding]):
        raise ValueError(
            f"{folder / CONFIG} says that head and embedding are one "
            f"(tie_word_embeddings), but {name} in "
            f"{weights.file_of[name].name} differs from {embedding}; set "
            "tie_word_embeddings to false if the head is the "
            "model's, or take it out of the file"
        )


def _check_shape(
    cfg: LMConfig,
    leaf: str,
    weights: Weights,
    name: str,
    at: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    """Raises ValueError if a tensor is not of the shape that config.json asks for, or
    holds no real numbers.
    """
    tensor = weights.tensors[name]
    try:
        got = source_of(cfg, leaf).shape_of(
            weights.tensors, name, at[-1] if at else 0, cfg
        )
    except (ValueError, IndexError):  # it cannot be cut into heads or experts
        got = tensor.shape
    if got != shape:
        where = f" ({name} of layer {at[0]})" if at else ""
        raise ValueError(
            f"{leaf} should be {shape} by {_described_by(weights.file_of[name])}, but "
            f"the file has {got}; take both from one model{where}"
        )
    dtype = getattr(tensor, "dtype", None)
    if dtype is not None and (
        np.dtype(dtype).kind in "iub" or np.dtype(dtype).itemsize == 1
    ):  # or float8
        raise ValueError(
            f"{weights.file_of[name]}: {name} holds {np.dtype(dtype).name} numbers "
            "without scales, so it is quantised or "
            "damaged; take the unquantised model (a quantised one has a "
            "quantization_config in config.json)"
        )
