"""The pictures of a workdir's last run, so that a run draws only what has changed."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etils import epath

from sae_attr.report.figures import Drawing, draw_anew
from sae_attr.store import write_atomic

_CHECKSUM = 32  # bytes, before the archive
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the first that the format knows


@dataclass(frozen=True, eq=False)
class StoredDrawings:
    """Pictures by their drawing's name and suffix, in one file: a checksum and a zip
    archive.

    A picture lies there under what it was drawn from, numbers and code, and is drawn
    again where either has changed.

    Args:
      path: of the file; none need be there.
      stored: those of the last run.
      used: those of this run.
    """

    path: epath.Path
    stored: Mapping[str, bytes]
    used: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: epath.Path) -> StoredDrawings:
        """Reads the pictures of the last run; none where the file is missing or
        damaged.
        """
        data = path.read_bytes() if path.exists() else b""
        checksum, contents = data[:_CHECKSUM], data[_CHECKSUM:]
        stored = {}
        if checksum == _checksum(contents):
            with zipfile.ZipFile(io.BytesIO(contents)) as archive:
                for name in archive.namelist():
                    stored[name] = archive.read(name)
        return cls(path, stored)

    def draw(self, drawing: Drawing, suffixes: Sequence[str]) -> dict[str, bytes]:
        """Returns a drawing as the files of some suffixes; draws those alone that
        neither the last run nor this one has.
        """
        names = {suffix: f"{drawing.name}.{suffix}" for suffix in suffixes}
        missing = []
        for suffix, name in names.items():
            if name in self.stored:
                self.used[name] = self.stored[name]
            elif name not in self.used:
                missing.append(suffix)
        if missing:
            for suffix, content in draw_anew(drawing, missing).items():
                self.used[names[suffix]] = content
        return {suffix: self.used[name] for suffix, name in names.items()}

    def write(self) -> None:
        """Writes the pictures of this run in place of those of the last, where they
        differ.
        """
        if self.used == self.stored:
            return
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in self.used.items():
                # Without a date: two runs of one study leave the same file.
                entry = zipfile.ZipInfo(name, _NO_DATE)
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 1)
        contents = file.getvalue()
        write_atomic(self.path, _checksum(contents) + contents)


def _checksum(contents: bytes) -> bytes:
    return hashlib.sha256(contents).digest()
