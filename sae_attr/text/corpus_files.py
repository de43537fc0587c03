"""The texts of a corpus, whatever it is written in, the same for every command that
reads one.

Every reader gives one document after another and holds a few of them, whatever the size
of the file.
"""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sae_attr.files.text import (
    LINE,
    check_pointer,
    check_regular,
    json_lines,
    json_value,
    sound,
    utf8,
)
from sae_attr.text.chat import Message, continued, render
from sae_attr.text.tokenizer import Tokenizer

TEXT = "text"  # the default column; where a row has none, a conversation under a usual name is taken
_TEXT_BLOCK = 2000  # characters of a .txt corpus that make one text: about 500 tokens
_READ = 1 << 20  # bytes of a .txt or .json corpus read at once
_TABLE_ROWS = 256  # of a parquet file, decoded at once
_TABLE_GROUP = 1 << 33  # bytes of a row group as it says itself, before compression
_CHATS = ("messages", "conversations")
_PAIR = ("prompt", "completion")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
}  # as rows of "from" and "value" call them
_NOT_TEXT = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)  # beside Hugging Face data
_OPEN, _COMMA = (
    re.compile(r"\s*\[\s*"),
    re.compile(r"\s*,\s*"),
)  # what stands before an item of a JSON list
_EMPTY, _CLOSE = re.compile(r"\s*\[\s*\]\s*\Z"), re.compile(r"\s*\]\s*\Z")
_SPLIT = re.compile(r"(?:^|[/._-])(train|test|valid(?:ation)?|val|dev)(?=[/._-])")


def read_corpus(
    path: str | Path,
    *,
    column: str = TEXT,
    split: str | None = None,
    tok: Tokenizer | None = None,
) -> Iterator[str]:
    """Texts of a corpus, in order; blank ones are left out.

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
    files = _corpus_files(Path(path), split)
    items = (item for file in files for item in _READERS[file.suffix](file, column))
    texts = (
        text
        for where, item in items
        if (text := _text_of(item, column, where, tok)).strip()
    )
    first = next(texts, None)
    if first is None:
        raise ValueError(
            f"{path} has no text; a corpus needs at least one text that is not blank"
        )
    return chain([first], texts)


# ---- what an item means --------------------------------------------------------------


def _text_of(item: Any, column: str, where: str, tok: Tokenizer | None) -> str:
    """The text of one item: itself, its column, or its conversation through the chat
    template.
    """
    value = _value_of(item, column, where)
    if isinstance(value, str):
        if len(value) > LINE:
            raise ValueError(
                f"{where} is longer than {LINE:,} characters; cut it into documents"
            )
        return sound(value, where)
    messages = conversation(value, where)
    if not messages:
        return ""
    if tok is None:
        raise ValueError(
            f"{where} is a conversation, which needs a model's chat template; give the "
            "texts, or a model"
        )
    try:
        return render(tok, messages, add_generation_prompt=False)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _value_of(item: Any, column: str, where: str) -> Any:
    if isinstance(item, str) or (isinstance(item, list) and item):
        return item
    fields = item if isinstance(item, dict) else {}
    if column in fields:
        names: tuple[str, ...] = (column,)
    elif column == TEXT:
        names = _default_fields(fields)
    else:
        names = ()
    values = [fields[name] for name in names]
    if any(value is None for value in values):
        return ""  # blank, as in a table
    if len(values) == 2:
        return _joined(values[0], values[1], where)
    if values and (isinstance(values[0], str) or _is_chat(values[0])):
        return values[0]
    kind = (
        f"an object with the fields {', '.join(fields)}"
        if fields
        else type(item).__name__
    )
    raise ValueError(
        f'{where} is {kind} where a string or {{"{column}": ...}} is expected, a text or messages; name the field that '
        "holds it (column=...)"
    )


def _default_fields(names: Any) -> tuple[str, ...]:
    """The fields that stand for `text` where there is none."""
    if chat := next((name for name in _CHATS if name in names), None):
        return (chat,)
    return _PAIR if all(name in names for name in _PAIR) else ()


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | dict) and len(value) > 0


def _joined(prompt: Any, completion: Any, where: str) -> Any:
    """Prompt and completion as one text, or as one conversation where either is
    messages.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    first = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else conversation(prompt, where)
    )
    if isinstance(completion, str):
        return continued(first, completion)
    return [*first, *conversation(completion, where)]


