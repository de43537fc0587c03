"""Reads vectors, a bare tensor or several by name, from .npy, .npz, .safetensors and torch
files, of which nothing is executed; writes them as safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sae_attr.files.tensors import is_float, read_tensors
from sae_attr.files.text import check_pointer
from sae_attr.files.torch_file import read_torch

_TORCH = (".pt", ".pth", ".bin", ".ckpt")


def read_vectors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the vectors of a file by name, each `[d]` or (several of one name) `[n, d]`, float32.

    A bare tensor has the name of its file, the tensors of a list their numbers. Single
    numbers beside them, such as a norm or a count of tokens, are left out.

    Raises:
      ValueError: no vector in the file, or one that is not of finite floating-point
        numbers; a damaged or hostile file.
      FileNotFoundError: no such file.
    """
    path = Path(path)
    vectors = {}
    for name, value in _tensors(path).items():
        if np.size(value) > 1:
            vectors[name] = _vector(path, name, value)
    if not vectors:
        raise ValueError(
            f"{path} holds no vector; save a tensor [d] or [n, d], bare or by name"
        )
    return vectors


def read_vector(path: str | os.PathLike[str], width: int | None = None) -> np.ndarray:
    """Reads the only vector of a file, `[d]` float32.

    Args:
      path: as for `read_vectors`.
      width: the d that is needed.

    Raises:
      ValueError: several vectors, or one of another width; else as `read_vectors`.
    """
    rows = []
    for name, value in read_vectors(path).items():
        rows += [(name, row) for row in np.atleast_2d(value)]
    if len(rows) != 1:
        names = ", ".join(dict.fromkeys(repr(name) for name, _ in rows[:8]))
        raise ValueError(
            f"{path} holds {len(rows)} vectors ({names}) where one is needed; save "
            "that one alone"
        )
    (name, vector_d), *_ = rows
    if width is not None and len(vector_d) != width:
        raise ValueError(
            f"{path}: the vector {name!r} has {len(vector_d)} numbers, but {width} are "
            "needed"
        )
    return vector_d


def write_vectors(
    path: str | os.PathLike[str],
    vectors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes named arrays to a safetensors file; metadata that is not text is stored as
    JSON.

    Raises:
      ValueError: no vectors, or one that is not finite.
    """
    arrays = {}
    for name, value in vectors.items():
        arrays[str(name)] = np.ascontiguousarray(np.asarray(value))
    check_vectors(path, arrays)
    texts = {}
    for name, value in (metadata or {}).items():
        texts[str(name)] = value if isinstance(value, str) else json.dumps(value)
    save_file(arrays, path, metadata=texts)


def check_vectors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError where there is nothing to write, or an array is not finite."""
    if not arrays:
        raise ValueError(f"no vectors for {path}; give at least one")
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"vector {name} for {path} holds NaN or infinity")


def _tensors(path: Path) -> Mapping[str, np.ndarray]:
    """Reads tensors by name, whatever they are wrapped in."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.suffix == ".npy":
        check_pointer(path)
        return {path.stem: _read_npy(path)}
    if path.suffix not in _TORCH:
        return read_tensors(path)
    content = read_torch(path)
    if isinstance(content, np.ndarray):
        return {path.stem: content}
    if isinstance(content, list | tuple):
        numbered = {str(i): value for i, value in enumerate(content)}
        return {i: x for i, x in numbered.items() if isinstance(x, np.ndarray)}
    return read_tensors(path)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path} is no array of numbers, or damaged ({error}); save it again with "
            "numpy.save"
        ) from error


def _vector(path: Path, name: str, value: Any) -> np.ndarray:
    if not is_float(value.dtype):
        raise ValueError(
            f"{path}: {name!r} holds {value.dtype}, not floating-point numbers"
        )
    while value.ndim > 2 and value.shape[0] == 1:  # [1, 1, d], as hooks give it
        value = value[0]
    if value.ndim > 2:
        raise ValueError(
            f"{path}: {name!r} has shape {list(value.shape)}; a vector is [d], several "
            "are [n, d]"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        vector = np.asarray(value, np.float32)
    if not np.isfinite(vector).all():
        raise ValueError(
            f"{path}: {name!r} holds NaN or infinity, or numbers beyond float32"
        )
    return vector[0] if vector.ndim == 2 and len(vector) == 1 else vector
