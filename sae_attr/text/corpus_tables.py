"""Readers of .parquet and .arrow corpora."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sae_attr.text.corpus_items import TEXT, Item, default_fields

_TABLE_ROWS = 256  # of a parquet file, decoded at once


_TABLE_GROUP = 1 << 33  # bytes of a row group as it says itself, before compression


def parquet_rows(path: Path, column: str) -> Iterator[Item]:
    """Yields the rows of a .parquet file."""
    parquet = _pyarrow("pyarrow.parquet", path)
    with _opened(path, parquet.ParquetFile) as file:
        names = _table_columns(path, file.schema_arrow, column)
        # A row group is decoded from one buffer: a few bytes of file may state any size.
        for number in range(file.metadata.num_row_groups):
            if file.metadata.row_group(number).total_byte_size > _TABLE_GROUP:
                raise ValueError(
                    f"{path}: row group {number} is larger than {_TABLE_GROUP:,} "
                    "bytes; save smaller ones"
                )
        yield from _rows(
            path, file.iter_batches(_TABLE_ROWS, columns=list(names)), names
        )


def arrow_rows(path: Path, column: str) -> Iterator[Item]:
    """Yields the rows of an .arrow file, of either of its two formats."""
    ipc, arrow = _pyarrow("pyarrow.ipc", path), _pyarrow("pyarrow", path)
    with arrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        table = _opened(source, ipc.open_file if is_file else ipc.open_stream, path)
        names = _table_columns(path, table.schema, column)
        batches = table
        if is_file:
            batches = map(table.get_batch, range(table.num_record_batches))
        yield from _rows(path, _slices(batches), names)


def _slices(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields few rows at a time: a record batch may hold the whole corpus, and as
    Python objects it would fill the memory.
    """
    for batch in batches:
        for start in range(0, batch.num_rows, _TABLE_ROWS):
            yield batch.slice(start, _TABLE_ROWS)


def _pyarrow(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{path}: {path.suffix} files need pyarrow; run: pip install "
            "'sae_attr[data]'"
        ) from error


def _opened(source: Any, opener: Callable[[Any], Any], path: Path | None = None) -> Any:
    """Opens a table; raises what is wrong with the file as a ValueError that names it."""
    try:
        return opener(source)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path or source} cannot be read as a table: {error}; save it again"
        ) from None


def _table_columns(path: Path, schema: Any, column: str) -> tuple[str, ...]:
    """Returns the columns to read; ValueError unless they are there, and hold text or
    messages.
    """
    names: tuple[str, ...] = (column,) if column in schema.names else ()
    if not names and column == TEXT:
        names = default_fields(schema.names)
    if not names:
        raise ValueError(
            f"{path} has no column {column!r}; it has {', '.join(schema.names)}: name "
            "one (column=...)"
        )
    for name in names:
        kind = schema.field(name).type
        plain = str(getattr(kind, "value_type", kind))
        # A dictionary-encoded column has the type of its values; a list of texts is no
        # text, and messages are structs at whatever depth.
        is_text = plain in ("string", "large_string", "string_view")
        is_text = is_text and "list" not in str(kind)
        if not is_text and "struct" not in str(kind):
            raise ValueError(
                f"{path}: column {name!r} holds {kind} where text or messages are "
                "expected"
            )
    return names


def _rows(path: Path, batches: Iterator[Any], names: Sequence[str]) -> Iterator[Item]:
    """Yields the rows of record batches as objects of the columns to read; a null is
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