def conversation(value: Any, where: str) -> list[Message]:
    """Messages as chat templates read them; ValueError for what is none.

    Rows of "from" and "value" are taken too, and a table's columns of roles and
    contents; fields that are null are left out.
    """
    if isinstance(value, dict) and all(
        isinstance(column, list) for column in value.values()
    ):
        value = [dict(zip(value, row)) for row in zip(*value.values())]
    if not isinstance(value, list):
        raise ValueError(
            f"{where} is a {type(value).__name__} where a text or a list of messages "
            "is expected"
        )
    return [
        _message(item, f"{where}: message {number}")
        for number, item in enumerate(value)
    ]


def _message(item: Any, where: str) -> Message:
    fields = (
        {k: v for k, v in item.items() if v is not None}
        if isinstance(item, dict)
        else {}
    )
    if "from" in fields and "value" in fields:
        fields = {
            "role": _ROLES.get(fields["from"], fields["from"]),
            "content": fields["value"],
        }
    for name in ("role", "content"):
        if not isinstance(fields.get(name), str):
            raise ValueError(
                f"{where} needs the strings role and content; it has "
                f"{', '.join(fields) or 'neither'}"
            )
        sound(fields[name], where)
    return fields


# ---- which files ---------------------------------------------------------------------


def _corpus_files(path: Path, split: str | None) -> list[Path]:
    """The files of a corpus in reading order, all of one kind."""
    if not path.is_dir():
        if path.suffix not in _READERS:
            raise ValueError(
                f"{path}: a corpus ends in {_ENDINGS}, not in {path.suffix!r}, or is a "
                "folder of such files; "
                "rename or convert it"
            )
        check_regular(path)
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _described(path / "dataset_dict.json", "splits")
        if not all(
            isinstance(name, str) and Path(name).name == name != ".." for name in splits
        ):
            raise ValueError(
                f"{path}/dataset_dict.json names splits that are no folders of it; "
                "save the data set again"
            )
        return _corpus_files(path / _one_split(path, splits, split), None)
    if (path / "state.json").is_file():
        shards = _described(path / "state.json", "_data_files")
        return [
            _inside(path, item.get("filename") if isinstance(item, dict) else None)
            for item in shards
        ]
    files = [
        f
        for f in sorted(path.rglob("*"))
        if f.suffix in _READERS and f.name not in _NOT_TEXT
    ]
    files = [
        f
        for f in files
        if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts)
    ]
    kinds = sorted({f.suffix for f in files})
    if len(kinds) != 1:
        found = f"files ending in {' and '.join(kinds)}" if kinds else "no such file"
        raise ValueError(
            f"{path}: a corpus folder has files of one kind out of {_ENDINGS}, but "
            f"holds {found}"
        )
    for file in files:
        check_pointer(file)
    return _of_split(path, files, split)


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """Files of the split that their names tell, as on the Hugging Face hub; all where
    no name tells one.
    """
    names = [
        m[1] if (m := _SPLIT.search(str(f.relative_to(path)))) else "" for f in files
    ]
    if not any(names) and split is None:
        return files
    chosen = _one_split(path, sorted(set(names) - {""}), split)
    return [f for f, name in zip(files, names) if name == chosen]


