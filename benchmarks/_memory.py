"""Peak of a process's anonymous memory while something runs."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """RssAnon of this process: memory that no file stands behind."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


class Watch(threading.Thread):
    """Notes the largest RssAnon every 5 ms until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.baseline = self.peak = anonymous_bytes()
        self.samples, self.over = 0, threading.Event()

    def run(self) -> None:
        """The thread's loop."""
        while not self.over.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())
            self.samples += 1
