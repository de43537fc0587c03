"""The manifest of an entry, and the check of its files against it; damage of any kind
counts as absence.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from etils import epath

from sae_attr.store.files import Meta, array_file, to_json
from sae_attr.store.names import digest, file_hash, whole_hash

MANIFEST, META = "manifest.json", "meta.json"
_ARRAYS, _FILES, _CHECKSUM = "arrays", "files", "checksum"
# Errors of names that are not there, of files in the place of folders, and of unreadable
# blocks. Any other (no permission, a network that is down) is no damage: the entry may
# be whole.
_DAMAGE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)

T = TypeVar("T")


class Damaged(Exception):
    """An entry whose files are not those that its manifest states."""


@dataclass(frozen=True)
class StatedArray:
    """States where an array lies in its entry, and its type."""

    file: str
    dtype: str


@dataclass(frozen=True)
class StatedFile:
    """Size and sha256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest of the right shape.

    Args:
      arrays: by name.
      files: every file but the manifest, by its path inside the entry.
      checked: it states its own checksum; older ones do not, and name large files by
        samples of their bytes.
    """

    arrays: Mapping[str, StatedArray]
    files: Mapping[str, StatedFile]
    checked: bool

    def check_sizes(self, folder: epath.Path) -> None:
        """Raises Damaged where a file is missing or has another size."""
        for name, entry in self.files.items():
            size = _readable(folder / name, _file_size)
            if size != entry.size:
                raise Damaged(
                    f"{os.fspath(folder / name)} has {size} bytes, its manifest states "
                    f"{entry.size}"
                )

    def check_contents(self, folder: epath.Path) -> None:
        """Raises Damaged where a file has other bytes."""
        hashed = whole_hash if self.checked else file_hash
        for name, entry in self.files.items():
            if _readable(folder / name, hashed) != entry.sha256:
                raise Damaged(
                    f"{os.fspath(folder / name)} has other contents than its manifest "
                    "states"
                )


def manifest_text(
    arrays: Mapping[str, Mapping[str, Any]], contents: Mapping[str, Mapping[str, Any]]
) -> str:
    """Formats the manifest of an entry.

    Args:
      arrays: name -> file, dtype.
      contents: path -> bytes, sha256.
    """
    body = {_ARRAYS: dict(arrays), _FILES: dict(contents)}
    return to_json({**body, _CHECKSUM: digest(body)})


def read_manifest(folder: epath.Path, key: str) -> Manifest:
    """Reads the manifest of an entry and checks the sizes of its files.

    Raises:
      KeyError: no such entry.
      Damaged: no manifest, one of another shape, or files of other sizes.
    """
    if not (folder / MANIFEST).exists():
        if os.path.lexists(folder) or folder.exists():
            raise Damaged(f"{os.fspath(folder)} has no {MANIFEST}: it was cut short")
        raise KeyError(f"no entry {key} in {os.fspath(folder.parent)}")
    manifest = _parsed(read_object(folder / MANIFEST), os.fspath(folder / MANIFEST))
    manifest.check_sizes(folder)
    return manifest


def read_object(path: epath.Path) -> Meta:
    """Reads a JSON object of an entry.

    Raises:
      Damaged: the file is missing, or holds anything else.
    """
    try:
        value = json.loads(_readable(path, lambda path: path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{os.fspath(path)} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damaged(
            f"{os.fspath(path)} holds a {type(value).__name__}, not an object"
        )
    return value


def _parsed(raw: Meta, where: str) -> Manifest:
    """Parses a manifest; raises Damaged where the object is anything else."""
    body = {_ARRAYS: raw.get(_ARRAYS), _FILES: raw.get(_FILES)}
    checked = _CHECKSUM in raw
    if raw.keys() - {_CHECKSUM} != body.keys() or (
        checked and raw[_CHECKSUM] != digest(body)
    ):
        raise Damaged(f"{where} is not as it was written")
    arrays = _table(body[_ARRAYS], _array_of, where)
    contents = _table(body[_FILES], _file_of, where)
    # A manifest from elsewhere must not lead to files outside its entry, nor let an
    # array stand for another.
    misnamed = [name for name in arrays if arrays[name].file != array_file(name)]
    unstated = {META, *(array.file for array in arrays.values())} - contents.keys()
    outside = [name for name in contents if not _inside(name)]
    if unstated or outside or misnamed:
        raise Damaged(
            f"{where} does not state its own files: "
            f"{', '.join([*sorted(unstated), *outside, *misnamed])}"
        )
    return Manifest(arrays, contents, checked)


def _table(raw: Any, entry_of: Callable[[Any], T | None], where: str) -> dict[str, T]:
    if not isinstance(raw, dict):
        raise Damaged(f"{where} has a {type(raw).__name__} where it should list names")
    entries = {name: entry_of(value) for name, value in raw.items()}
    table = {name: entry for name, entry in entries.items() if entry is not None}
    if len(table) < len(entries):
        raise Damaged(
            f"{where} says something else than a manifest of "
            f"{min(entries.keys() - table.keys())!r}"
        )
    return table


def _array_of(raw: Any) -> StatedArray | None:
    if not isinstance(raw, dict):
        return None
    file, dtype = raw.get("file"), raw.get("dtype")
    if isinstance(file, str) and isinstance(dtype, str):
        return StatedArray(file, dtype)
    return None


def _file_of(raw: Any) -> StatedFile | None:
    if not isinstance(raw, dict):
        return None
    size, sha256 = raw.get("bytes"), raw.get("sha256")
    if type(size) is int and isinstance(sha256, str):
        return StatedFile(size, sha256)
    return None


def _inside(name: str) -> bool:
    """Returns True if a path of the manifest leads to a file inside the entry."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and ".." not in parts
        and "\0" not in name
    )


def _file_size(path: epath.Path) -> int | None:
    return path.stat().length if path.is_file() else None


def _readable(path: epath.Path, reader: Callable[[epath.Path], T]) -> T:
    """Applies `reader` to a file; raises Damaged where the file is not there or its blocks
    cannot be read.
    """
    try:
        return reader(path)
    except OSError as error:
        if error.errno in _DAMAGE:
            raise Damaged(f"{os.fspath(path)} cannot be read: {error}") from error
        raise
