"""The files of a tokenizer, copied beside weights that are written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sae_attr.files.gguf_header import is_gguf
from sae_attr.files.gguf_parts import read_gguf
from sae_attr.store import write_atomic
from sae_attr.text.gguf_tokenizer import end_ids_of_gguf, tokenizer_files

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def copy_tokenizer(
    source: Path, target: Path, chat_template: str | None = None
) -> None:
    """Copies a tokenizer's files into a folder, or writes them out of a GGUF file, with
    another chat template if one is given.
    """
    target.mkdir(parents=True, exist_ok=True)
    if is_gguf(source):
        _write_files(source, target)
    else:
        _copy_files(source, target)
    if chat_template is not None:
        write_atomic(target / "chat_template.jinja", chat_template)


def _copy_files(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_files(source: Path, target: Path) -> None:
    """Writes what the tokenizer in a GGUF file stands for."""
    header = read_gguf(source)
    whole, config = tokenizer_files(header)
    template = config.pop("chat_template", None)
    values = {
        "tokenizer.json": whole,
        "tokenizer_config.json": config,
        "generation_config.json": {"eos_token_id": list(end_ids_of_gguf(header))},
    }
    for name, value in values.items():
        write_atomic(target / name, json.dumps(value, ensure_ascii=False, indent=1))
    if template is not None:
        write_atomic(target / "chat_template.jinja", template)
