"""Text in files: UTF-8 and JSON lines with file and line in every complaint, and the texts of a corpus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

_TEXT_BLOCK = 2000  # characters of a .txt corpus that make one text: about 500 tokens


def read_corpus(path: str | Path) -> Iterator[str]:
    """Texts of a corpus: .json (list), .jsonl (one a line), each a string or {"text": ...}, or .txt.

    A .txt file is cut into blocks of at most 2,000 characters that end at white space where there is any. Blank texts
    are left out.

    Raises:
      ValueError: unknown ending, not UTF-8, not JSON, a text that is none, no text at all (the first text is read at
        once; later ones as they are asked for).
    """
    path = Path(path)
    reader = {".json": _json_texts, ".jsonl": _jsonl_texts, ".txt": _txt_texts}.get(path.suffix)
    if reader is None:
        raise ValueError(
            f"{path}: a corpus ends in .json, .jsonl or .txt, not in {path.suffix!r}; rename or convert it"
        )
    texts = (text for text in reader(path) if text.strip())
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{path} has no text; a corpus needs at least one text that is not blank")
    return chain([first], texts)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSONL file that is not blank; ValueError with file and line."""
    with open(path, "rb") as file:  # bytes: only \n ends a line, and a bad byte is named with its line
        for number, raw in enumerate(file, start=1):
            text = _utf8(raw, f"{path}:{number}")
            if text.strip():
                yield number, _json(text, f"{path}:{number}")


def _json_texts(path: Path) -> Iterator[str]:
    found = _json(_utf8(path.read_bytes(), str(path)), str(path))
    if not isinstance(found, list):
        raise ValueError(f"{path} holds a {type(found).__name__} where a list of texts is expected; wrap it in [ ]")
    return (_corpus_text(item, f"{path}: text {k}") for k, item in enumerate(found))


def _jsonl_texts(path: Path) -> Iterator[str]:
    return (_corpus_text(item, f"{path}:{line}") for line, item in json_lines(path))


def _txt_texts(path: Path) -> Iterator[str]:
    text = _utf8(path.read_bytes(), str(path))
    # The second branch is for a run without white space that is longer than a block.
    pattern = rf"\S(?:.{{0,{_TEXT_BLOCK - 1}}}(?!\S)|.{{0,{_TEXT_BLOCK - 1}}})"
    return (match.group().rstrip() for match in re.finditer(pattern, text, re.DOTALL))


def _corpus_text(item: Any, where: str) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        kind = f"an object with the fields {', '.join(item)}" if isinstance(item, dict) else type(item).__name__
        raise ValueError(f'{where} is {kind} where a string or {{"text": ...}} is expected')
    return sound(text, where)


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def sound(text: str, where: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: character {error.start} is half of a surrogate pair; repair the text") from error
    return text
