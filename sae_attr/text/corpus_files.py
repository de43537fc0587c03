"""The texts of a corpus, whatever its format: one document after another, a few of which
are in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sae_attr.files.text import (
    check_pointer,
    check_regular,
    json_value,
    utf8,
)
from sae_attr.text.corpus_items import TEXT, text_of
from sae_attr.text.corpus_readers import ENDINGS, READERS
from sae_attr.text.tokenizer import Tokenizer

_NOT_TEXT = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)  # beside Hugging Face data


_SPLIT = re.compile(r"(?:^|[/._-])(train|test|valid(?:ation)?|val|dev)(?=[/._-])")


def read_corpus(
    path: str | Path,
    *,
    column: str = TEXT,
    split: str | None = None,
    tok: Tokenizer | None = None,
) -> Iterator[str]:
    """Yields the texts of a corpus, in order; blank ones are left out.

    A file is .json (a list), .jsonl (one a line), each item a string or an object with
    the field `column`; .txt, cut into blocks of at most 2,000 characters that end at
    white space where there is any; .parquet or .arrow, where nulls count as blank. A
    folder is what `datasets` saves (dataset_dict.json or state.json), or any tree of
    such files of one kind, read in the order of their names.

    What stands in `column` is a text, or a conversation: messages ({"role", "content"}
    or {"from", "value"}), which are written through the chat template, turns closed.
    Rows without the default column "text" may hold a conversation as `messages` or
    `conversations`, or `prompt` and `completion`.

    Args:
      column: the field or column that holds the text or the messages.
      split: of a folder with several ("train", "test", ...) the one to read.
      tok: whose chat template writes conversations.

    Raises:
      ValueError: unknown ending, no regular file, not UTF-8, not JSON, a text that is
        none, no such column or split, a conversation without a chat template or that it
        refuses, no text at all (the first text is read at once; later ones as they are
        asked for).
      ImportError: .parquet or .arrow without pyarrow.
    """
    texts = _texts(_corpus_files(Path(path), split), column, tok)
    # Read at once, so that a wrong path or column is refused here and not in the middle
    # of whoever reads on.
    first = next(texts, None)
    if first is None:
        raise ValueError(
            f"{path} has no text; a corpus needs at least one text that is not blank"
        )
    return chain([first], texts)


def _texts(files: list[Path], column: str, tok: Tokenizer | None) -> Iterator[str]:
    """Yields the texts of files that are not blank, one in memory at a time."""
    for file in files:
        for where, item in READERS[file.suffix](file, column):
            text = text_of(item, column, where, tok)
            if text.strip():
                yield text


def _corpus_files(path: Path, split: str | None) -> list[Path]:
    """Returns the files of a corpus in reading order, all of one kind."""
    if not path.is_dir():
        if path.suffix not in READERS:
            raise ValueError(
                f"{path}: a corpus ends in {ENDINGS}, not in {path.suffix!r}, or is a "
                "folder of such files; "
                "rename or convert it"
            )
        check_regular(path)
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _described(path / "dataset_dict.json", "splits")
        if not all(_is_folder_name(name) for name in splits):
            raise ValueError(
                f"{path}/dataset_dict.json names splits that are no folders of it; "
                "save the data set again"
            )
        return _corpus_files(path / _one_split(path, splits, split), None)
    if (path / "state.json").is_file():
        shards = []
        for item in _described(path / "state.json", "_data_files"):
            name = item.get("filename") if isinstance(item, dict) else None
            shards.append(_inside(path, name))
        return shards
    files = [file for file in sorted(path.rglob("*")) if _is_text(path, file)]
    kinds = sorted({file.suffix for file in files})
    if len(kinds) != 1:
        contents = "no such file"
        if kinds:
            contents = f"files ending in {' and '.join(kinds)}"
        raise ValueError(
            f"{path}: a corpus folder has files of one kind out of {ENDINGS}, but "
            f"holds {contents}"
        )
    for file in files:
        check_pointer(file)
    return _of_split(path, files, split)


def _is_folder_name(name: Any) -> bool:
    """Returns True for a name that cannot lead out of the folder."""
    return isinstance(name, str) and Path(name).name == name != ".."


def _is_text(folder: Path, file: Path) -> bool:
    """Returns True for a file of texts in a folder, hidden ones left out."""
    if file.suffix not in READERS or file.name in _NOT_TEXT or not file.is_file():
        return False
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """Returns the files of the split that their names state, as on the Hugging Face hub;
    all where no name states one.
    """
    names = []
    for file in files:
        match = _SPLIT.search(str(file.relative_to(path)))
        names.append(match[1] if match else "")
    if not any(names) and split is None:
        return files
    only = _one_split(path, sorted(set(names) - {""}), split)
    return [file for file, name in zip(files, names) if name == only]


def _one_split(path: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        fault = f"the split {split!r} is not there"
        if split is None:
            fault = "no split was named"
        raise ValueError(
            f"{path}: {fault}; it has {', '.join(splits) or 'no splits'}: name one of "
            "them (split=...)"
        )
    return split


def _described(file: Path, name: str) -> list[Any]:
    """Reads a list that a data set's own JSON file holds."""
    check_regular(file)
    value = json_value(utf8(file.read_bytes(), str(file)), str(file))
    listed = value.get(name) if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise ValueError(f"{file} has no list {name!r}; save the data set again")
    return listed


def _inside(folder: Path, name: Any) -> Path:
    """Returns a file that a data set names, which must lie in its folder."""
    if (
        not isinstance(name, str)
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise ValueError(
            f"{folder}/state.json names the file {name!r}, which is none of that folder"
        )
    if Path(name).suffix not in READERS:
        raise ValueError(
            f"{folder}/state.json names the file {name!r}; a corpus ends in {ENDINGS}"
        )
    check_regular(folder / name)
    return folder / name
