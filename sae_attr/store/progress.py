"""What was finished so far of an entry that is being computed: shards of arrays and
rows of JSON, each with a checksum.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import urllib.parse
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sae_attr.store import files
from sae_attr.store.fence import check_held
from sae_attr.store.files import (
    Arrays,
    Meta,
    json_row,
    plain_array,
    quote,
    to_json,
    typed_array,
    write_atomic,
)
from sae_attr.store.manifest import Damaged

_HEAD = "head"
_SUM = "crc32"  # the last key of a row
_SUMMED = re.compile(rb'^(\{.*?)(?:, )?"crc32": "([0-9a-f]{8})"\}$', re.DOTALL)
# The name of the checksum itself may be what is damaged.
_LIKE_SUMMED = re.compile(rb'"[^"]{5}": "[0-9a-f]{8}"\}$')


@dataclasses.dataclass(frozen=True)
class Progress:
    """Finished parts of a long stage: shards of arrays, each written whole, and rows
    appended as JSON lines.

    A shard or row that is damaged counts as not finished.

    Args:
      folder: made at the first write.
      writer: False where another process writes.
      verified: shards that were written or read whole here -> time and size of their
        file.
    """

    folder: epath.Path
    writer: bool = True
    verified: dict[str, tuple[float, int]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def done(self) -> set[str]:
        """Returns the ids of the finished shards; one cut short or changed is not among them."""
        shards = set()
        for path in self._names(".npz"):
            if self._whole(path):
                shards.add(urllib.parse.unquote(path.name.removesuffix(".npz")))
        return shards

    def add(
        self,
        shard: str,
        arrays: Mapping[str, Any],
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores one finished shard; writing it again replaces it."""
        if not self.writer:
            return
        dtypes: dict[str, str] = {}
        shapes: dict[str, list[int]] = {}
        parts: dict[str, Any] = {}
        for name, value in arrays.items():
            array = np.asarray(value)
            dtypes[name] = array.dtype.name
            shapes[name] = list(array.shape)
            parts[f"a:{name}"] = plain_array(array)
        head = {
            "dtypes": dtypes,
            "shapes": shapes,
            "meta": json.loads(to_json(dict(meta or {}))),
        }
        buffer = io.BytesIO()
        np.savez(
            buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **parts
        )
        path = self.folder / f"{quote(shard)}.npz"
        write_atomic(path, buffer.getvalue())
        self._note(path)

    def get(self, shard: str) -> tuple[Arrays, Meta]:
        """Reads the arrays and the meta of a finished shard.

        Raises:
          KeyError: the shard is not finished.
          Damaged: its file is not as it was written.
        """
        path = self.folder / f"{quote(shard)}.npz"
        if not path.exists():
            raise KeyError(
                f"shard {shard!r} is not finished in {os.fspath(self.folder)}"
            )
        return _read_shard(path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of plain values; they survive a kill from the moment this returns."""
        if not self.writer or not rows:
            return
        check_held(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(_line(row) for row in rows)
        if not files.is_local(self.folder):
            # Objects in a bucket cannot grow: one for each call.
            number = len(self._names(".jsonl"))
            write_atomic(self.folder / f"rows-{number:06d}.jsonl", text)
            return
        # epath itself opens for reading or appending, not both.
        with open(self.folder / "rows.jsonl", "a+b") as file:
            if file.tell() and not _ends_line(file):
                # A kill cut the last line short; what is left of it gets a line of its
                # own, which counts as damaged.
                text = "\n" + text
            file.write(text.encode())
            # From here on the caller counts the rows as finished: they are on the disk.
            file.flush()
            os.fsync(file.fileno())

    def rows(self, needs: Sequence[str] = ()) -> list[Meta]:
        """Returns all appended rows in order, without those that were cut short or changed.

        Args:
          needs: keys that a row must have; one without them counts as damaged.
        """
        rows = []
        for path in self._names(".jsonl"):
            for line in path.read_bytes().split(b"\n"):
                row = _row_of(line) if line.strip() else None
                if row is not None and row.keys() >= set(needs):
                    rows.append(row)
        return rows

    def clear(self) -> None:
        """Forgets everything, once the entry itself is published."""
        if self.writer:
            check_held(self.folder)
            files.remove(self.folder)

    def _names(self, suffix: str) -> list[epath.Path]:
        """Returns the files of one kind in order; hidden ones are being written."""
        if not self.folder.is_dir():
            return []
        paths = []
        for path in sorted(self.folder.iterdir(), key=lambda p: p.name):
            hidden = path.name.startswith(".")
            if path.name.endswith(suffix) and not hidden and path.is_file():
                paths.append(path)
        return paths

    def _whole(self, path: epath.Path) -> bool:
        """Returns True if a shard can be read; it is read once, and again only where its
        file changes.
        """
        if self.verified.get(path.name) == _version(path):
            return True
        try:
            _read_shard(path)
        except Damaged:
            return False
        self._note(path)
        return True

    def _note(self, path: epath.Path) -> None:
        self.verified[path.name] = _version(path)


def _version(path: epath.Path) -> tuple[float, int]:
    status = path.stat()
    return float(status.mtime), status.length


def _read_shard(path: epath.Path) -> tuple[Arrays, Meta]:
    """Reads arrays and meta of a shard; every byte is checked against the archive's own
    checksums before it is used.

    Raises:
      Damaged: the file is no such shard.
    """
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {}
            for name in archive.namelist():
                parts[name.removesuffix(".npy")] = archive.read(name)
        head = json.loads(_array(parts.pop(_HEAD)).tobytes())
        arrays = {}
        for name, dtype in head["dtypes"].items():
            arrays[name] = typed_array(_array(parts[f"a:{name}"]), dtype)
        shapes = head.get("shapes")  # older shards have none
        meta = dict(head["meta"])
    # A damaged archive raises nearly anything: BadZipFile, zlib.error, KeyError,
    # EOFError.
    except Exception as error:
        raise Damaged(
            f"{os.fspath(path)} is not as it was written: {type(error).__name__}: "
            f"{error}"
        ) from error
    for name, array in arrays.items():
        if shapes is not None and list(array.shape) != shapes.get(name):
            raise Damaged(
                f"{os.fspath(path)}: array {name!r} has another shape than is stated "
                "beside it"
            )
    return arrays, meta


def _array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _line(row: Mapping[str, Any]) -> str:
    """Formats a row as a line of JSON that ends with the checksum of what precedes it."""
    body = json.dumps(dict(row), ensure_ascii=False)[:-1]
    return f'{body}{", " * bool(row)}"{_SUM}": "{_crc(body.encode()):08x}"}}\n'


def _row_of(line: bytes) -> Meta | None:
    """Parses the row of a line; None where it is damaged. A line without a checksum is of
    an older version.
    """
    row, line = json_row(line), line.strip()
    if row is None or not (_SUM in row or _LIKE_SUMMED.search(line)):
        return row
    summed = _SUMMED.match(line)
    if summed is None or f"{_crc(summed[1]):08x}".encode() != summed[2]:
        return None
    return {key: value for key, value in row.items() if key != _SUM}


def _crc(data: bytes) -> int:
    return zlib.crc32(data)


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
