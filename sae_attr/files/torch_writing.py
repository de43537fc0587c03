"""What `torch.save` writes, without torch."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Any

import numpy as np

from sae_attr.files.torch_file import TORCH_DTYPES, TORCH_STORAGES


def write_torch(path: str | os.PathLike[str], value: Any) -> None:
    """Writes what `torch.save(value, path)` would, for dicts, lists, text, numbers, None
    and arrays as tensors; without torch.

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
    """Returns the pickle, protocol 2, of a value; tensors are named by their place in `arrays`,
    which grows.
    """
    if isinstance(value, dict):
        items = [part for item in value.items() for part in item]
        return b"}(" + b"".join(_opcodes(part, arrays) for part in items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(part, arrays) for part in value) + b"e"
    if isinstance(value, str):
        return _pickled_text(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return _pickled_int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return _pickled_array(np.asarray(value), arrays)


def _pickled_array(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """Returns a call of torch's `_rebuild_tensor_v2` on a storage beside the pickle."""
    # By dtype: only what the reader of this package takes is written.
    dtypes = {np.dtype(dtype): name for name, dtype in TORCH_STORAGES.items()}
    if array.dtype not in dtypes:
        raise TypeError(
            f"a {array.dtype.name} array has no torch storage; convert it to one of "
            f"{[*TORCH_DTYPES]}"
        )
    arrays.append(array)
    storage = [
        _pickled_text("storage"),
        f"ctorch\n{dtypes[array.dtype]}\n".encode(),
        _pickled_text(str(len(arrays) - 1)),
        _pickled_text("cpu"),
        _pickled_int(array.size),
    ]
    strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + b"".join(storage) + b"tQ",
            _pickled_int(0),
            _pickled_sizes(array.shape),
            _pickled_sizes(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    )


def _pickled_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _pickled_sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_pickled_int, values)) + b"t"


def _pickled_int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    # torch's safe reader knows no textual integers.
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
