"""A file as mapped bytes, and the error about one that is damaged."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np


def mapped_bytes(path: Path) -> np.ndarray:
    """Maps a whole file as bytes."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    return np.memmap(path, dtype=np.uint8, mode="r")


def release_pages(part: np.ndarray) -> None:
    """Lets the system take back the pages of a part of a mapped file that was read; they
    are read again when they are used again.

    Nothing happens where the part lies in memory, or not in one piece.
    """
    owner: Any = part
    while isinstance(owner, np.ndarray):
        owner = owner.base
    whole = isinstance(owner, mmap.mmap) and part.flags.c_contiguous
    if not whole or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = np.frombuffer(owner, np.uint8, 1).__array_interface__["data"][0]
    start = part.__array_interface__["data"][0] - first
    # Pages that lie in the part as a whole: the others hold something else too.
    page = mmap.PAGESIZE
    low, high = -(-start // page) * page, (start + part.nbytes) // page * page
    if high > low:
        owner.madvise(mmap.MADV_DONTNEED, low, high - low)


def corrupt(path: Path, error: object) -> ValueError:
    """Returns the error about a file that cannot be what its name says."""
    return ValueError(
        f"{path} is truncated or corrupt ({error}); fetch it again and compare its "
        "size or checksum"
    )
