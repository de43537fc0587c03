"""torch files written without torch, for miniatures of formats that store them."""

from pathlib import Path
from typing import Any

from sae_attr.files.torch_writing import write_torch


def save_torch(path: Path, value: Any) -> Path:
    """`write_torch`, and the path."""
    write_torch(path, value)
    return path
