"""Processes that a test starts, and none of them for ever."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = (
    600.0  # many times what any of them takes on a slow machine with nothing compiled
)


@contextmanager
def limited(
    process: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float = SECONDS
) -> Iterator[None]:
    """Kills the process if the block takes longer, which ends any wait for it or for
    what it prints, and then raises.

    Raises:
      TimeoutError: the time was up.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"the process took longer than {seconds:g} s and was killed")
