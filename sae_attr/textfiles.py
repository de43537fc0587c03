"""Text in files: UTF-8 and JSON lines with file and line in every complaint, and the texts of a corpus.

Every reader of a corpus gives one document after another and holds a few of them, whatever the size of the file.
"""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

_TEXT_BLOCK = 2000  # characters of a .txt corpus that make one text: about 500 tokens
_READ = 1 << 20  # bytes of a .txt or .json corpus read at once
_TABLE_ROWS = 256  # of a parquet file, decoded at once
_NOT_TEXT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside Hugging Face data
_OPEN, _COMMA = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")  # what stands before an item of a JSON list
_EMPTY, _CLOSE = re.compile(r"\s*\[\s*\]\s*\Z"), re.compile(r"\s*\]\s*\Z")
_SPLIT = re.compile(r"(?:^|[/._-])(train|test|valid(?:ation)?|val|dev)(?=[/._-])")


def read_corpus(path: str | Path, *, column: str = "text", split: str | None = None) -> Iterator[str]:
    """Texts of a corpus, in order; blank ones are left out.

    A file is .json (a list), .jsonl (one a line), each item a string or an object with the field `column`; .txt, cut
    into blocks of at most 2,000 characters that end at white space where there is any; .parquet or .arrow, where nulls
    count as blank. A folder is what `datasets` saves (dataset_dict.json or state.json), or any tree of such files of
    one kind, read in the order of their names.

    Args:
      column: the field or column that holds the text.
      split: of a folder with several ("train", "test", ...) the one to read.

    Raises:
      ValueError: unknown ending, not UTF-8, not JSON, a text that is none, no such column or split, no text at all (the
        first text is read at once; later ones as they are asked for).
      ImportError: .parquet or .arrow without pyarrow.
    """
    files = _corpus_files(Path(path), split)
    texts = (text for file in files for text in _READERS[file.suffix](file, column) if text.strip())
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


# ---- which files -------------------------------------------------------------------------------------------------


def _corpus_files(path: Path, split: str | None) -> list[Path]:
    """The files of a corpus in reading order, all of one kind."""
    if not path.is_dir():
        if path.suffix not in _READERS:
            raise ValueError(
                f"{path}: a corpus ends in {_ENDINGS}, not in {path.suffix!r}, or is a folder of such files; "
                "rename or convert it"
            )
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _json(_utf8((path / "dataset_dict.json").read_bytes(), str(path)), str(path))["splits"]
        return _corpus_files(path / _one_split(path, splits, split), None)
    if (path / "state.json").is_file():
        state = _json(_utf8((path / "state.json").read_bytes(), str(path)), str(path))
        return [path / item["filename"] for item in state["_data_files"]]
    files = [f for f in sorted(path.rglob("*")) if f.suffix in _READERS and f.name not in _NOT_TEXT]
    files = [f for f in files if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts)]
    kinds = sorted({f.suffix for f in files})
    if len(kinds) != 1:
        found = f"files ending in {' and '.join(kinds)}" if kinds else "no such file"
        raise ValueError(f"{path}: a corpus folder has files of one kind out of {_ENDINGS}, but holds {found}")
    return _of_split(path, files, split)


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """Files of the split that their names tell, as on the Hugging Face hub; all where no name tells one."""
    names = [m[1] if (m := _SPLIT.search(str(f.relative_to(path)))) else "" for f in files]
    if not any(names) and split is None:
        return files
    chosen = _one_split(path, sorted(set(names) - {""}), split)
    return [f for f, name in zip(files, names) if name == chosen]


