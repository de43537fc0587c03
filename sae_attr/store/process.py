"""Which process wrote something here, and whether it still runs."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
    """Names the running kernel and its namespace of process ids, since a container has
    its own; "" where the system does not show them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born_at(pid: int) -> str:
    """Returns when a process started, in the kernel's ticks; "" where the system does not
    show it. Process ids are used again, start times are not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def alive(pid: int, born: str) -> bool:
    """Returns True if the process that started at `born` still runs on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return born_at(pid) == born


def owner_tag() -> str:
    """Names this process in the names of its temporary folders."""
    return f"{socket.gethostname()}~{os.getpid()}@{born_at(os.getpid())}"
