"""SAE weights of other libraries as one pytree: `load_sae`, `open_decoder`, `read_config`.

A path is a folder, a weight file, or `hf://owner/repo/folder@revision`; the files that are there tell the format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from sae_attr.sae.formats import dictionary_learning, gemma_scope, saelens
from sae_attr.sae.formats.parts import LoadOptions, Parts, materialise
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.tensorfiles import RowSource

# Format -> name of its weight file, files that belong to it, reader.
_FORMATS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, LoadOptions], Parts]]] = {
    "saelens": (saelens.WEIGHTS, (saelens.CONFIG, saelens.SCALER), saelens.read),
    "dictionary_learning": (dictionary_learning.WEIGHTS, (dictionary_learning.CONFIG,), dictionary_learning.read),
    "gemma_scope": (gemma_scope.WEIGHTS, (), gemma_scope.read),
}
FORMATS = tuple(_FORMATS)
_SUFFIXES = {".safetensors": "saelens", ".npz": "gemma_scope"}
_SUFFIXES |= dict.fromkeys((".pt", ".pth", ".bin"), "dictionary_learning")


def load_sae(
    path: str | os.PathLike[str], *, fmt: str = "auto", dtype: str = "float32", **options: Unpack[LoadOptions]
) -> SAE:
    """An SAE of any known format, whose codes are those of the library that wrote it.

    Everything that folds exactly is folded in float32 before the cast (`SAEConfig.folded` says what).

    Args:
      path: folder, weight file, or `hf://owner/repo/folder@revision`.
      fmt: one of `FORMATS`, or "auto".
      dtype: of the weights in memory and so of the arithmetic; "bfloat16" does as SAELens does with a bfloat16 SAE.
      **options: answers to what a file leaves open, see `LoadOptions`.

    Raises:
      ValueError: no format or several; config and tensors that disagree; NaN or infinite weights; anything that the
        file leaves open, with the option that settles it.
      FileNotFoundError: nothing at the path.
    """
    return materialise(_parts(path, fmt, options), dtype)


def open_decoder(path: str | os.PathLike[str], *, fmt: str = "auto", **options: Unpack[LoadOptions]) -> RowSource:
    """Decoder rows `[n, m]` read from disk as they are asked for, equal to `load_sae(path).dec_nm`; errors as there.

    Weights are not scanned for NaN here.
    """
    return _parts(path, fmt, options).dec


def read_config(path: str | os.PathLike[str], fmt: str = "auto", **options: Unpack[LoadOptions]) -> SAEConfig:
    """The config alone; the weights are mapped to learn their shapes, and not read. Errors as for `load_sae`."""
    return _parts(path, fmt, options).cfg


def _parts(path: str | os.PathLike[str], fmt: str, options: LoadOptions) -> Parts:
    if fmt != "auto" and fmt not in _FORMATS:
        raise ValueError(f"fmt={fmt!r} is unknown; known: auto, {', '.join(FORMATS)}")
    local = _fetch(str(path)) if str(path).startswith("hf://") else Path(path)
    fmt, weights = detect(local, fmt)
    return _FORMATS[fmt][2](weights, options)


def detect(path: Path, fmt: str = "auto") -> tuple[str, Path]:
    """Format and weight file of a local folder or file.

    Raises:
      ValueError: the files fit no format, or several.
      FileNotFoundError: nothing at the path.
    """
    if path.is_file():
        by_name = [name for name, (weights, *_) in _FORMATS.items() if weights == path.name]
        found = fmt if fmt != "auto" else (by_name or [_SUFFIXES.get(path.suffix, "")])[0]
        if found:
            return found, path
        raise ValueError(f"{path} is not recognised as SAE weights; say fmt= one of {', '.join(FORMATS)}")
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    there = [name for name, (weights, *_) in _FORMATS.items() if (path / weights).is_file() and fmt in ("auto", name)]
    if len(there) == 1:
        return there[0], path / _FORMATS[there[0]][0]
    files = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    if there:
        raise ValueError(f"{path} holds several formats ({', '.join(there)}: {files}); choose one with fmt=")
    wanted = [fmt] if fmt != "auto" else FORMATS
    raise ValueError(
        f"{path} holds no {' or '.join(wanted)} SAE: found {files}; looked for "
        f"{', '.join(_FORMATS[name][0] for name in wanted)}. Point at that file or its folder, or say fmt="
    )


def parse_hub(url: str) -> tuple[str, str, str | None]:
    """`hf://owner/repo/sub/folder@revision` as (repo id, folder or file inside it, revision).

    Raises:
      ValueError: another spelling.
    """
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:/([^@]*))?(?:@(.+))?", url)
    if not match:
        raise ValueError(f"{url!r} is not understood; write hf://owner/repo/folder@revision")
    return match[1], (match[2] or "").strip("/"), match[3]


def _fetch(url: str) -> Path:
    """Downloads the few files of one SAE through the hub's cache; never the whole folder, which may hold GBs."""
    from huggingface_hub import snapshot_download  # lazy: local paths need no hub

    repo, inside, revision = parse_hub(url)
    is_file = Path(inside).suffix in _SUFFIXES
    folder = str(Path(inside).parent) if is_file else inside
    prefix = "" if folder in ("", ".") else f"{folder}/"
    names = [name for weights, others, _ in _FORMATS.values() for name in (*others, *([] if is_file else [weights]))]
    patterns = [f"{prefix}{name}" for name in names] + ([inside] if is_file else [])
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / inside
