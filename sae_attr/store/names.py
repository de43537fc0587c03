"""Names for contents: the digest of a value, the fingerprint of a file or folder."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sae_attr.store.files import PathLike, is_local

_WHOLE = 64 << 20  # files up to this size are hashed whole
_SAMPLES, _SAMPLE = 64, 1 << 20  # larger ones by this many pieces of this size


def digest(obj: Any) -> str:
    """Names a value, alike in every process and on every machine: 32 hex digits of a
    sha256.

    Dicts and sets do not depend on order, a list equals a tuple, floats count by
    `repr`, an array by dtype, shape and bytes, a dataclass by its class name and
    fields.

    Raises:
      TypeError: a value that has no stable contents (a function, an open file); the
        message says where it lies.
    """
    return hashlib.sha256(_canonical(obj, "value")).hexdigest()[:32]


def _canonical(obj: Any, where: str) -> bytes:
    """Returns bytes that determine `obj`: a type tag and the hashes of the parts, so that
    no two structures have the same bytes.
    """
    if isinstance(obj, enum.Enum):
        return _canonical(obj.value, where)
    # A config read from JSON has Python's numbers, one that was computed numpy's.
    if isinstance(obj, np.generic) and obj.dtype.kind in "biufSU":
        obj = obj.item()
    if obj is None or isinstance(obj, bool | int | float | str):
        return f"{type(obj).__name__}:{obj!r}".encode()
    if isinstance(obj, bytes):
        return b"bytes:" + obj
    if isinstance(obj, np.dtype | os.PathLike):
        return f"str:{str(obj)!r}".encode()
    if isinstance(obj, Mapping):
        items = []
        for key, value in obj.items():
            items.append(_hash(key, where) + _hash(value, f"{where}[{key!r}]"))
        # Sorted by hash: keys of several types have no order of their own.
        return _joined("dict", sorted(items))
    if isinstance(obj, Sequence):
        return _joined("list", [_hash(v, f"{where}[{i}]") for i, v in enumerate(obj)])
    if isinstance(obj, set | frozenset):
        return _joined("set", sorted(_hash(v, where) for v in obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)}
        return _joined(type(obj).__name__, [_hash(fields, where)])
    return _canonical_array(obj, where)


def _canonical_array(obj: Any, where: str) -> bytes:
    """Returns the same for what numpy can read without guessing."""
    array = np.asarray(obj) if hasattr(obj, "__array__") else None
    if array is None or array.dtype.hasobject:
        raise TypeError(
            f"digest: {where} is a {type(obj).__name__}, which has no stable contents; "
            "pass plain values, dataclasses or arrays, or the digest or fingerprint of "
            "what it stands for"
        )
    return (
        f"array:{array.dtype.name}:{array.shape}:".encode()
        + hashlib.sha256(array.tobytes()).digest()
    )


def _hash(obj: Any, where: str) -> bytes:
    return hashlib.sha256(_canonical(obj, where)).digest()


def _joined(tag: str, parts: Sequence[bytes]) -> bytes:
    return f"{tag}:{len(parts)}:".encode() + b"".join(parts)


def fingerprint(path: PathLike) -> str:
    """Names the contents of a file or folder, wherever it lies: 32 hex digits.

    A file up to 64 MB counts by its whole sha256; a larger one by its size and 64
    pieces of 1 MB, evenly spaced from its first byte to its last, so that a model of
    many GB is named in a second (a change between pieces is missed). A folder counts by
    relative names and contents; names that start with a dot are left out.

    Raises:
      FileNotFoundError: nothing lies at `path`.
      ValueError: a device, pipe or socket, which may never end.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"fingerprint: nothing lies at {os.fspath(path)}")
    if not path.is_dir():
        return file_hash(path)
    contents = []
    for file in list_files(path):
        contents.append((os.fspath(file.relative_to(path)), file_hash(file)))
    return digest(contents)


def list_files(folder: epath.Path, *, hidden: bool = False) -> list[epath.Path]:
    """Returns the files below a folder in a fixed order.

    Args:
      hidden: those whose names start with a dot too.
    """
    shown = (p for p in folder.iterdir() if hidden or not p.name.startswith("."))
    files: list[epath.Path] = []
    for path in sorted(shown, key=lambda p: p.name):
        files += list_files(path, hidden=hidden) if path.is_dir() else [path]
    return files


def whole_hash(path: epath.Path) -> str:
    """Hashes every byte of a file: 32 hex digits."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()[:32]


def file_hash(path: epath.Path) -> str:
    """Hashes one file, by samples if it is large: 32 hex digits."""
    if is_local(path) and not os.path.isfile(path):
        raise ValueError(
            f"{os.fspath(path)} is a device, pipe or socket where a regular file is "
            "expected"
        )
    size = path.stat().length
    if size <= _WHOLE:
        return whole_hash(path)
    state = hashlib.sha256(f"{size}:".encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek((size - _SAMPLE) * i // (_SAMPLES - 1))
            state.update(file.read(_SAMPLE))
    return state.hexdigest()[:32]
