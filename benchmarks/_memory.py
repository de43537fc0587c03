"""Peak of a process's anonymous memory while something runs."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """Returns RssAnon of this process: memory that no file stands behind."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


class Watch(threading.Thread):
    """Notes the largest RssAnon every 5 ms until `over` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.baseline = self.peak = anonymous_bytes()
        self.samples, self.over = 0, threading.Event()

    def run(self) -> None:
        """Samples until `over` is set."""
        while not self.over.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())
            self.samples += 1
