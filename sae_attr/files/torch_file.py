"""torch files read without torch, and without running anything that they contain: the
pickle inside may name tensors, storages and ordered dicts, and every other name is
refused.
"""

from __future__ import annotations

import io
import math
import operator
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from sae_attr.files.mapped import corrupt, mapped_bytes
from sae_attr.files.text import check_pointer
from sae_attr.files.zip_members import (
    RefusedFile,
    check_growth,
    member_bytes,
    open_zip,
    unpacked,
)

TORCH_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


TORCH_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


# Entries in all containers of a file, counted as often as they are named.
_MAX_ENTRIES = 1_000_000
_MAX_TUPLE = 10_000  # entries of a tuple and all within it
_MAX_PICKLE = 1 << 24  # bytes


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save`, with numpy arrays (mapped) for tensors; torch is not
    needed and nothing is executed.

    dtypes come back as strings such as "torch.float32", devices as their arguments,
    sizes as tuples.

    Raises:
      ValueError: a legacy (non-zip) pickle, a truncated file, a tensor that reaches
        outside its storage, or a pickle that names anything but tensors: such a file
        could run code.
    """
    path = Path(path)
    check_pointer(path)
    raw = mapped_bytes(path)
    if raw[:4].tobytes() != b"PK\x03\x04":
        raise ValueError(
            f"{path} is not a zip file: a legacy pickle of torch < 1.6, or truncated "
            "or corrupt. Load it where you "
            "trust it and save it again with a current torch.save, or as safetensors"
        )
    with open_zip(path) as archive:
        try:
            return _load_torch(path, archive, raw)
        except RefusedFile as error:
            raise ValueError(str(error)) from None
        # A damaged pickle raises nearly anything: KeyError, IndexError, TypeError, ...
        except Exception as error:
            raise corrupt(path, error) from error


def _load_torch(path: Path, archive: zipfile.ZipFile, raw: np.ndarray) -> Any:
    infos = {info.filename: info for info in archive.infolist()}
    check_growth(path, list(infos.values()))
    pickles = [name for name in infos if f"/{name}".endswith("/data.pkl")]
    roots = [name.removesuffix("data.pkl") for name in pickles]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in infos:
        raise RefusedFile(
            f"{path} is a zip file but no state_dict (it lacks a single data.pkl, or "
            "is TorchScript); save one"
        )
    root = roots[0]
    # Storages are plain bytes in the order of the machine that wrote them.
    order = infos.get(f"{root}byteorder")
    if order is not None and unpacked(path, archive, order) != b"little":
        raise RefusedFile(
            f"{path} was saved on a big-endian machine; save it again on a "
            "little-endian one"
        )
    if infos[f"{root}data.pkl"].file_size > _MAX_PICKLE:
        raise RefusedFile(
            f"{path} has a pickle of {infos[f'{root}data.pkl'].file_size:,} bytes; "
            "save the state_dict alone"
        )
    data = unpacked(path, archive, infos[f"{root}data.pkl"])
    _check_opcodes(data)

    def storage(storage_type: str, key: str, numel: int) -> np.ndarray:
        raw_bytes = member_bytes(path, archive, infos[f"{root}data/{key}"], raw)
        dtype = np.dtype(TORCH_STORAGES[storage_type])
        if not 0 <= numel * dtype.itemsize <= raw_bytes.size:
            raise ValueError(
                f"storage {key} should hold {numel} {dtype} but has {raw_bytes.size} "
                "bytes"
            )
        return raw_bytes[: numel * dtype.itemsize].view(dtype)

    content = _TensorUnpickler(data, path, storage).load()
    _check_entries(path, content)
    return content


def _check_entries(path: Path, content: Any) -> None:
    """Refuses containers that hold one object many times over, or themselves: a few
    bytes that never end.
    """
    # With a list, not by recursion: nesting is as deep as the file likes.
    left, count = [content], 0
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
        count += 1
        if count + len(left) > _MAX_ENTRIES:
            raise RefusedFile(
                f"{path} holds more than {_MAX_ENTRIES:,} entries in its containers; "
                "save the state_dict alone"
            )


def _check_opcodes(data: bytes) -> None:
    """Reads the pickle's opcodes without running them: lengths must fit the data and
    memo indices stay small.

    The C unpickler would otherwise allocate whatever a damaged length or memo index
    asks for.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise ValueError(f"memo index {argument} in a pickle of {len(data)} bytes")


class _TensorUnpickler(pickle._Unpickler):  # type: ignore[reportPrivateUsage]
    """Unpickler that knows tensors and ordered dicts.

    What `find_class` hands out is a string, an immutable built-in type or a closure of
    this load alone, so a BUILD opcode finds nothing of the process to change. It is
    Python's own in Python, since tuples have to be weighed while they are made: one
    that holds another twice, and so on, takes for ever to hash as the key of a dict.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        pickle._Unpickler.dispatch
    )  # type: ignore[reportPrivateUsage, reportAttributeAccessIssue]

    def __init__(
        self, data: bytes, path: Path, storage: Callable[[str, str, int], np.ndarray]
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._path, self._storage = path, storage
        # By id, which is unique only while the tuple is alive: so it is held here.
        self._weights: dict[int, tuple[tuple[Any, ...], int]] = {}

    def _weigh(self) -> None:
        whole = self.stack[-1]  # type: ignore[attr-defined]
        weight = 1 + sum(self._weights.get(id(part), (part, 1))[1] for part in whole)
        if weight > _MAX_TUPLE:
            raise RefusedFile(
                f"{self._path} has more than {_MAX_TUPLE:,} entries in a tuple; save "
                "the state_dict alone"
            )
        self._weights[id(whole)] = (whole, weight)

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands in for a class that tensors need; raises for all others."""
        if module in ("torch", "torch.storage") and name in TORCH_STORAGES:
            return name
        if module == "torch" and name in TORCH_DTYPES:
            return f"torch.{name}"
        allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _rebuild_tensor(
                *args[:4]
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): lambda sizes: tuple(map(operator.index, sizes)),
            ("torch", "device"): lambda kind, *number: (
                str(kind),
                *map(operator.index, number),
            ),
        }
        if (module, name) not in allowed:
            raise RefusedFile(
                f"{self._path} wants to run {module}.{name}; refused. A file of "
                "weights needs only tensors: "
                "save the state_dict alone, or convert it to safetensors where you "
                "trust it"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Returns the numbers that a persistent id names."""
        kind, storage_type, key, _location, numel = pid
        if kind != "storage" or not isinstance(numel, int):
            raise ValueError(f"unknown persistent id {pid!r}")
        return self._storage(storage_type, str(key), numel)


def _weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def weighed(self: _TensorUnpickler) -> None:
        load(self)
        self._weigh()

    return weighed


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _TensorUnpickler.dispatch[_opcode[0]] = _weighed(
        _TensorUnpickler.dispatch[_opcode[0]]
    )


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """Returns a strided view of a storage, which must hold every element that the
    strides can reach.
    """
    # `as_strided` checks nothing: a hostile stride would read foreign memory.
    numbers = (offset, *size, *stride)
    natural = all(isinstance(n, int) and n >= 0 for n in numbers)
    if len(size) != len(stride) or not natural:
        raise ValueError(f"tensor of size {size}, stride {stride}, offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # An expanded tensor (stride 0) is refused as well: a small file could ask for any
    # amount of memory.
    if math.prod(size) > storage.size or (math.prod(size) and last >= storage.size):
        raise ValueError(
            f"tensor of size {size}, stride {stride}, offset {offset} leaves its "
            f"{storage.size} elements"
        )
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, strides, subok=True, writeable=False
    )
