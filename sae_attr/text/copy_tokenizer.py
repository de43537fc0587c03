"""The files of a tokenizer, copied beside weights that are written."""

from __future__ import annotations

import shutil
from pathlib import Path

from sae_attr.store import write_atomic

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
    """Copies a tokenizer's files into a folder, with another chat template if one is
    given.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if chat_template is not None:
        write_atomic(target / "chat_template.jinja", chat_template)
