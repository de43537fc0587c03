"""safetensors files as memory-mapped arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from sae_attr.files.mapped import corrupt, mapped_bytes

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Maps the tensors of a safetensors file by name."""
    # The library's own checks (sizes, overlaps, offsets against the file's length) come
    # first; the map can trust them.
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise corrupt(path, error) from error
    raw = mapped_bytes(path)
    size = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        tensors[name] = _safetensor(path, raw, 8 + size, name, entry)
    return tensors


def _safetensor(
    path: Path, raw: np.ndarray, base: int, name: str, entry: dict[str, Any]
) -> np.ndarray:
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise ValueError(
            f"{path}: tensor {name!r} has dtype {entry['dtype']}; save it as one of "
            f"{', '.join(_SAFETENSORS_DTYPES)}"
        )
    start, end = entry["data_offsets"]
    return (
        raw[base + start : base + end]
        .view(_SAFETENSORS_DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
    )
