"""The header of a GGUF file, read within bounds: its metadata, and where each tensor
lies. Nothing that the file says about sizes is believed before it is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.mapped import mapped_bytes
from sae_attr.files.text import check_regular

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# The largest headers, of vocabularies with 262,144 tokens and their merges, have some
# 15 MB, 60 keys and 2,000 tensors.
_MAX_KEYS, _MAX_TENSORS = 1 << 14, 1 << 16
_MAX_ITEMS, _MAX_TEXT, _MAX_NAME = 1 << 23, 1 << 22, 256
_MAX_AXES, _MAX_ALIGNMENT = 4, 1 << 16
_TEXT, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """States where one tensor lies.

    Args:
      file: that holds it.
      shape: outermost axis first; the numbers of the last axis lie side by side.
      type: GGML's number of its quantisation.
      start: of its bytes, from the start of the file.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """Holds what a GGUF file says before its weights.

    Args:
      metadata: key -> number, text, list of texts, or array of numbers.
      tensors: name -> its place, in the file's order.
    """

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]


def is_gguf(path: str | Path) -> bool:
    """Checks whether a path names a GGUF file that is there."""
    return str(path).endswith(SUFFIX) and Path(path).is_file()


def read_header(file: str | Path) -> GgufHeader:
    """Reads the header of one GGUF file.

    Raises:
      ValueError: another format or version, counts and lengths beyond the file's end or
        beyond any model's, text that is not UTF-8, a key or tensor that is there twice,
        a tensor outside the file; one line that names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; check its name")
    check_regular(file)
    cursor = _Cursor(file, mapped_bytes(file).data)
    tensor_count, key_count = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text("a key's name", _MAX_NAME)
        if key in metadata:
            raise cursor.damaged(f"the key {key!r} is there twice")
        metadata[key] = _value(cursor, key)
    tensors: dict[str, TensorPlace] = {}
    for _ in range(tensor_count):
        place = _place(cursor)
        if place.name in tensors:
            raise cursor.damaged(f"the tensor {place.name!r} is there twice")
        tensors[place.name] = place
    return GgufHeader(file, metadata, _moved(cursor, metadata, tensors))


class _Cursor:
    """A place in the file's bytes, which never leaves them."""

    def __init__(self, file: Path, data: memoryview) -> None:
        self.file, self.data, self.at = file, data, 0

    def damaged(self, what: str) -> ValueError:
        """Returns the error about this file."""
        return ValueError(
            f"{self.file} is truncated or no sound GGUF: {what}; fetch it again and "
            "compare its size or checksum"
        )

    def number(self, code: str, what: str) -> int:
        """Reads one little-endian number."""
        size = struct.calcsize(code)
        self._need(size, what)
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def text(self, what: str, longest: int = _MAX_TEXT) -> str:
        """Reads a text of at most `longest` bytes."""
        size = self.number("Q", what)
        if size > longest:
            raise self.damaged(f"{what} has {size:,} bytes, more than any such text")
        self._need(size, what)
        raw = bytes(self.data[self.at : self.at + size])
        self.at += size
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def numbers(self, dtype: str, count: int, what: str) -> np.ndarray:
        """Reads numbers of one type."""
        self._need(count * np.dtype(dtype).itemsize, what)
        out = np.frombuffer(self.data, dtype, count, self.at).copy()
        self.at += out.nbytes
        return out

    def _need(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise self.damaged(f"it ends within {what}")


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of keys."""
    if bytes(cursor.data[:4]) != _MAGIC:
        raise ValueError(
            f"{cursor.file} does not begin as a GGUF file does; give a .gguf of "
            "llama.cpp, or fetch it again"
        )
    cursor.at = 4
    version = cursor.number("I", "its version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"version {version}"
        if swapped in _VERSIONS:
            what = "a file for big-endian machines"
        raise ValueError(
            f"{cursor.file} is GGUF of {what}; versions 2 and 3, little-endian, are "
            "read: convert it with llama.cpp"
        )
    tensor_count = cursor.number("Q", "its number of tensors")
    key_count = cursor.number("Q", "its number of keys")
    for count, most, what in (
        (tensor_count, _MAX_TENSORS, "tensors"),
        (key_count, _MAX_KEYS, "keys"),
    ):
        if count > most:
            raise cursor.damaged(f"it states {count:,} {what}, more than any model")
    return tensor_count, key_count


def _value(cursor: _Cursor, key: str) -> Any:
    kind, what = cursor.number("I", f"the value of {key!r}"), f"the value of {key!r}"
    if kind == _TEXT:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _NUMBERS:
        raise cursor.damaged(f"{what} has the unknown type {kind}")
    number = cursor.numbers(_NUMBERS[kind], 1, what)[0]
    return bool(number) if kind == _BOOL else number.item()


def _array(cursor: _Cursor, what: str) -> Any:
    kind, count = cursor.number("I", what), cursor.number("Q", what)
    if count > _MAX_ITEMS:
        raise cursor.damaged(f"{what} has {count:,} items, more than any vocabulary")
    if kind == _TEXT:
        return [cursor.text(what) for _ in range(count)]
    if kind not in _NUMBERS:
        raise cursor.damaged(f"{what} is a list of the unknown type {kind}")
    numbers = cursor.numbers(_NUMBERS[kind], count, what)
    return numbers.astype(bool) if kind == _BOOL else numbers


def _place(cursor: _Cursor) -> TensorPlace:
    """A tensor's place, whose start still counts from the first tensor's."""
    name = cursor.text("a tensor's name", _MAX_NAME)
    what = f"the place of tensor {name!r}"
    axes = cursor.number("I", what)
    if not 1 <= axes <= _MAX_AXES:
        raise cursor.damaged(f"tensor {name!r} has {axes} axes; expected 1 to 4")
    sizes = [cursor.number("Q", what) for _ in range(axes)]
    if 0 in sizes:
        raise cursor.damaged(f"tensor {name!r} has an axis of length 0")
    kind, start = cursor.number("I", what), cursor.number("Q", what)
    return TensorPlace(name, cursor.file, tuple(reversed(sizes)), kind, start)


def _moved(
    cursor: _Cursor, metadata: Mapping[str, Any], tensors: Mapping[str, TensorPlace]
) -> dict[str, TensorPlace]:
    """The tensors with starts that count from the file's."""
    alignment = metadata.get("general.alignment", 32)
    sound = isinstance(alignment, int) and 0 < alignment <= _MAX_ALIGNMENT
    if not sound or alignment % 8:
        raise cursor.damaged(f"general.alignment is {str(alignment)[:20]!r}")
    first = -(-cursor.at // alignment) * alignment
    out = {}
    for name, place in tensors.items():
        start = first + place.start
        if place.start % alignment or start >= len(cursor.data):
            raise cursor.damaged(
                f"tensor {name!r} is said to begin at byte {start:,} of a file of "
                f"{len(cursor.data):,} bytes, aligned to {alignment}"
            )
        out[name] = TensorPlace(name, place.file, place.shape, place.type, start)
    return out
