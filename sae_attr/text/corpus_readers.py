"""Readers of .json, .jsonl and .txt corpora, and the table of all readers."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sae_attr.files.text import (
    LINE,
    json_lines,
    json_value,
)
from sae_attr.text.corpus_items import Item
from sae_attr.text.corpus_tables import arrow_rows, parquet_rows

_TEXT_BLOCK = 2000  # characters of a .txt corpus that make one text: about 500 tokens


_READ = 1 << 20  # bytes of a .txt or .json corpus read at once


_OPEN, _COMMA = (
    re.compile(r"\s*\[\s*"),
    re.compile(r"\s*,\s*"),
)  # what stands before an item of a JSON list


_EMPTY, _CLOSE = re.compile(r"\s*\[\s*\]\s*\Z"), re.compile(r"\s*\]\s*\Z")


def _json_list(path: Path, column: str) -> Iterator[Item]:
    return ((f"{path}: text {k}", item) for k, item in enumerate(_json_items(path)))


def _json_items(path: Path) -> Iterator[Any]:
    """Yields the items of a JSON list, parsed one by one."""
    text, at, pieces, before = "", 0, _decoded(path), _OPEN
    while True:
        while parsed := _next_item(text, at, before, path):
            yield parsed[0]
            at, before = parsed[1], _COMMA
        # Twice as much each time: a long item is parsed anew after every piece, and
        # pieces of one size would cost the square of its length.
        more = "".join(islice(pieces, 1 + len(text) // _READ))
        if not more:
            break
        text, at = text[at:] + more, 0
        if len(text) > LINE:
            raise ValueError(
                f"{path} has an item longer than {LINE:,} characters; a corpus is a "
                "list of texts"
            )
    if not (_EMPTY if before is _OPEN else _CLOSE).match(text, at):
        # A syntax error is named by the parser; what parses is something else than a list.
        value = json_value(text if before is _OPEN else f"[0{text[at:]}", str(path))
        raise ValueError(
            f"{path} holds a {type(value).__name__} where a list of texts is expected; "
            "wrap it in [ ]"
        )


def _next_item(
    text: str, at: int, before: re.Pattern[str], path: Path
) -> tuple[Any, int] | None:
    """Parses the JSON value after `before`; returns it and where it ends, None where it does not end
    inside `text` for certain.
    """
    if mark := before.match(text, at):
        try:
            item, end = json.JSONDecoder().raw_decode(text, mark.end())
        except ValueError:
            return None
        except RecursionError:
            raise ValueError(
                f"{path} is nested too deeply for a list of texts"
            ) from None
        # At the end of the text a number may still go on.
        return (item, end) if end < len(text) else None
    return None


def _json_rows(path: Path, column: str) -> Iterator[Item]:
    return ((f"{path}:{line}", item) for line, item in json_lines(path))


def _txt_blocks(path: Path, column: str) -> Iterator[Item]:
    return ((f"{path}: block {k}", block) for k, block in enumerate(_blocks(path)))


def _blocks(path: Path) -> Iterator[str]:
    # The second branch is for a run without white space that is longer than a block.
    pattern = re.compile(
        rf"\S(?:.{{0,{_TEXT_BLOCK - 1}}}(?!\S)|.{{0,{_TEXT_BLOCK - 1}}})", re.DOTALL
    )
    text = ""
    for piece in _decoded(path):
        text, at = text + piece, 0
        # A block that ends this far from the end is the same whatever follows.
        while (match := pattern.search(text, at)) and match.start() + _TEXT_BLOCK < len(
            text
        ):
            yield match.group().rstrip()
            at = match.end()
        text = text[match.start() :] if match else ""
    yield from (match.group().rstrip() for match in pattern.finditer(text))


_Reader = Callable[[Path, str], Iterator[Item]]


READERS: dict[str, _Reader] = {
    ".json": _json_list,
    ".jsonl": _json_rows,
    ".txt": _txt_blocks,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}


ENDINGS = ", ".join(READERS)


def _decoded(path: Path) -> Iterator[str]:
    """Yields a UTF-8 file as pieces of text, none empty, without a byte order mark."""
    decoder, read, begun = codecs.getincrementaldecoder("utf-8")(), 0, False
    with open(path, "rb") as file:
        while True:
            raw = file.read(_READ)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                start = read + len(raw) - len(error.object) + error.start
                raise ValueError(
                    f"{path}: byte {start} is not UTF-8 ({error.reason}); save it as "
                    "UTF-8"
                ) from error
            read += len(raw)
            if "\0" in piece:
                raise ValueError(
                    f"{path} holds a NUL character, so it is no text; save it as UTF-8"
                )
            if piece := piece if begun else piece.removeprefix("\ufeff"):
                begun = True
                yield piece
            if not raw:
                return
