"""Members of zip files (npz, torch), within bounds: a small file must not unpack to any
size.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_attr.files.mapped import corrupt

# A member above _LARGE bytes may grow this many times when it is unpacked.
_MAX_GROWTH = 64
_LARGE = 1 << 28


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip file; ValueError where it is damaged."""
    try:
        return zipfile.ZipFile(path)
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        struct.error,
        NotImplementedError,
    ) as error:
        raise corrupt(path, error) from error


def member_bytes(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw: np.ndarray
) -> np.ndarray:
    """Returns the bytes of a zip member: mapped where stored plainly, loaded where
    compressed.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return np.frombuffer(unpacked(path, archive, info), np.uint8)
    # The local header's extra field may differ from that of the directory at the end:
    # torch pads there for alignment.
    header = raw[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise corrupt(path, f"no zip member at byte {info.header_offset}")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > raw.size:
        raise corrupt(path, f"member {info.filename} ends after the file")
    return raw[start : start + info.file_size]


def check_growth(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raises RefusedFile where compressed members together grow beyond all weights; each
    of them may be small.
    """
    # Plainly stored members are mapped, and take no memory until they are sliced.
    packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
    for info in packed:
        _check_member(path, info)
    size = sum(info.file_size for info in packed)
    small = sum(info.compress_size for info in packed)
    if size > max(_LARGE, _MAX_GROWTH * small):
        raise RefusedFile(
            f"{path} unpacks from {small:,} to {size:,} bytes, which weights do not; "
            "save it without compression where you "
            "trust it"
        )


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Raises RefusedFile where a member grows without measure: real weights hardly shrink,
    so what grows much is no weights.
    """
    if info.file_size > max(_LARGE, _MAX_GROWTH * info.compress_size):
        raise RefusedFile(
            f"{path}: {info.filename} unpacks from {info.compress_size:,} to "
            f"{info.file_size:,} bytes, which weights do not; "
            "save it without compression where you trust it"
        )


def unpacked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Decompresses a member, within bounds."""
    _check_member(path, info)
    return archive.read(info)


class RefusedFile(Exception):
    """The file is readable but asks for something that is not given."""
