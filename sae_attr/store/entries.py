"""Entries of a store, published whole or not at all, and the progress of one that is
being computed.

An entry is a folder `<root>/<key>/` of `<array>.npy` files, `meta.json` and
`manifest.json`; the manifest states size and checksum of every other file, and its own,
and is written last. In a bucket a folder cannot be renamed in one step, and there the
manifest alone tells that an entry is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from sae_attr.store import files
from sae_attr.store.fence import check_held
from sae_attr.store.files import (
    Arrays,
    Meta,
    PathLike,
    read_array,
    remove,
    sync,
    to_json,
    write_arrays,
    write_atomic,
)
from sae_attr.store.manifest import (
    MANIFEST,
    META,
    Damaged,
    Manifest,
    manifest_text,
    read_manifest,
    read_object,
)
from sae_attr.store.names import list_files, whole_hash
from sae_attr.store.process import alive, owner_tag
from sae_attr.store.progress import Progress

PROGRESS = "progress"
# Seconds after which an unfinished folder of another host is nobody's.
_ABANDONED = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Store:
    """Entries under one folder, by key.

    Args:
      root: local folder or bucket; made at the first publish.
      writer: False on all processes but one; there `publish` and progress write
        nothing.
    """

    root: PathLike
    writer: bool = True

    def path(self, key: str) -> epath.Path:
        """Returns the folder of an entry, whether or not it exists."""
        return epath.Path(self.root) / key

    def has(self, key: str) -> bool:
        """Returns True if a complete entry lies there: a manifest, and every file of the
        size that it states.
        """
        try:
            read_manifest(self.path(key), key)
        except (KeyError, Damaged):
            return False
        return True

    def is_whole(self, key: str) -> bool:
        """Returns True if an entry is there with every byte; all of it is read."""
        try:
            read_manifest(self.path(key), key).check_contents(self.path(key))
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
        """Stores an entry whole: after a kill at any moment it is there with every
        byte, or not at all.

        An entry that is there already and complete is kept, on a local disk also one
        that another process has published in the meantime; a damaged one is replaced.

        Args:
          key: name of the folder.
          arrays: name -> array; any text may be a name.
          meta: plain values; numpy numbers and arrays become JSON.
          write: called with a folder, for further files; they are found again under
            `path(key)`.
        """
        if not self.writer or self.has(key):
            return self.path(key)
        check_held(self.root)
        root, final = epath.Path(self.root), self.path(key)
        self._sweep()
        if files.is_local(root):
            folder = root / f".tmp-{owner_tag()}-{uuid.uuid4().hex[:8]}"
        else:
            # A bucket cannot rename a folder: files are written in place, and the entry
            # counts from the moment that its manifest is there.
            folder = final
            remove(final)
        folder.mkdir(parents=True)
        try:
            self._fill(folder, arrays or {}, meta or {}, write)
            if folder != final:
                self._install(folder, key)
        finally:
            if folder != final:
                folder.rmtree(missing_ok=True)
        return final

    def load(self, key: str) -> tuple[Arrays, Meta]:
        """Reads the arrays (memory-mapped, read-only, where the disk is local) and the
        meta of an entry, after checking every byte.

        Raises:
          KeyError: no such entry.
          Damaged: a file is missing, cut short or changed.
        """
        folder = self.path(key)
        manifest = read_manifest(folder, key)
        manifest.check_contents(folder)
        arrays = {name: self._array(folder, manifest, name) for name in manifest.arrays}
        return arrays, read_object(folder / META)

    def progress(self, key: str) -> Progress:
        """Returns what was finished so far of an entry that is being computed."""
        return Progress(epath.Path(self.root) / PROGRESS / key, writer=self.writer)

    def discard(self, key: str) -> None:
        """Removes an entry, or whatever lies in its place; its progress stays."""
        if self.writer:
            remove(self.path(key))

    def _array(self, folder: epath.Path, manifest: Manifest, name: str) -> Any:
        """Reads one array of an entry.

        Raises:
          Damaged: the file is not an array of the stated type.
        """
        entry = manifest.arrays[name]
        path = folder / entry.file
        try:
            array = read_array(path, entry.dtype)
        except (ValueError, TypeError, EOFError, SyntaxError) as error:
            raise Damaged(
                f"{os.fspath(path)} is not the array that its manifest states: {error}"
            ) from error
        if array.dtype.name != entry.dtype:
            raise Damaged(
                f"{os.fspath(path)} holds {array.dtype.name}, its manifest states "
                f"{entry.dtype}"
            )
        return array

    def _fill(
        self,
        folder: epath.Path,
        arrays: Mapping[str, Any],
        meta: Mapping[str, Any],
        write: Any,
    ) -> None:
        """Writes arrays, meta and further files, then the manifest of all of them."""
        index = write_arrays(folder, arrays)
        (folder / META).write_text(to_json(dict(meta)))
        if write is not None:
            write(folder)
        contents = {}
        for file in list_files(folder):
            name = os.fspath(file.relative_to(folder))
            contents[name] = {"bytes": file.stat().length, "sha256": whole_hash(file)}
            # On the disk before the manifest that vouches for it is.
            if files.is_local(file):
                sync(file)
        write_atomic(folder / MANIFEST, manifest_text(index, contents))

    def _install(self, folder: epath.Path, key: str) -> None:
        """Renames a finished folder to its key, moving a damaged entry away; of several
        processes that publish the same one, the first to come here does.
        """
        sync(folder)
        final, old = self.path(key), folder.parent / f"{folder.name}-old"
        while not _renamed(folder, final) and not self.has(key):
            # A rename cannot replace a folder that has files, so the damaged one goes
            # first; a kill between the two renames leaves no entry, which counts as not
            # computed.
            remove(old)
            with contextlib.suppress(FileNotFoundError):  # another process moved it
                os.rename(final, old)
        sync(final.parent)
        remove(old)

    def _sweep(self) -> None:
        """Removes what processes left that were killed while they published: those of
        this host at once, those of others after a day.
        """
        root = epath.Path(self.root)
        if not files.is_local(root) or not root.exists():
            return
        for left in root.glob(".tmp-*"):
            if _abandoned(left):
                remove(left)


def _renamed(folder: epath.Path, final: epath.Path) -> bool:
    """Renames a folder where nothing is in its way; returns whether it did."""
    try:
        os.rename(folder, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _abandoned(left: epath.Path) -> bool:
    """Returns True if the process that made a temporary folder cannot finish it."""
    # The name is that of `owner_tag`: host~pid@start time.
    owner = re.fullmatch(r"\.tmp-(.*)~(\d+)@(\d*)-\w+(-old)?", left.name)
    if owner is not None and owner[1] == socket.gethostname():
        return not alive(int(owner[2]), owner[3])
    return time.time() - left.stat().mtime > _ABANDONED
