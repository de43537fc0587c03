"""Tensors in safetensors, npz and torch files as memory-mapped numpy arrays: nothing is
read until it is sliced.

torch files are read without torch and without running anything that they contain: the
pickle inside may name tensors, storages and ordered dicts, and every other name is
refused.
"""

from __future__ import annotations

import io
import json
import math
import operator
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import safetensors

from sae_attr.files.text import check_pointer

_SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_TORCH_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_TORCH_DTYPES = (
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
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_MAX_DEPTH = 8  # of nested dicts in a torch file
_MAX_ENTRIES = (
    1_000_000  # in all containers of a torch file, counted as often as they are named
)
_MAX_TUPLE, _MAX_PICKLE = (
    10_000,
    1 << 24,
)  # entries of a tuple and all within it; bytes of a pickle
_TEXT_KINDS = "US"  # of numpy: words beside the arrays, which are left out
_MAX_GROWTH, _LARGE = (
    64,
    1 << 28,
)  # times that a zip member may grow when it is unpacked, if it exceeds so many bytes


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a file by name, mapped and not read; the extension says how.

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
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _flatten(read_torch(path), path)
    known = " ".join((".safetensors", ".npz", *_TORCH_SUFFIXES))
    raise ValueError(
        f"{path} ends in {path.suffix!r}, which is not a tensor file; known: {known}"
    )


@dataclass(frozen=True)
class RowSource:
    """Rows of a matrix `[n, m]` that may be larger than memory, as float32 in C order,
    whatever the layout on disk.

    Args:
      matrix: `[n, m]` array, or a (possibly transposed) view of a memory map; any real
        dtype.
      scale_n: `[n]` factor of every row, or None.
      unit: rows are divided by their norm, after the scale; a row of zeros stays zero.

    Raises:
      ValueError: the matrix is not 2-D, or the scale is not one number per row.
    """

    matrix: np.ndarray
    scale_n: np.ndarray | None = None
    unit: bool = False

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise ValueError(
                "a RowSource needs a matrix [n, m]; this array has shape "
                f"{self.matrix.shape}"
            )
        if self.scale_n is not None and np.shape(self.scale_n) != self.matrix.shape[:1]:
            raise ValueError(
                f"scale_n has shape {np.shape(self.scale_n)} but the matrix has "
                f"{len(self)} rows"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers as stored; `rows` always gives float32."""
        return self.matrix.dtype

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, i: int, j: int) -> np.ndarray:
        """Rows i..j as a float32 copy `[j - i, m]` in C order.

        Raises:
          IndexError: not `0 <= i <= j <= n`.
        """
        if not 0 <= i <= j <= len(self):
            raise IndexError(
                f"rows({i}, {j}) of a matrix with {len(self)} rows; give 0 <= i <= j "
                f"<= {len(self)}"
            )
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # NaN and infinity pass through; who needs none looks for them
            rows = np.array(self.matrix[i:j], dtype=np.float32, order="C", subok=False)
            if self.scale_n is not None:
                rows *= np.asarray(self.scale_n[i:j], np.float32)[:, None]
            return rows / _nonzero(row_norms(rows))[:, None] if self.unit else rows


def is_float(dtype: np.dtype) -> bool:
    """True for floating-point types, those of ml_dtypes included."""
    return np.issubdtype(dtype, np.floating) or dtype.name.startswith(
        ("bfloat16", "float8")
    )


def row_norms(rows_nm: np.ndarray) -> np.ndarray:
    """Euclidean norm of each row, `[n]` float32, summed in float64."""
    return np.sqrt(np.einsum("nm,nm->n", rows_nm, rows_nm, dtype=np.float64)).astype(
        np.float32
    )


def _nonzero(norms_n: np.ndarray) -> np.ndarray:
    return np.where(norms_n > 0, norms_n, np.float32(1.0))


def _map(path: Path) -> np.ndarray:
    """The whole file as mapped bytes."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    return np.memmap(path, dtype=np.uint8, mode="r")


def _corrupt(path: Path, error: object) -> ValueError:
    return ValueError(
        f"{path} is truncated or corrupt ({error}); fetch it again and compare its "
        "size or checksum"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # The library's own checks (sizes, overlaps, offsets against the file's length) come
    # first; the map can trust them.
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _corrupt(path, error) from error
    raw = _map(path)
    size = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    return {
        name: _safetensor(path, raw, 8 + size, name, entry)
        for name, entry in header.items()
    }


def _safetensor(
    path: Path, raw: np.ndarray, base: int, name: str, entry: dict[str, Any]
) -> np.ndarray:
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise ValueError(
            f"{path}: tensor {name!r} has dtype {entry['dtype']}; save it as one of "
            f"{known}"
        )
    start, end = entry["data_offsets"]
    return (
        raw[base + start : base + end]
        .view(_SAFETENSORS_DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        struct.error,
        NotImplementedError,
    ) as error:
        raise _corrupt(path, error) from error


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw: np.ndarray
) -> np.ndarray:
    """Bytes of a zip member: mapped where stored as they are, loaded where compressed."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return np.frombuffer(_unpacked(path, archive, info), np.uint8)
    # The local header's extra field may differ from that of the directory at the end:
    # torch pads there for alignment.
    header = raw[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise _corrupt(path, f"no zip member at byte {info.header_offset}")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > raw.size:
        raise _corrupt(path, f"member {info.filename} ends after the file")
    return raw[start : start + info.file_size]


def _check_growth(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raises _Refused where compressed members together grow beyond all weights; each
    of them may be small.
    """
    packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
    for info in packed:
        _check_member(path, info)
    size = sum(info.file_size for info in packed)
    small = sum(info.compress_size for info in packed)
    if size > max(_LARGE, _MAX_GROWTH * small):
        raise _Refused(
            f"{path} unpacks from {small:,} to {size:,} bytes, which weights do not; "
            "save it without compression where you "
            "trust it"
        )


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Raises _Refused where a member grows without measure: real weights hardly shrink,
    so what grows much is no weights.
    """
    if info.file_size > max(_LARGE, _MAX_GROWTH * info.compress_size):
        raise _Refused(
            f"{path}: {info.filename} unpacks from {info.compress_size:,} to "
            f"{info.file_size:,} bytes, which weights do not; "
            "save it without compression where you trust it"
        )


def _unpacked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member as it was before it was compressed."""
    _check_member(path, info)
    return archive.read(info)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with _open_zip(path) as archive:
        raw = _map(path)
        try:
            infos = [
                info for info in archive.infolist() if info.filename.endswith(".npy")
            ]
            _check_growth(path, infos)
            arrays = {
                info.filename[:-4]: _npy(path, info, _member(path, archive, info, raw))
                for info in infos
            }
            return {
                name: array
                for name, array in arrays.items()
                if array.dtype.kind not in _TEXT_KINDS
            }
        except _Refused as error:
            raise ValueError(str(error)) from None
        except ValueError:
            raise
        except Exception as error:  # zlib.error, EOFError, BadZipFile, RuntimeError (encrypted): the file is damaged
            raise _corrupt(path, error) from error


def _npy(path: Path, info: zipfile.ZipInfo, raw: np.ndarray) -> np.ndarray:
    stream = io.BytesIO(raw[: 1 << 16].tobytes())
    try:
        read_header = (
            np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(stream) == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream)
    except (ValueError, SyntaxError, EOFError) as error:
        raise _corrupt(path, f"{info.filename}: {error}") from error
    if dtype.hasobject or dtype.kind not in f"biuf{_TEXT_KINDS}":
        raise ValueError(
            f"{path}: {info.filename} has dtype {dtype}, not plain numbers; save it as "
            "float32"
        )
    end = stream.tell() + math.prod(shape) * dtype.itemsize
    if end > raw.size:
        raise _corrupt(
            path, f"{info.filename} has shape {shape} but holds {raw.size} bytes"
        )
    return (
        raw[stream.tell() : end]
        .view(dtype)
        .reshape(shape, order="F" if fortran else "C")
    )


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, with numpy arrays (mapped) for tensors; torch is not
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
    raw = _map(path)
    if raw[:4].tobytes() != b"PK\x03\x04":
        raise ValueError(
            f"{path} is not a zip file: a legacy pickle of torch < 1.6, or truncated "
            "or corrupt. Load it where you "
            "trust it and save it again with a current torch.save, or as safetensors"
        )
    with _open_zip(path) as archive:
        try:
            return _load_torch(path, archive, raw)
        except _Refused as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # a damaged pickle raises nearly anything: KeyError, IndexError, TypeError, ...
            raise _corrupt(path, error) from error


class _Refused(Exception):
    """The file is readable but asks for something that is not given."""


def _load_torch(path: Path, archive: zipfile.ZipFile, raw: np.ndarray) -> Any:
    infos = {info.filename: info for info in archive.infolist()}
    _check_growth(path, list(infos.values()))
    roots = [
        name[: -len("data.pkl")]
        for name in infos
        if name == "data.pkl" or name.endswith("/data.pkl")
    ]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in infos:
        raise _Refused(
            f"{path} is a zip file but no state_dict (it lacks a single data.pkl, or "
            "is TorchScript); save one"
        )
    root = roots[0]
    if (
        f"{root}byteorder" in infos
        and _unpacked(path, archive, infos[f"{root}byteorder"]) != b"little"
    ):
        raise _Refused(
            f"{path} was saved on a big-endian machine; save it again on a "
            "little-endian one"
        )
    if infos[f"{root}data.pkl"].file_size > _MAX_PICKLE:
        raise _Refused(
            f"{path} has a pickle of {infos[f'{root}data.pkl'].file_size:,} bytes; "
            "save the state_dict alone"
        )
    data = _unpacked(path, archive, infos[f"{root}data.pkl"])
    _check_opcodes(data)

    def storage(storage_type: str, key: str, numel: int) -> np.ndarray:
        raw_bytes = _member(path, archive, infos[f"{root}data/{key}"], raw)
        dtype = np.dtype(_TORCH_STORAGES[storage_type])
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
    """Containers within containers may be one object many times over, or themselves: a
    few bytes that never end.
    """
    left, seen = [content], 0
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
        seen += 1
        if seen + len(left) > _MAX_ENTRIES:
            raise _Refused(
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
        self._weights: dict[
            int, tuple[tuple[Any, ...], int]
        ] = {}  # id -> the tuple, kept alive, and what it holds

    def _weigh(self) -> None:
        made = self.stack[-1]  # type: ignore[attr-defined]
        weight = 1 + sum(self._weights.get(id(part), (part, 1))[1] for part in made)
        if weight > _MAX_TUPLE:
            raise _Refused(
                f"{self._path} has more than {_MAX_TUPLE:,} entries in a tuple; save "
                "the state_dict alone"
            )
        self._weights[id(made)] = (made, weight)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _TORCH_STORAGES:
            return name
        if module == "torch" and name in _TORCH_DTYPES:
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
            raise _Refused(
                f"{self._path} wants to run {module}.{name}; refused. A file of "
                "weights needs only tensors: "
                "save the state_dict alone, or convert it to safetensors where you "
                "trust it"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
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
    """A strided view of a storage, which must hold every element that the strides can
    reach.
    """
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(
        not isinstance(n, int) or n < 0 for n in numbers
    ):
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


def _flatten(
    value: Any, path: Path, prefix: str = "", depth: int = 0
) -> dict[str, np.ndarray]:
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        what = (
            f"{type(value).__name__} at {prefix or 'its top'}"
            if depth <= _MAX_DEPTH
            else "dicts nested too deeply"
        )
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
        name
        for name, dtype in _TORCH_STORAGES.items()
        if np.dtype(dtype) == value.dtype
    ]
    if not found:
        raise TypeError(
            f"a {value.dtype.name} array has no torch storage; convert it to one of "
            f"{[*_TORCH_DTYPES]}"
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
