"""What `torch.save` writes, without torch."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Any

import numpy as np

from sae_attr.files.torch_file import TORCH_DTYPES, TORCH_STORAGES


def write_torch(path: str | os.PathLike[str], value: Any) -> None:
    """What `torch.save(value, path)` writes, for dicts, lists, text, numbers, None and
    arrays as tensors; without torch.

    Raises:
      TypeError: anything else, or an array of a dtype that has no torch storage here.
    """
    arrays: list[np.ndarray] = []
    body = b"\x80\x02" + _opcodes(value, arrays) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(
                f"archive/data/{key}", np.ascontiguousarray(array).tobytes()
            )
        archive.writestr("archive/version", "3\n")


def _opcodes(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Pickle, protocol 2, of a value; tensors are named by their place in `arrays`,
    which grows.
    """
    if isinstance(value, dict):
        return (
            b"}("
            + b"".join(
                _opcodes(k, arrays) + _opcodes(v, arrays) for k, v in value.items()
            )
            + b"u"
        )
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(v, arrays) for v in value) + b"e"
    if isinstance(value, str):
        return _pickled_text(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return _pickled_int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    value = np.asarray(value)
    found = [
        name for name, dtype in TORCH_STORAGES.items() if np.dtype(dtype) == value.dtype
    ]
    if not found:
        raise TypeError(
            f"a {value.dtype.name} array has no torch storage; convert it to one of "
            f"{[*TORCH_DTYPES]}"
        )
    arrays.append(value)
    storage = _pickled_text("storage") + f"ctorch\n{found[0]}\n".encode()
    storage = (
        b"("
        + storage
        + _pickled_text(str(len(arrays) - 1))
        + _pickled_text("cpu")
        + _pickled_int(value.size)
        + b"tQ"
    )
    strides = tuple(int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim))
    layout = _pickled_int(0) + _pickled_sizes(value.shape) + _pickled_sizes(strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + layout
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def _pickled_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _pickled_sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_pickled_int, values)) + b"t"


def _pickled_int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(
        9, "little", signed=True
    )  # torch's safe reader knows no textual integers