def _one_split(path: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        asked = (
            "no split was named"
            if split is None
            else f"the split {split!r} is not there"
        )
        raise ValueError(
            f"{path}: {asked}; it has {', '.join(splits) or 'no splits'}: name one of "
            "them (split=...)"
        )
    return split


def _described(file: Path, name: str) -> list[Any]:
    """A list that a data set's own JSON file holds."""
    check_regular(file)
    value = json_value(utf8(file.read_bytes(), str(file)), str(file))
    listed = value.get(name) if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise ValueError(f"{file} has no list {name!r}; save the data set again")
    return listed


def _inside(folder: Path, name: Any) -> Path:
    """A file that a data set names, which must lie in its folder."""
    if (
        not isinstance(name, str)
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise ValueError(
            f"{folder}/state.json names the file {name!r}, which is none of that folder"
        )
    if Path(name).suffix not in _READERS:
        raise ValueError(
            f"{folder}/state.json names the file {name!r}; a corpus ends in {_ENDINGS}"
        )
    check_regular(folder / name)
    return folder / name


Item = tuple[str, Any]
"""Where it stands, and what it holds."""


# ---- one reader for each kind --------------------------------------------------------


def _json_list(path: Path, column: str) -> Iterator[Item]:
    return ((f"{path}: text {k}", item) for k, item in enumerate(_json_items(path)))


def _json_items(path: Path) -> Iterator[Any]:
    """The items of a JSON list, parsed one by one."""
    text, at, pieces, before = "", 0, _decoded(path), _OPEN
    while True:
        while found := _next_item(text, at, before, path):
            yield found[0]
            at, before = found[1], _COMMA
        more = "".join(
            islice(pieces, 1 + len(text) // _READ)
        )  # twice as much each time: a long item costs no square
        if not more:
            break
        text, at = text[at:] + more, 0
        if len(text) > LINE:
            raise ValueError(
                f"{path} has an item longer than {LINE:,} characters; a corpus is a "
                "list of texts"
            )
    if not (_EMPTY if before is _OPEN else _CLOSE).match(text, at):
        found = json_value(text if before is _OPEN else f"[0{text[at:]}", str(path))
        raise ValueError(
            f"{path} holds a {type(found).__name__} where a list of texts is expected; "
            "wrap it in [ ]"
        )


def _next_item(
    text: str, at: int, before: re.Pattern[str], path: Path
) -> tuple[Any, int] | None:
    """The JSON value after `before`, and where it ends; None where it does not end
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


def _parquet_rows(path: Path, column: str) -> Iterator[Item]:
    parquet = _pyarrow("pyarrow.parquet", path)
    with _opened(path, parquet.ParquetFile) as file:
        names = _table_columns(path, file.schema_arrow, column)
        for number in range(file.metadata.num_row_groups):
            if file.metadata.row_group(number).total_byte_size > _TABLE_GROUP:
                raise ValueError(
                    f"{path}: row group {number} is larger than {_TABLE_GROUP:,} "
                    "bytes; save smaller ones"
                )
        yield from _rows(
            path, file.iter_batches(_TABLE_ROWS, columns=list(names)), names
        )


def _arrow_rows(path: Path, column: str) -> Iterator[Item]:
    ipc, arrow = _pyarrow("pyarrow.ipc", path), _pyarrow("pyarrow", path)
    with arrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        table = _opened(source, ipc.open_file if is_file else ipc.open_stream, path)
        names = _table_columns(path, table.schema, column)
        batches = (
            map(table.get_batch, range(table.num_record_batches)) if is_file else table
        )
        slices = (
            b.slice(start, _TABLE_ROWS)
            for b in batches
            for start in range(0, b.num_rows, _TABLE_ROWS)
        )
        yield from _rows(path, slices, names)


_Reader = Callable[[Path, str], Iterator[Item]]
_READERS: dict[str, _Reader] = {
    ".json": _json_list,
    ".jsonl": _json_rows,
    ".txt": _txt_blocks,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
_ENDINGS = ", ".join(_READERS)


def _pyarrow(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{path}: {path.suffix} files need pyarrow; run: pip install "
            "'sae_attr[data]'"
        ) from error


def _opened(source: Any, opener: Callable[[Any], Any], path: Path | None = None) -> Any:
    """A table that is open; what is wrong with the file as a ValueError that names it."""
    try:
        return opener(source)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path or source} cannot be read as a table: {error}; save it again"
        ) from None


def _table_columns(path: Path, schema: Any, column: str) -> tuple[str, ...]:
    """The columns that are read; ValueError unless they are there, and hold text or
    messages.
    """
    names: tuple[str, ...] = (column,) if column in schema.names else ()
    if not names and column == TEXT:
        names = _default_fields(schema.names)
    if not names:
        raise ValueError(
            f"{path} has no column {column!r}; it has {', '.join(schema.names)}: name "
            "one (column=...)"
        )
    for name in names:
        kind = schema.field(name).type
        plain = str(getattr(kind, "value_type", kind))
        text = plain in ("string", "large_string", "string_view") and "list" not in str(
            kind
        )
        if not text and "struct" not in str(kind):
            raise ValueError(
                f"{path}: column {name!r} holds {kind} where text or messages are "
                "expected"
            )
    return names


def _rows(path: Path, batches: Iterator[Any], names: Sequence[str]) -> Iterator[Item]:
    """The rows of record batches as objects of the columns that are read; a null is
    blank.
    """
    number = 0
    while (batch := _next_batch(path, batches)) is not None:
        try:
            columns = [batch.column(name).to_pylist() for name in names]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: a text is not UTF-8 ({error.reason}); save the table again"
            ) from error
        for cells in zip(*columns, strict=True):
            blank = any(cell is None for cell in cells)
            yield f"{path}: row {number}", "" if blank else dict(zip(names, cells))
            number += 1


def _next_batch(path: Path, batches: Iterator[Any]) -> Any:
    try:
        return next(batches, None)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; save the table again") from None


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
