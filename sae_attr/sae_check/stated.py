"""What the files of an SAE promise: config and path, SAELens' feature densities, a
metrics.json beside the weights.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.model import SAEConfig
from sae_attr.sae_check.verdict import Promise


def promised(path: str | os.PathLike[str], cfg: SAEConfig) -> Promise:
    """The most trustworthy promise: k of a top-k, then metrics.json, the config's L0,
    then Σ of the latents' densities.

    metrics.json may hold `L0` (or `l0`) and `explained_variance`; sparsity.safetensors
    holds log10 firing rates. Files are looked for beside local weights only; what
    cannot be read promises nothing.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    local = not str(path).startswith("hf://")
    said = _metrics(folder / "metrics.json") if local else {}
    density = _density(folder / "sparsity.safetensors") if local else None
    expected = (cfg.k, said.get("L0", said.get("l0")), cfg.expected_l0, density)
    return Promise(
        l0=next((x for x in map(_number, expected) if x), None),
        explained_variance=_number(said.get("explained_variance")),
        excludes_special=cfg.exclude_special,
    )


def _number(value: Any) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and math.isfinite(value) and value > 0
        else None
    )


def _metrics(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _density(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        return float(np.sum(10.0 ** read_tensors(path)["sparsity"].astype(np.float64)))
    except (KeyError, OSError, ValueError):
        return None
