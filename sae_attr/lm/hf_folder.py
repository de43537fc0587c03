"""What a model's files say beside its weights: where they lie, the JSON files of a
Hugging Face folder, read within bounds, and the ids that end a turn.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_attr.files import hub
from sae_attr.files.gguf_header import is_gguf
from sae_attr.files.gguf_parts import part_files, read_gguf
from sae_attr.files.packages import PREFIX, package_model
from sae_attr.files.text import check_pointer
from sae_attr.lm.gguf_config import config_from_gguf
from sae_attr.lm.hf_schema import IDS, shown
from sae_attr.store import digest, fingerprint
from sae_attr.text.gguf_tokenizer import end_ids_of_gguf

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
# Of a model on the hub, without the same weights again in the layout of their authors.
WANTED = ("*.json", "*.safetensors", "*.jinja", "adapter_model.bin")
COPIES = ("*/*", "consolidated*")
_MAX_JSON = 1 << 28  # bytes; the index of the largest models has some 20 MB


def resolve_model(path: str | Path) -> Path:
    """Finds the local folder or GGUF file of a model: `path` itself, the GGUF of an
    installed package `pip:NAME`, or a hub id `owner/name[@revision]`, which
    huggingface_hub downloads.

    Raises:
      ValueError: neither a folder, a GGUF file nor something that looks like a hub id;
        a package that is not installed; the hub has no such model.
    """
    if (local := _local_model(str(path))) is not None:
        return local
    repo, revision = hub_address(str(path))
    folder = hub.download(repo, revision, files=WANTED, ignore=COPIES)
    if any(folder.glob("*.safetensors")) or (folder / "adapter_model.bin").exists():
        return folder
    more = [*WANTED, "pytorch_model*.bin"]
    return hub.download(repo, revision, files=more, ignore=COPIES)


def resolve_config(path: str | Path) -> Path:
    """Finds what `resolve_model` finds, but fetches no weights from the hub: of a hub id
    the folder holds the JSON files alone.

    Raises:
      ValueError: as `resolve_model`.
    """
    if (local := _local_model(str(path))) is not None:
        return local
    repo, revision = hub_address(str(path))
    return hub.download(repo, revision, files=("*.json",), ignore=COPIES)


def _local_model(path: str) -> Path | None:
    """The folder or file of a model that is on this machine; None for a hub id."""
    if path.startswith(PREFIX):
        return package_model(path)
    if Path(path).is_dir() or is_gguf(path):
        return Path(path)
    if Path(path).is_file():
        raise ValueError(
            f"{path!r} is a file; give the folder of the model that it belongs to, or "
            "a .gguf"
        )
    return None


def hub_address(path: str) -> tuple[str, str | None]:
    """Returns repository and revision of a hub id `owner/name[@revision]`.

    Raises ValueError for anything else.
    """
    hub_id, _, revision = path.removeprefix("hf://").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or path.startswith((".", "/")):
        raise ValueError(
            f"{path!r} is neither a folder here nor a hub id owner/name[@revision]; "
            "check its name"
        )
    return hub_id, revision or None


def model_fingerprint(path: str) -> str:
    """Names a model by the contents of its files, wherever they lie.

    Args:
      path: as for `resolve_model`.
    """
    local = resolve_model(path)
    if local.is_dir():
        return fingerprint(local)
    parts = part_files(local)
    if len(parts) == 1:
        return fingerprint(local)
    return digest([fingerprint(part) for part in parts])


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      ValueError: no regular file, a Git LFS pointer, too large, not JSON, not an
        object, nested too deeply, or a key that is there twice with two values.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    if file.stat().st_size > _MAX_JSON:
        raise ValueError(
            f"{file} has {file.stat().st_size:,} bytes, more than any such file; fetch "
            "it again"
        )
    check_pointer(file)
    try:
        text = file.read_text("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique)
    except _Twice as error:
        raise ValueError(
            f"{file} has the key {error} twice, with two values; keep the right one"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file} is not JSON ({what}); fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file} holds a {type(value).__name__} where an object is expected; fetch "
            "it again"
        )
    return value


class _Twice(Exception):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out and out[key] != value:
            raise _Twice(repr(key))
        out[key] = value
    return out


def language_model(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the keys of the language model in a config.json: those of `text_config`
    where the model is multimodal.
    """
    inner = hf.get("text_config")
    return inner if isinstance(inner, Mapping) else hf


def end_ids(path: str | Path) -> tuple[int, ...]:
    """Collects the ids that end a turn by a model's own files: `eos_token_id` of
    generation_config.json and config.json; the ends of text, turn and message of a
    GGUF.

    Args:
      path: as for `resolve_model`.

    Returns:
      Each id once: those of generation_config.json first, then those of config.json and
      of its `text_config`. Empty if the files state none. An id beyond the vocabulary,
      which no sampler can reach, is left out with a warning.

    Raises:
      ValueError: a file that cannot be read, or an `eos_token_id` that is neither an id
        nor a list of them; the message names file and key.
    """
    folder = resolve_model(str(path))
    if folder.is_file():
        header = read_gguf(folder)
        stated = list(end_ids_of_gguf(header))
        vocab = config_from_gguf(header)["vocab_size"]
    else:
        stated, vocab = _ends_of_folder(folder)
    ids = tuple(dict.fromkeys(stated))
    outside = [token for token in ids if isinstance(vocab, int) and token >= vocab]
    if outside:
        warnings.warn(
            f"{folder}: eos_token_id {outside[0]} lies outside the vocabulary of "
            f"{vocab} ids and cannot end a turn",
            RuntimeWarning,
            stacklevel=2,
        )
    return tuple(token for token in ids if token not in outside)


def _ends_of_folder(folder: Path) -> tuple[list[int], Any]:
    """The ids that a folder's files state, and the rows of its vocabulary."""
    config = _object_or_none(folder / CONFIG) or {}
    inner = language_model(config)
    stated = _stated_ends(
        folder / GENERATION, _object_or_none(folder / GENERATION) or {}
    )
    stated += _stated_ends(folder / CONFIG, config) + _stated_ends(
        folder / CONFIG, inner
    )
    return stated, inner.get("vocab_size", config.get("vocab_size"))


def _object_or_none(file: Path) -> dict[str, Any] | None:
    return read_object(file) if file.exists() else None


def _stated_ends(file: Path, values: Mapping[str, Any]) -> list[int]:
    stated = values.get("eos_token_id")
    if not IDS.fits(stated):
        raise ValueError(
            f"{file}: eos_token_id is {shown(stated)}; expected {IDS.words}"
        )
    if stated is None:
        return []
    return list(stated) if isinstance(stated, list) else [stated]
