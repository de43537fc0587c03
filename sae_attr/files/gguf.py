"""Writes control vectors as GGUF files, for repeng and llama.cpp."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.vectors import check_vectors

_ALIGNMENT = 32  # bytes; of the tensors and of the file
_UINT32, _STRING, _F32 = 4, 8, 0  # types of values and of tensors


def write_control_vector(
    path: str | os.PathLike[str], directions: Mapping[int, Any], model_hint: str
) -> None:
    """Writes a control vector as repeng's `ControlVector.export_gguf` does: GGUF v3,
    `direction.{layer}` in float32.

    Args:
      path: the file to write.
      directions: layer -> vector `[d]`. repeng counts layers as Hugging Face does, and
        adds a direction to the output of the layer; llama.cpp reads the same numbers
        and wants 1 or more.
      model_hint: the model's type, such as "llama" or "qwen2", checked by readers
        against the model.

    Raises:
      ValueError: no directions, a negative layer, directions of different width or not
        finite.
    """
    arrays = {}
    for layer, value in directions.items():
        arrays[f"direction.{int(layer)}"] = np.asarray(value).astype("<f4")
    check_vectors(path, arrays)
    shapes = {array.shape for array in arrays.values()}
    one_width = len(shapes) == 1 and len(next(iter(shapes))) == 1
    if len(arrays) != len(directions) or not one_width or min(directions) < 0:
        raise ValueError(
            f"directions have layers {list(directions)} and shapes {shapes}; give one "
            "[d] vector per layer"
        )
    # Magic, version, number of tensors, number of keys; all little-endian.
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(arrays), 3)
    head += _key("general.architecture", "controlvector")
    head += _key("controlvector.model_hint", model_hint)
    head += _key("controlvector.layer_count", len(arrays))
    data = b""
    for name, array in arrays.items():
        data = _padded(data)
        # Axes, length, type, and the offset from the start of the (aligned) data.
        head += _text(name) + struct.pack("<IQIQ", 1, array.size, _F32, len(data))
        data += array.tobytes()
    Path(path).write_bytes(_padded(head) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _key(name: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", _STRING) + _text(value)
    return _text(name) + struct.pack("<II", _UINT32, value)
