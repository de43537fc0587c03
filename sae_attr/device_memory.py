"""How much memory the devices of a mesh have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_memory(mesh: Mesh) -> int | None:
    """Returns the bytes that each device of a mesh has; None where nothing says so.

    Devices of the host share its memory, which a container may limit.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        whole = host_memory()
        return None if whole is None else whole // mesh.devices.size
    stats: Mapping[str, int] = device.memory_stats() or {}
    return stats.get("bytes_limit")


def host_memory() -> int | None:
    """Returns the bytes of this host's memory, or those that its container may use; None
    where the system does not say.
    """
    try:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for name in _LIMITS:
        file = Path(name)
        text = file.read_text().strip() if file.is_file() else ""
        if text.isdigit():
            limit = min(limit, int(text))
    return limit
