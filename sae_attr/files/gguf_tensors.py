"""Tensors of GGUF files that are dequantised where they are cut, by the gguf package."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import TensorPlace
from sae_attr.files.mapped import corrupt, mapped_bytes

_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}  # as they lie in the file
Index = int | slice | EllipsisType | None


def gguf_package() -> ModuleType:
    """Returns the gguf package; ValueError with the line that installs it."""
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "reading a GGUF model needs the gguf package: pip install 'sae_attr[gguf]' "
            "(or pip install gguf)"
        ) from None
    return gguf


def type_name(place: TensorPlace) -> str:
    """Returns llama.cpp's name of a tensor's quantisation.

    Raises:
      ValueError: a number that the installed gguf package does not know.
    """
    try:
        return gguf_package().GGMLQuantizationType(place.type).name
    except ValueError:
        raise ValueError(
            f"{place.file}: tensor {place.name!r} has the quantisation type "
            f"{place.type}, which the installed gguf package does not know; upgrade it "
            "(pip install -U gguf), or take another file of the model"
        ) from None


@dataclass(frozen=True, eq=False)
class _Blocks:
    """A tensor's bytes, and how they become numbers.

    Args:
      raw: uint8 `[rows, bytes of a row]`, mapped.
      block: numbers that are dequantised together.
      size: bytes of such a block.
    """

    raw: np.ndarray
    type: Any
    block: int
    size: int

    def cut(self, rows: np.ndarray, columns: range) -> np.ndarray:
        """Dequantises some rows `[n]` between some columns: float32 `[n, columns]`
        (float64 where the file has that).
        """
        if not len(rows) or not len(columns):  # the package takes no empty arrays
            return np.zeros((len(rows), len(columns)), self.dtype)
        first = min(columns) // self.block
        stop = max(columns) // self.block + 1
        rows_cut: Any = rows
        if (np.diff(rows) == 1).all():
            rows_cut = slice(rows[0], rows[-1] + 1)  # a view: nothing is copied
        raw = self.raw[rows_cut, first * self.size : stop * self.size]
        if plain := _PLAIN.get(self.type.name):
            numbers = raw.view(plain)
        else:
            with np.errstate(all="ignore"):  # the loader looks for what is not finite
                numbers = gguf_package().dequantize(raw, self.type)
        at = np.array(columns) - first * self.block
        if columns.step == 1:
            return numbers[:, at[0] : at[-1] + 1].astype(self.dtype, copy=False)
        return numbers[:, at].astype(self.dtype, copy=False)

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers once they are dequantised."""
        return np.dtype("f8" if self.type.name == "F64" else "f4")


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """An array that is read and dequantised where it is cut, a view until then.

    It has what a loader asks of a mapped array: slices, integers and new axes in
    brackets, `.T`, `.reshape` of all but the last axis, `.astype`, and numpy's own
    conversion, which reads it.

    Args:
      rows: of the file's matrix, by their places in this array `[...]`.
      columns: of the file's matrix.
      axes: for each axis here, which of those of `[*rows.shape, columns]`; None is a
        new axis of length 1.
    """

    blocks: _Blocks
    rows: np.ndarray
    columns: range
    axes: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the view."""
        inner = (*self.rows.shape, len(self.columns))
        return tuple(1 if axis is None else inner[axis] for axis in self.axes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers once they are read."""
        return self.blocks.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers once they are read."""
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """As if the file held plain numbers: which axis is outermost."""
        inner = (*self.rows.shape, len(self.columns))
        steps = [math.prod(inner[k + 1 :]) for k in range(len(inner))]
        size = self.dtype.itemsize
        return tuple(0 if axis is None else size * steps[axis] for axis in self.axes)

    @property
    def T(self) -> GgufTensor:
        """With its axes in reverse order."""
        return replace(self, axes=self.axes[::-1])

    def swapaxes(self, one: int, other: int) -> GgufTensor:
        """Returns the array with two axes exchanged."""
        axes = list(self.axes)
        axes[one], axes[other] = axes[other], axes[one]
        return replace(self, axes=tuple(axes))

    def reordered(self, rows: np.ndarray) -> GgufTensor:
        """Returns the matrix whose row i is row `rows[i]` of this one."""
        return replace(self, rows=self.rows[rows])

    def reshape(self, *shape: int) -> GgufTensor:
        """Returns the array with its leading axes in another shape."""
        ordered = self.axes == tuple(range(self.rows.ndim + 1))
        if not ordered or shape[-1] != len(self.columns):
            raise ValueError(f"cannot reshape {self.shape} into {shape}")
        rows = self.rows.reshape(shape[:-1])
        return replace(self, rows=rows, axes=tuple(range(len(shape))))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Index | tuple[Index, ...]) -> GgufTensor:
        rows: list[Any] = [slice(None)] * self.rows.ndim
        columns, axes = self.columns, []
        waiting = list(self.axes)
        for item in _spelt_out(index, self.ndim):
            if item is None:
                axes.append(None)
                continue
            axis = waiting.pop(0)
            if axis is None:
                axes += [None] if isinstance(item, slice) else []
            elif axis == self.rows.ndim:
                if not isinstance(item, slice):
                    raise IndexError(
                        "the last axis of a GGUF tensor takes slices alone"
                    )
                columns = columns[item]
                axes.append(axis)
            else:
                rows[axis] = item
                axes += [axis] if isinstance(item, slice) else []
        left = [k for k, item in enumerate(rows) if isinstance(item, slice)]
        number = {axis: k for k, axis in enumerate([*left, self.rows.ndim])}
        axes = tuple(None if axis is None else number[axis] for axis in axes)
        return replace(self, rows=self.rows[tuple(rows)], columns=columns, axes=axes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        numbers = self.blocks.cut(np.ravel(self.rows), self.columns)
        numbers = numbers.reshape(*self.rows.shape, len(self.columns))
        order = [axis for axis in self.axes if axis is not None]
        out = numbers.transpose(order).reshape(self.shape)
        return out if dtype is None else out.astype(dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = True) -> np.ndarray:
        """Reads the array, in a dtype."""
        return np.asarray(self).astype(dtype, copy=copy)


def _spelt_out(index: Any, ndim: int) -> list[Any]:
    """An index with an item for every axis."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(item is not None and item is not Ellipsis for item in items)
    rest = [slice(None)] * (ndim - used)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        return [*items[:at], *rest, *items[at + 1 :]]
    return [*items, *rest]


