"""Entries of a store, published whole or not at all, and the progress of one that is being computed.

An entry is a folder `<root>/<key>/` of `<array>.npy` files, `meta.json` and `manifest.json`; the manifest states size
and checksum of every other file and is written last. In a bucket a folder cannot be renamed in one step, and there the
manifest alone tells that an entry is complete.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import urllib.parse
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sae_attr.store import files
from sae_attr.store.files import (
    Arrays,
    Meta,
    PathLike,
    json_row,
    plain_array,
    quote,
    read_array,
    sync,
    to_json,
    typed_array,
    write_arrays,
    write_atomic,
)
from sae_attr.store.names import file_hash, list_files
from sae_attr.store.process import alive, owner_tag

MANIFEST, META, PROGRESS = "manifest.json", "meta.json", "progress"


class Damaged(Exception):
    """An entry whose files are not those that its manifest states."""


@dataclasses.dataclass(frozen=True)
class Store:
    """Entries under one folder, by key.

    Args:
      root: local folder or bucket; made at the first publish.
      writer: False on all processes but one; there `publish` and progress write nothing.
    """

    root: PathLike
    writer: bool = True

    def path(self, key: str) -> epath.Path:
        """The folder of an entry, whether or not it exists."""
        return epath.Path(self.root) / key

    def has(self, key: str) -> bool:
        """Whether a complete entry lies there: a manifest, and every file of the size that it states."""
        try:
            self._manifest(key)
        except (KeyError, Damaged):
            return False
        return True

    def publish(
        self,
        key: str,
        arrays: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        write: Callable[[epath.Path], None] | None = None,
    ) -> epath.Path:
        """Stores an entry whole: after a kill at any moment it is there with every byte, or not at all.

        An entry that is there already and complete is kept; a damaged one is replaced.

        Args:
          key: name of the folder.
          arrays: name -> array; any text may be a name.
          meta: plain values; numpy numbers and arrays become JSON.
          write: called with a folder, for further files; they are found again under `path(key)`.
        """
        if not self.writer or self.has(key):
            return self.path(key)
        root, final = epath.Path(self.root), self.path(key)
        self._sweep()
        folder = root / f".tmp-{owner_tag()}-{uuid.uuid4().hex[:8]}" if files.is_local(root) else final
        if not files.is_local(root) and final.exists():
            final.rmtree()
        folder.mkdir(parents=True)
        try:
            self._fill(folder, arrays or {}, meta or {}, write)
            if folder != final:
                _install(folder, final)
        finally:
            if folder != final:
                folder.rmtree(missing_ok=True)
        return final

    def load(self, key: str) -> tuple[Arrays, Meta]:
        """The arrays (memory-mapped, read-only, where the disk is local) and the meta of an entry, after a checksum.

        Raises:
          KeyError: no such entry.
          Damaged: a file is missing, cut short or changed.
        """
        folder, manifest = self.path(key), self._manifest(key)
        for name, stated in manifest["files"].items():
            if file_hash(folder / name) != stated["sha256"]:
                raise Damaged(f"{os.fspath(folder / name)} has other contents than its manifest states")
        arrays = {name: read_array(folder / a["file"], a["dtype"]) for name, a in manifest["arrays"].items()}
        return arrays, json.loads((folder / META).read_text())

    def progress(self, key: str) -> Progress:
        """What was finished so far of an entry that is being computed."""
        return Progress(epath.Path(self.root) / PROGRESS / key, writer=self.writer)

    def _manifest(self, key: str) -> dict[str, Any]:
        """The manifest of an entry whose files have the stated sizes."""
        folder = self.path(key)
        if not (folder / MANIFEST).exists():
            if folder.exists():
                raise Damaged(f"{os.fspath(folder)} has no {MANIFEST}: it was cut short")
            raise KeyError(f"no entry {key} in {os.fspath(self.root)}")
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except ValueError as error:
            raise Damaged(f"{os.fspath(folder / MANIFEST)} is no JSON: {error}") from error
        for name, stated in manifest["files"].items():
            size = (folder / name).stat().length if (folder / name).exists() else None
            if size != stated["bytes"]:
                raise Damaged(f"{os.fspath(folder / name)} has {size} bytes, its manifest states {stated['bytes']}")
        return manifest

    def _fill(self, folder: epath.Path, arrays: Mapping[str, Any], meta: Mapping[str, Any], write: Any) -> None:
        """Arrays, meta and further files, then the manifest of all of them."""
        index = write_arrays(folder, arrays)
        (folder / META).write_text(to_json(dict(meta)))
        if write is not None:
            write(folder)
        stated = {}
        for file in list_files(folder):
            name = os.fspath(file.relative_to(folder))
            stated[name] = {"bytes": file.stat().length, "sha256": file_hash(file)}
            if files.is_local(file):
                sync(file)
        write_atomic(folder / MANIFEST, to_json({"arrays": index, "files": stated}))

    def _sweep(self) -> None:
        """Removes what publishing processes of this host left when they were killed."""
        root = epath.Path(self.root)
        if not files.is_local(root) or not root.exists():
            return
        for left in root.glob(f".tmp-{socket.gethostname()}~*"):
            pid, born = left.name.split("~")[1].split("-")[0].split("@")
            if not alive(int(pid), born):
                left.rmtree(missing_ok=True)


def _install(folder: epath.Path, final: epath.Path) -> None:
    """Renames a finished folder to its key, moving a damaged entry away first."""
    sync(folder)
    if final.exists():
        os.rename(final, folder.parent / f"{folder.name}-old")
    os.rename(folder, final)
    sync(final.parent)
    (folder.parent / f"{folder.name}-old").rmtree(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Finished parts of a long stage: shards of arrays, each written whole, and rows appended as JSON lines.

    Args:
      folder: made at the first write.
      writer: False where another process writes.
    """

    folder: epath.Path
    writer: bool = True

    def done(self) -> set[str]:
        """The ids of the finished shards; one cut short is not among them."""
        return {urllib.parse.unquote(p.name.removesuffix(".npz")) for p in self._names(".npz") if _whole_zip(p)}

    def add(self, shard: str, arrays: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
        """Stores one finished shard; writing it again replaces it."""
        if not self.writer:
            return
        dtypes = {name: np.asarray(array).dtype.name for name, array in arrays.items()}
        head = json.dumps({"dtypes": dtypes, "meta": json.loads(to_json(dict(meta or {})))})
        parts: dict[str, Any] = {f"a:{name}": plain_array(array) for name, array in arrays.items()}
        buffer = io.BytesIO()
        np.savez(buffer, head=np.frombuffer(head.encode(), np.uint8), **parts)
        write_atomic(self.folder / f"{quote(shard)}.npz", buffer.getvalue())

    def get(self, shard: str) -> tuple[Arrays, Meta]:
        """The arrays and the meta of a finished shard.

        Raises:
          KeyError: the shard is not finished.
        """
        path = self.folder / f"{quote(shard)}.npz"
        if not path.exists():
            raise KeyError(f"shard {shard!r} is not finished in {os.fspath(self.folder)}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as parts:
            head = json.loads(parts["head"].tobytes())
            arrays = {name: typed_array(parts[f"a:{name}"], dtype) for name, dtype in head["dtypes"].items()}
        return arrays, head["meta"]

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of plain values; they survive a kill from the moment this returns."""
        if not self.writer or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        if not files.is_local(self.folder):  # objects in a bucket cannot grow: one for each call
            write_atomic(self.folder / f"rows-{len(self._names('.jsonl')):06d}.jsonl", text)
            return
        with open(self.folder / "rows.jsonl", "a+b") as file:  # epath itself opens for reading or appending, not both
            if file.tell() and not _ends_line(file):
                text = "\n" + text  # what a kill left of the last line stays alone on its own
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Meta]:
        """All appended rows in order; a line cut short by a kill is left out."""
        lines = [line for path in self._names(".jsonl") for line in path.read_bytes().split(b"\n") if line.strip()]
        return [row for row in map(json_row, lines) if row is not None]

    def clear(self) -> None:
        """Forgets everything, once the entry itself is published."""
        if self.writer:
            self.folder.rmtree(missing_ok=True)

    def _names(self, suffix: str) -> list[epath.Path]:
        """Files of one kind in order; not the hidden ones, which are being written."""
        found = sorted(self.folder.iterdir(), key=lambda p: p.name) if self.folder.exists() else ()
        return [p for p in found if p.name.endswith(suffix) and not p.name.startswith(".")]


def _whole_zip(path: epath.Path) -> bool:
    """Whether a local .npz has its table of contents, which is its last part."""
    return not files.is_local(path) or zipfile.is_zipfile(path)


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
