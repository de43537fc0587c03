"""Tensors of safetensors, npz and torch files by name, as memory-mapped arrays: nothing is
read until it is sliced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.npz_file import read_npz
from sae_attr.files.safetensors_file import read_safetensors
from sae_attr.files.text import check_pointer
from sae_attr.files.torch_file import read_torch

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_MAX_DEPTH = 8  # of nested dicts in a torch file


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every tensor of a file by name, mapped; the extension is its format.

    `.safetensors`, `.npz` (members stored without compression are mapped, compressed
    ones loaded), `.pt`, `.pth`, `.bin` and `.ckpt` (nested dicts get dotted names;
    entries that are not tensors are left out, see `read_torch`).

    Raises:
      ValueError: unknown extension, or a file that is truncated, corrupt, pickled or
        hostile.
      FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    check_pointer(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _flatten(read_torch(path), path)
    formats = " ".join((".safetensors", ".npz", *_TORCH_SUFFIXES))
    raise ValueError(
        f"{path} ends in {path.suffix!r}, which is not a tensor file; known: {formats}"
    )


def is_float(dtype: np.dtype) -> bool:
    """Returns True for floating-point types, those of ml_dtypes included."""
    return np.issubdtype(dtype, np.floating) or dtype.name.startswith(
        ("bfloat16", "float8")
    )


def _flatten(
    value: Any, path: Path, prefix: str = "", depth: int = 0
) -> dict[str, np.ndarray]:
    what = ""
    if depth > _MAX_DEPTH:
        what = "dicts nested too deeply"
    elif not isinstance(value, Mapping):
        what = f"{type(value).__name__} at {prefix or 'its top'}"
    if what:
        raise ValueError(
            f"{path} holds {what}, not a dict of tensors; save the state_dict"
        )
    tensors: dict[str, np.ndarray] = {}
    for name, entry in value.items():
        if isinstance(entry, np.ndarray):
            tensors[f"{prefix}{name}"] = entry
        elif isinstance(entry, Mapping):
            tensors |= _flatten(entry, path, f"{prefix}{name}.", depth + 1)
    return tensors
