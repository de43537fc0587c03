"""Folders that this process holds, checked before every write: it may have lost one."""

from __future__ import annotations

import os
from collections.abc import Callable

HELD: dict[str, Callable[[], None]] = {}
"""Absolute folder -> check that raises where another run has taken the folder over."""


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns the one spelling of a path; a bucket's address is one already."""
    text = os.fspath(path)
    return text.rstrip("/") if "://" in text else os.path.abspath(text)


def check_held(path: str | os.PathLike[str]) -> None:
    """Checks every held folder that `path` lies in; raises `lease.LockLost` for one that
    was lost.
    """
    place = absolute(path)
    for folder, check in list(HELD.items()):
        if place == folder or place.startswith(folder + "/"):
            check()