def map_tensors(places: Iterable[TensorPlace]) -> dict[str, Any]:
    """Maps tensors by name: vectors are read, the others are `GgufTensor`.

    Raises:
      ValueError: a quantisation that the gguf package does not dequantise, rows that
        are no whole number of its blocks, a tensor that ends beyond its file.
    """
    raw_of: dict[Path, np.ndarray] = {}
    out = {}
    for place in places:
        if place.file not in raw_of:
            raw_of[place.file] = mapped_bytes(place.file)
        tensor = _mapped(place, raw_of[place.file])
        out[place.name] = tensor if tensor.ndim > 1 else np.asarray(tensor)
    return out


def _mapped(place: TensorPlace, file: np.ndarray) -> GgufTensor:
    name = type_name(place)
    kind = gguf_package().GGMLQuantizationType(place.type)
    if not _dequantises(kind):
        raise ValueError(
            f"{place.file}: tensor {place.name!r} is stored as {name}, which the gguf "
            "package does not dequantise; take another file of the model"
        )
    block, size = gguf_package().GGML_QUANT_SIZES[kind]
    width = place.shape[-1]
    if width % block:
        raise ValueError(
            f"{place.file}: tensor {place.name!r} has rows of {width} numbers, which "
            f"are no whole number of the {block} that {name} packs together; fetch it "
            "again"
        )
    rows, row_size = math.prod(place.shape[:-1]), width // block * size
    stop = place.start + rows * row_size
    if stop > len(file):
        raise corrupt(
            place.file,
            f"tensor {place.name!r} {place.shape} ends at byte {stop:,} of {len(file):,}",
        )
    raw = file[place.start : stop].reshape(rows, row_size)
    return GgufTensor(
        _Blocks(raw, kind, block, size),
        np.arange(rows).reshape(place.shape[:-1]),
        range(width),
        tuple(range(len(place.shape))),
    )


@cache
def _dequantises(kind: Any) -> bool:
    """Whether the package turns such blocks into numbers; integers are no weights."""
    if kind.name in _PLAIN:
        return True
    _, size = gguf_package().GGML_QUANT_SIZES[kind]
    try:
        gguf_package().dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
