"""A reader of GGUF files for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """GGUF v3 from its specification: header, key-value pairs, tensor infos, padding,
    data.
    """
    raw, at = path.read_bytes(), 24

    def number(kind: str) -> int:
        nonlocal at
        value = struct.unpack_from(f"<{kind}", raw, at)[0]
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        size = number("Q")
        at += size
        return raw[at - size : at].decode()

    magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", raw)
    assert (magic, version) == (b"GGUF", 3)
    keys = {text(): text() if number("I") == 8 else number("I") for _ in range(pairs)}
    infos = []
    for _ in range(tensors):
        name, axes = text(), number("I")
        infos.append(
            (name, [number("Q") for _ in range(axes)], number("I"), number("Q"))
        )
    start = -(-at // 32) * 32
    found = {}
    for name, shape, kind, offset in infos:
        assert (kind, offset % 32) == (0, 0)
        found[name] = np.frombuffer(raw, "<f4", int(np.prod(shape)), start + offset)
    assert len(raw) % 32 == 0
    return keys, found
