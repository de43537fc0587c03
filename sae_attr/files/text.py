"""Text in files: UTF-8 and JSON lines, read within bounds, with file and line in every
complaint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LFS_START = b"version https://git-lfs"
# Bytes of one line, or of one item of a list: more is no text that a model reads.
LINE = 1 << 26


def printable(text: str, most: int | None = None) -> str:
    """Returns a name of unknown origin for a message: control characters as Python writes
    them, and no more than `most` characters.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if most is None or len(shown) <= most:
        return shown
    return f"{shown[:most]}..."


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, value) of every line of a JSONL file that is not blank.

    Raises:
      ValueError: with file and line: not UTF-8, not JSON, nested too deeply, longer
        than 64 MB; or a path that is no regular file (a device or a pipe may never
        end).
    """
    check_regular(path)
    name = printable(str(path))
    # As bytes: only \n ends a line, and a bad byte is named with its line. Bounded: a
    # file of one endless line would fill the memory before anybody could refuse it.
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(LINE + 1):
            number += 1
            if len(raw) > LINE:
                raise ValueError(
                    f"{name}:{number} is longer than {LINE:,} bytes; write one record "
                    "a line"
                )
            text = utf8(raw, f"{name}:{number}")
            if text.strip():
                yield number, json_value(text, f"{name}:{number}")


def check_regular(path: Path) -> None:
    """Raises ValueError for a device, a pipe or a socket, which may never end, and for
    a Git LFS pointer.

    An absent file is left to `open`.
    """
    if path.exists() and not path.is_file():
        name = printable(str(path))
        what = "a folder" if path.is_dir() else "a device, pipe or socket"
        raise ValueError(
            f"{name} is {what} where a regular file is expected; write the text into a "
            "file"
        )
    if path.exists():
        check_pointer(path)


def check_pointer(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if the file is a Git LFS pointer: the few lines that stand for
    a file which was not fetched.
    """
    name = printable(str(path))
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(len(_LFS_START))
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read ({error.strerror}); check its permissions and the "
            "disk"
        ) from None
    if start == _LFS_START:
        raise ValueError(
            f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull` in "
            "its folder, or download it again"
        )


def utf8(raw: bytes, where: str) -> str:
    """Decodes UTF-8 bytes, without a byte order mark; ValueError names the first bad
    byte.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith(b"\x1f\x8b"):
            raise ValueError(
                f"{where}: the file is compressed by gzip; unpack it"
            ) from None
        raise ValueError(
            f"{where}: byte {error.start} is not UTF-8 ({error.reason}); save it as "
            "UTF-8"
        ) from error


def json_value(text: str, where: str) -> Any:
    """Parses a JSON text; ValueError names `where`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(
            f"{where} is nested too deeply for JSON that means something"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def sound(text: str, where: str) -> str:
    """Returns `text`; ValueError where it holds half of a surrogate pair, which JSON can
    write and no tokenizer can read.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is half of a surrogate pair; repair the "
            "text"
        ) from error
    return text
