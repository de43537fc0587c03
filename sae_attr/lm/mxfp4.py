"""MXFP4 (OCP Microscaling Formats, 2023): gpt-oss's packed expert matrices, dequantised
an expert at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# e2m1: sign, two bits of exponent with bias 1, one bit of mantissa.
FP4 = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)
_PAIRS = np.stack(
    [FP4[np.arange(256) & 15], FP4[np.arange(256) >> 4]], axis=-1
)  # low nibble first


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Numbers `[..., 2 b g]` float32 of bytes `[..., g, b]` with an exponent per block
    `[..., g]`: fp4 · 2^(scale - 127).
    """
    values = _PAIRS[blocks].reshape(*blocks.shape[:-1], -1)
    values *= np.ldexp(np.float32(1), scales.astype(np.int32) - 127)[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


@dataclass(frozen=True)
class PackedExperts:
    """Matrices `[e, in, out]` that are dequantised where they are indexed.

    Args:
      blocks: uint8 `[e, out, in / 32, 16]`, two numbers a byte.
      scales: uint8 `[e, out, in / 32]`.

    Raises:
      ValueError: other shapes or types.
    """

    name: str
    blocks: np.ndarray
    scales: np.ndarray

    def __post_init__(self) -> None:
        shapes = f"{self.name}: _blocks {self.blocks.dtype}{self.blocks.shape}, _scales {self.scales.dtype}"
        right = (
            self.blocks.ndim == 4
            and self.blocks.shape[3] == 16
            and self.blocks.shape[:3] == self.scales.shape
        )
        if not right or {self.blocks.dtype, self.scales.dtype} != {np.dtype(np.uint8)}:
            raise ValueError(
                f"{shapes}{self.scales.shape} is not MXFP4; expected uint8 [e, out, in "
                "/ 32, 16] and [e, out, in / 32]"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(e, in, out)`."""
        e, out, groups, _ = self.blocks.shape
        return e, 32 * groups, out

    def __getitem__(self, index: tuple[int, slice, slice]) -> np.ndarray:
        """`[expert, :, columns]` as float32; only these numbers are read."""
        expert, rows, columns = index
        return dequantise(self.blocks[expert, columns], self.scales[expert, columns]).T[
            rows
        ]


def join_packed(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the tensors with every pair `x_blocks`, `x_scales` replaced by one `x`."""
    names = [
        name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")
    ]
    packed = {
        name: PackedExperts(name, tensors[f"{name}_blocks"], tensors[f"{name}_scales"])
        for name in names
        if f"{name}_scales" in tensors
    }
    spent = {f"{name}_{part}" for name in packed for part in ("blocks", "scales")}
    return {
        name: tensor for name, tensor in tensors.items() if name not in spent
    } | packed
