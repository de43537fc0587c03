"""GGUF models of several files: parts with a header each, read as one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sae_attr.files.gguf_header import GgufHeader, read_header

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MOST = 10_000


def part_files(file: Path) -> list[Path]:
    """Returns the files of the model that `file` is, or is a part of, in their order.

    Raises:
      ValueError: a part that is not there.
    """
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = min(int(match[3]), _MOST)
    names = [f"{match[1]}-{k:05d}-of-{match[3]}.gguf" for k in range(1, count + 1)]
    absent = [name for name in names if not (file.parent / name).is_file()]
    if absent:
        raise ValueError(
            f"{file.parent} lacks {', '.join(absent[:5])}; download the model completely"
        )
    return [file.parent / name for name in names]


def read_gguf(file: Path) -> GgufHeader:
    """Reads the header of a GGUF model: the metadata of its first file, the tensors of
    all.

    Raises:
      ValueError: as `read_header`, a part that is not there, a tensor that two parts
        hold, another number of parts than the first one states.
    """
    first, *rest = part_files(file)
    header = read_header(first)
    count = header.metadata.get("split.count", 1)
    if count != len(rest) + 1 and (rest or count):
        raise ValueError(
            f"{first} is one of {count} parts, but {len(rest) + 1} of that name are "
            "here; keep the names that llama.cpp gave them"
        )
    tensors = dict(header.tensors)
    for part in rest:
        for name, place in read_header(part).tensors.items():
            if name in tensors:
                raise ValueError(f"{tensors[name].file} and {part} both hold {name!r}")
            tensors[name] = place
    return replace(header, tensors=tensors)
