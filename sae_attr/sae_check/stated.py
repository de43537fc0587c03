"""Metrics that the files of an SAE state: its config and path, SAELens' feature
densities, a metrics.json beside the weights.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.model import SAEConfig
from sae_attr.sae.registry.names import is_remote


@dataclass(frozen=True)
class StatedMetrics:
    """Metrics that files, path or caller state; None where they are silent."""

    l0: float | None = None
    explained_variance: float | None = None
    excludes_special: bool | None = None


def read_stated_metrics(path: str | os.PathLike[str], cfg: SAEConfig) -> StatedMetrics:
    """Reads the most trustworthy L0: k of a top-k, then metrics.json, the config's L0,
    then Σ of the latents' densities; and what else metrics.json states.

    metrics.json may hold `L0` (or `l0`) and `explained_variance`; sparsity.safetensors
    holds log10 firing rates. Files are looked for beside local weights only, and those
    that cannot be read state nothing.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    local = not is_remote(path)
    metrics = _metrics(folder / "metrics.json") if local else {}
    density = _density(folder / "sparsity.safetensors") if local else None
    candidates = (cfg.k, metrics.get("L0", metrics.get("l0")), cfg.expected_l0, density)
    l0 = next((number for number in map(_positive, candidates) if number), None)
    return StatedMetrics(
        l0=l0,
        explained_variance=_positive(metrics.get("explained_variance")),
        excludes_special=cfg.exclude_special,
    )


def _positive(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)


def _metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _density(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        log_rates_n = read_tensors(path)["sparsity"].astype(np.float64)
    except (KeyError, OSError, ValueError):
        return None
    return float(np.sum(10.0**log_rates_n))
