"""Folders that this process holds, and the question before a write whether it holds
them still.
"""

from __future__ import annotations

import os
from collections.abc import Callable

HELD: dict[str, Callable[[], None]] = {}
"""Absolute folder -> raises where another run has taken the folder over."""


def absolute(path: str | os.PathLike[str]) -> str:
    """One spelling of a path; a bucket's address is one already."""
    text = os.fspath(path)
    return text.rstrip("/") if "://" in text else os.path.abspath(text)


def check_held(path: str | os.PathLike[str]) -> None:
    """Asks for every held folder that `path` lies in; raises what they raise
    (`lease.LockLost`).
    """
    place = absolute(path)
    for folder, check in list(HELD.items()):
        if place == folder or place.startswith(folder + "/"):
            check()
