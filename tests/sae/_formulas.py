"""What the miniatures of SAE formats share: random tensors, and the pieces of the
formulas in float64.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

D, N, K = 6, 24, 5


@dataclass
class Case:
    """One SAE on disk and what it does to `x`."""

    path: Path
    x: np.ndarray
    codes: np.ndarray
    recon: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)


class Maker:
    """Random float32 tensors, which the formulas read as float64."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.normal(size=shape) * scale).astype(np.float32)

    def x(self, *lead: int, mean: float = 0.0) -> np.ndarray:
        return (self.rng.normal(size=(40, *lead, D)) * 2 + mean).astype(np.float32)


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def keep(values: np.ndarray, rank: np.ndarray, k: int) -> np.ndarray:
    """`values` where `rank` is among the k largest of its row."""
    order = np.argsort(-rank, axis=-1)[..., :k]
    out = np.zeros_like(values)
    np.put_along_axis(out, order, np.take_along_axis(values, order, -1), -1)
    return out


def rows(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrix, axis=-1)


def standard_tensors(m: Maker) -> dict[str, np.ndarray]:
    return {"W_enc": m(D, N), "W_dec": m(N, D), "b_enc": m(N), "b_dec": m(D)}


def linear(m: Maker) -> dict[str, np.ndarray]:
    return {
        "encoder.weight": m(N, D),
        "encoder.bias": m(N),
        "decoder.weight": m(D, N),
        "decoder.bias": m(D),
    }


def gemma_scope_2(m: Maker, d_out: int = D, latents: int = N) -> dict[str, np.ndarray]:
    threshold = np.abs(m(latents))
    return {
        "w_enc": m(D, latents),
        "w_dec": m(latents, d_out),
        "b_enc": m(latents),
        "b_dec": m(d_out),
        "threshold": threshold,
    }
