"""npz files as arrays, memory-mapped where members are not compressed."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from sae_attr.files.mapped import corrupt, mapped_bytes
from sae_attr.files.zip_members import RefusedFile, check_growth, member_bytes, open_zip

_TEXT_KINDS = "US"  # of numpy: words beside the arrays, which are left out


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file by name; words beside them are left out."""
    with open_zip(path) as archive:
        raw = mapped_bytes(path)
        try:
            infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
            check_growth(path, infos)
            arrays = {}
            for info in infos:
                array = _npy(path, info, member_bytes(path, archive, info, raw))
                if array.dtype.kind not in _TEXT_KINDS:
                    arrays[info.filename.removesuffix(".npy")] = array
            return arrays
        except RefusedFile as error:
            raise ValueError(str(error)) from None
        except ValueError:
            raise
        # zlib.error, EOFError, BadZipFile, RuntimeError (encrypted): the file is damaged.
        except Exception as error:
            raise corrupt(path, error) from error


def _npy(path: Path, info: zipfile.ZipInfo, raw: np.ndarray) -> np.ndarray:
    # The header alone, from a bounded piece: `np.load` would copy the array.
    stream = io.BytesIO(raw[: 1 << 16].tobytes())
    try:
        read_header = np.lib.format.read_array_header_2_0
        if np.lib.format.read_magic(stream) == (1, 0):
            read_header = np.lib.format.read_array_header_1_0
        shape, fortran, dtype = read_header(stream)
    except (ValueError, SyntaxError, EOFError) as error:
        raise corrupt(path, f"{info.filename}: {error}") from error
    if dtype.hasobject or dtype.kind not in f"biuf{_TEXT_KINDS}":
        raise ValueError(
            f"{path}: {info.filename} has dtype {dtype}, not plain numbers; save it as "
            "float32"
        )
    # In Python's integers: a hostile shape cannot overflow to a small number.
    end = stream.tell() + math.prod(shape) * dtype.itemsize
    if end > raw.size:
        raise corrupt(
            path, f"{info.filename} has shape {shape} but holds {raw.size} bytes"
        )
    return (
        raw[stream.tell() : end]
        .view(dtype)
        .reshape(shape, order="F" if fortran else "C")
    )
