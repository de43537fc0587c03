"""torch files written without torch, for miniatures of formats that store them."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage",
}  # fmt: skip


def save_torch(path: Path, value: Any) -> Path:
    """What `torch.save(value, path)` writes, for dicts, lists, text, numbers, None and arrays as tensors."""
    arrays: list[np.ndarray] = []
    body = b"\x80\x02" + _opcodes(value, arrays) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(f"I{v}\n".encode() for v in values) + b"t"


def _opcodes(value: Any, arrays: list[np.ndarray]) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(k, arrays) + _opcodes(v, arrays) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(v, arrays) for v in value) + b"e"
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return f"I{value}\n".encode()
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    value = np.asarray(value)
    arrays.append(value)
    pid = b"(" + _text("storage") + f"ctorch\n{STORAGES[value.dtype.name]}\n".encode() + _text(str(len(arrays) - 1))
    pid += _text("cpu") + f"I{value.size}\ntQ".encode()
    strides = tuple(int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim))
    tail = b"I0\n" + _tuple(value.shape) + _tuple(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + tail
