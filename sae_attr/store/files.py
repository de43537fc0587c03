"""Single files: written whole or not at all, arrays of every dtype as .npy, JSON of
numpy values.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import urllib.parse
import uuid
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from etils import epath

from sae_attr.store.fence import check_held

Arrays: TypeAlias = dict[str, np.ndarray]
Meta: TypeAlias = dict[str, Any]
PathLike: TypeAlias = str | os.PathLike[str]


def is_local(path: epath.Path) -> bool:
    """Returns True if the path is not a bucket's; an epath is never a `pathlib.Path`, so
    that its type does not show it.
    """
    return "://" not in os.fspath(path)


def sync(path: PathLike) -> None:
    """Waits until the disk holds a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader, or a run after a kill, sees the old or the new
    content and never a part.

    Raises LockLost in a workdir that another run has taken over from this one.
    """
    check_held(path)
    write_whole(path, content)


def write_whole(path: PathLike, content: str | bytes) -> None:
    """Writes like `write_atomic`, without checking who holds the folder."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        path.write_bytes(data)  # a bucket shows an object only when it is whole
        return
    # Beside the file: only within one file system is a rename one step.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_bytes(data)
        # Contents before the name: after a power cut the new name could else stand for
        # an empty file. The folder's own list is synced last, so that the name stays.
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: PathLike) -> None:
    """Removes a file, a link or a folder with all in it, where there is one."""
    path = epath.Path(path)
    if is_local(path) and (os.path.islink(path) or os.path.isfile(path)):
        os.unlink(path)
    else:
        path.rmtree(missing_ok=True)


def to_json(obj: Any) -> str:
    """Returns JSON in which numpy numbers and arrays are numbers and lists, paths are
    text, and frozen sets sorted lists.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, frozenset):
            return sorted(value)
        raise TypeError(
            f"meta holds a {type(value).__name__}, which JSON cannot say; pass plain "
            "values, or use arrays"
        )

    return json.dumps(obj, indent=1, ensure_ascii=False, default=plain)


def quote(name: str) -> str:
    """Returns a file name for any text; never hidden, never a path."""
    return urllib.parse.quote(name, safe=" ,=+@").replace(".", "%2E")


def array_file(name: str) -> str:
    """Returns the file name of an entry's array."""
    return f"{quote(name)}.npy"


def plain_array(array: Any) -> np.ndarray:
    """Returns the array in a dtype that .npy knows: bfloat16 and its kin as unsigned
    integers of the same width.
    """
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise TypeError(
            "an array of Python objects cannot be stored; put its values in meta, or "
            "convert it to numbers"
        )
    if hasattr(ml_dtypes, array.dtype.name):
        return array.view(f"u{array.dtype.itemsize}")
    return array


def typed_array(array: np.ndarray, dtype: str) -> np.ndarray:
    """Undoes `plain_array`."""
    if hasattr(ml_dtypes, dtype):
        return array.view(getattr(ml_dtypes, dtype))
    return array


def write_arrays(
    folder: epath.Path, arrays: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Writes one .npy per array; returns name -> file, dtype."""
    index = {}
    for name, array in arrays.items():
        file = array_file(name)
        with (folder / file).open("wb") as handle:
            np.save(handle, plain_array(array), allow_pickle=False)
        index[name] = {"file": file, "dtype": np.asarray(array).dtype.name}
    return index


def read_array(path: epath.Path, dtype: str) -> np.ndarray:
    """Opens an array memory-mapped where the disk is local; reads it whole from a bucket."""
    if is_local(path):
        return typed_array(np.load(path, mmap_mode="r", allow_pickle=False), dtype)
    return typed_array(
        np.load(io.BytesIO(path.read_bytes()), allow_pickle=False), dtype
    )


def json_row(line: bytes) -> Meta | None:
    """Parses the JSON object of a line; None where it is cut short or anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a row of brackets nests without end
        return None
    return row if isinstance(row, dict) else None
