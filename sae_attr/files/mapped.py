"""A file as mapped bytes, and the error about one that is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def mapped_bytes(path: Path) -> np.ndarray:
    """Maps a whole file as bytes."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    return np.memmap(path, dtype=np.uint8, mode="r")


def corrupt(path: Path, error: object) -> ValueError:
    """Returns the error about a file that cannot be what its name says."""
    return ValueError(
        f"{path} is truncated or corrupt ({error}); fetch it again and compare its "
        "size or checksum"
    )