def _one_split(path: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        asked = "no split was named" if split is None else f"the split {split!r} is not there"
        raise ValueError(f"{path}: {asked}; it has {', '.join(splits) or 'no splits'}: name one of them (split=...)")
    return split


# ---- one reader for each kind ------------------------------------------------------------------------------------


def _json_texts(path: Path, column: str) -> Iterator[str]:
    return (_corpus_text(item, column, f"{path}: text {k}") for k, item in enumerate(_json_items(path)))


def _json_items(path: Path) -> Iterator[Any]:
    """The items of a JSON list, parsed one by one."""
    text, at, pieces, before = "", 0, _decoded(path), _OPEN
    while True:
        while found := _next_item(text, at, before):
            yield found[0]
            at, before = found[1], _COMMA
        more = "".join(islice(pieces, 1 + len(text) // _READ))  # twice as much each time: a long item costs no square
        if not more:
            break
        text, at = text[at:] + more, 0
    if not (_EMPTY if before is _OPEN else _CLOSE).match(text, at):
        found = _json(text if before is _OPEN else f"[0{text[at:]}", str(path))
        raise ValueError(f"{path} holds a {type(found).__name__} where a list of texts is expected; wrap it in [ ]")


def _next_item(text: str, at: int, before: re.Pattern[str]) -> tuple[Any, int] | None:
    """The JSON value after `before`, and where it ends; None where it does not end inside `text` for certain."""
    if mark := before.match(text, at):
        with suppress(ValueError):
            item, end = json.JSONDecoder().raw_decode(text, mark.end())
            return (item, end) if end < len(text) else None
    return None


def _jsonl_texts(path: Path, column: str) -> Iterator[str]:
    return (_corpus_text(item, column, f"{path}:{line}") for line, item in json_lines(path))


def _txt_texts(path: Path, column: str) -> Iterator[str]:
    # The second branch is for a run without white space that is longer than a block.
    pattern = re.compile(rf"\S(?:.{{0,{_TEXT_BLOCK - 1}}}(?!\S)|.{{0,{_TEXT_BLOCK - 1}}})", re.DOTALL)
    text = ""
    for piece in _decoded(path):
        text, at = text + piece, 0
        # A block that ends this far from the end is the same whatever follows.
        while (match := pattern.search(text, at)) and match.start() + _TEXT_BLOCK < len(text):
            yield match.group().rstrip()
            at = match.end()
        text = text[match.start() :] if match else ""
    yield from (match.group().rstrip() for match in pattern.finditer(text))


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    parquet = _pyarrow("pyarrow.parquet", path)
    with parquet.ParquetFile(path) as file:
        _check_column(path, file.schema_arrow, column)
        for batch in file.iter_batches(_TABLE_ROWS, columns=[column]):
            yield from _cells(path, batch.column(0))


def _arrow_texts(path: Path, column: str) -> Iterator[str]:
    ipc, arrow = _pyarrow("pyarrow.ipc", path), _pyarrow("pyarrow", path)
    with arrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        table = ipc.open_file(source) if is_file else ipc.open_stream(source)
        _check_column(path, table.schema, column)
        for batch in map(table.get_batch, range(table.num_record_batches)) if is_file else table:
            for start in range(0, batch.num_rows, _TABLE_ROWS):
                yield from _cells(path, batch.column(column).slice(start, _TABLE_ROWS))


_Reader = Callable[[Path, str], Iterator[str]]
_READERS: dict[str, _Reader] = {
    ".json": _json_texts,
    ".jsonl": _jsonl_texts,
    ".txt": _txt_texts,
    ".parquet": _parquet_texts,
    ".arrow": _arrow_texts,
}
_ENDINGS = ", ".join(_READERS)


def _pyarrow(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{path}: {path.suffix} files need pyarrow; run: pip install 'sae_attr[data]'") from error


def _check_column(path: Path, schema: Any, column: str) -> None:
    """ValueError unless the table has the column, and it holds text."""
    if column not in schema.names:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(schema.names)}: name one (column=...)")
    kind = str(getattr(schema.field(column).type, "value_type", schema.field(column).type))
    if kind not in ("string", "large_string", "string_view") or "list" in str(schema.field(column).type):
        raise ValueError(f"{path}: column {column!r} holds {schema.field(column).type} where text is expected")


def _cells(path: Path, cells: Any) -> Iterator[str]:
    """Texts of a column; a null is blank."""
    try:
        return (cell or "" for cell in cells.to_pylist())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a text is not UTF-8 ({error.reason}); save the table again") from error


# ---- parts -------------------------------------------------------------------------------------------------------


def _decoded(path: Path) -> Iterator[str]:
    """A UTF-8 file as pieces of text, none empty, without a byte order mark."""
    decoder, read, begun = codecs.getincrementaldecoder("utf-8")(), 0, False
    with open(path, "rb") as file:
        while True:
            raw = file.read(_READ)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                start = read + len(raw) - len(error.object) + error.start
                raise ValueError(f"{path}: byte {start} is not UTF-8 ({error.reason}); save it as UTF-8") from error
            read += len(raw)
            if piece := piece if begun else piece.removeprefix("\ufeff"):
                begun = True
                yield piece
            if not raw:
                return


def _corpus_text(item: Any, column: str, where: str) -> str:
    text = item.get(column) if isinstance(item, dict) else item
    if not isinstance(text, str):
        kind = f"an object with the fields {', '.join(item)}" if isinstance(item, dict) else type(item).__name__
        raise ValueError(f'{where} is {kind} where a string or {{"{column}": ...}} is expected')
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
