"""gpt-oss's experts, which llama.cpp keeps in matrices of their own and Hugging Face in one
of gates and ups that take turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_EXPERTS = ".mlp.experts."


@dataclass(frozen=True, eq=False)
class PairedExperts:
    """Matrices `[e, in, 2 out]` whose even columns are those of `gate` and whose odd
    columns are those of `up`.

    Args:
      gate, up: `[e, out, in]`.

    Raises:
      ValueError: two shapes, or none of experts.
    """

    name: str
    gate: Any
    up: Any

    def __post_init__(self) -> None:
        if self.gate.shape != self.up.shape or self.gate.ndim != 3:
            raise ValueError(
                f"{self.name}: gates {self.gate.shape} and ups {self.up.shape} are no "
                "matrices of the same experts; fetch the file again"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(e, in, 2 out)`."""
        experts, columns, rows = self.gate.shape
        return experts, rows, 2 * columns

    def __getitem__(self, index: tuple[int, slice, slice]) -> Any:
        """`[expert, :, every second column]`; nothing is read yet."""
        expert, rows, columns = index
        if columns.step != 2 or columns.stop is not None:
            raise IndexError(f"columns {columns} are neither all gates nor all ups")
        return (self.up if columns.start else self.gate)[expert].T[rows]


def gpt_oss_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors with experts and sinks as gpt-oss's own files have them."""
    out = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        front, _, part = stem.partition(_EXPERTS)
        if stem.endswith(".sinks"):
            out[stem] = tensor
        elif part == "down":
            suffix = "_bias" if kind == "bias" else ""
            whole = tensor if kind == "bias" or tensor.ndim != 3 else _in_out(tensor)
            out[f"{front}{_EXPERTS}down_proj{suffix}"] = whole
        elif part == "gate" and f"{front}{_EXPERTS}up.{kind}" in tensors:
            up = tensors[f"{front}{_EXPERTS}up.{kind}"]
            if kind == "bias":
                out[f"{front}{_EXPERTS}gate_up_proj_bias"] = _in_turn(tensor, up, stem)
            else:
                joined = f"{front}{_EXPERTS}gate_up_proj"
                out[joined] = PairedExperts(joined, tensor, up)
        elif part != "up" or f"{front}{_EXPERTS}gate.{kind}" not in tensors:
            out[name] = tensor
    return out


def _in_out(tensor: Any) -> Any:
    return tensor.swapaxes(1, 2)


def _in_turn(gate: Any, up: Any, name: str) -> np.ndarray:
    if gate.shape != up.shape or gate.ndim != 2:
        raise ValueError(
            f"{name}: biases of gates {gate.shape} and of ups {up.shape} are not those "
            "of the same experts; fetch the file again"
        )
    pairs = np.stack([np.asarray(gate), np.asarray(up)], -1)
    return pairs.reshape(len(pairs), -1)
