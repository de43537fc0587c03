"""Tables as text for a terminal and as CSV for a spreadsheet, and results as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from sae_attr import __version__
from sae_attr.report.safe_text import one_line

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "tokenizers",
    "safetensors",
)
UNKNOWN = "–"

_WIDEST = 120  # characters of one cell in a terminal
# A spreadsheet runs a cell that begins with one of these, and tokens may.
_FORMULA = ("=", "+", "-", "@")

Columns = Mapping[str, Sequence[object] | np.ndarray]
"""Header -> values; all of one length."""


def text_table(
    columns: Columns,
    formats: Mapping[str, str] | None = None,
    *,
    right: Collection[str] = (),
) -> str:
    """Returns columns as lines of text: the headers, a rule, and a line per row.

    Numbers stand on the right of their column, text on the left. NaN shows as "–", None
    as an empty cell. Text is shown on one line and cut where it is very long.

    Args:
      columns: header -> values.
      formats: header -> format specification of its numbers, e.g. ".3f" or ",".
      right: headers of columns of text that stand on the right all the same.

    Raises:
      ValueError: columns of different lengths.
    """
    _check_lengths(columns)
    specs = formats or {}
    aligned = []
    for name, values in columns.items():
        cells = [_text_cell(value, specs.get(name, "")) for value in values]
        width = max(map(len, [name, *cells]))
        numeric = name in specs or any(map(_is_number, values))
        on_right = numeric or name in right
        pad = str.rjust if on_right else str.ljust
        aligned.append([pad(cell, width) for cell in (name, *cells)])
    lines = ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]
    header, *body = lines
    rule = "-" * max(map(len, lines))
    return "\n".join([header, rule, *body])


def _is_number(value: object) -> bool:
    """Tells numbers of Python and of numpy from everything else."""
    return isinstance(value, (int, float, np.number))


def _text_cell(value: object, spec: str) -> str:
    """Returns one value as a cell of `text_table`."""
    if value is None:
        return ""
    if _is_number(value):
        unknown = isinstance(value, (float, np.floating)) and math.isnan(value)
        return UNKNOWN if unknown else format(value, spec)
    return one_line(str(value), _WIDEST)


def csv_text(columns: Columns) -> str:
    """Returns columns as CSV, a line per row; floats read back exactly.

    Text that a spreadsheet would run as a formula (it begins with =, +, - or @) gets a
    leading quote; characters that act instead of being seen, tabs and line ends among
    them, are named (⟨U+000A⟩).

    Raises:
      ValueError: columns of different lengths.
    """
    _check_lengths(columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(map(_csv_cell, row))
    return out.getvalue()


def _csv_cell(value: object) -> str:
    """Returns one value as a cell of `csv_text`."""
    # Before numbers: bool is an int.
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (float, np.floating)):
        return repr(float(value))  # all digits: float() gives the same number back
    cell = one_line(str(value))
    # Numbers stay as they are: a minus sign begins them too.
    formula = isinstance(value, str) and cell.startswith(_FORMULA)
    return f"'{cell}" if formula else cell


def _check_lengths(columns: Columns) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths: {lengths}")


def columns_from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns rows of named values as columns; NaN where a row lacks one."""
    names: dict[str, None] = {}  # a dict, since a set has no order
    for row in rows:
        names |= dict.fromkeys(row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def json_text(value: Any) -> str:
    """Returns JSON with a line per value; NaN and infinities, which JSON does not have,
    become null.
    """
    # Through text and back: `default` is not called for floats, so that NaN can only be
    # caught where it is parsed.
    loose = json.dumps(value, default=plain)
    finite = json.loads(loose, parse_constant=lambda _: None)
    return json.dumps(finite, indent=1, ensure_ascii=False) + "\n"


def column_json_text(value: Mapping[str, Any]) -> str:
    """Returns JSON as `json_text` does, with a line per column where a value is columns:
    a table of many rows stays readable, and is a third as long.
    """
    lines = []
    for name, entry in value.items():
        text = json_text(entry).rstrip("\n")
        if isinstance(entry, Mapping) and all(map(_is_list, entry.values())):
            of_columns = [
                f" {json.dumps(key)}: {' '.join(json_text(column).split())}"
                for key, column in entry.items()
            ]
            text = "{\n" + ",\n".join(of_columns) + "\n}"
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def rounded(rows: Sequence[Mapping[str, Any]], digits: int = 4) -> list[dict[str, Any]]:
    """Returns rows whose floats have so many digits behind the point."""
    out = []
    for row in rows:
        entry = {}
        for name, value in row.items():
            entry[name] = round(value, digits) if isinstance(value, float) else value
        out.append(entry)
    return out


def plain(value: Any) -> Any:
    """Returns numpy numbers and arrays, sets and paths as plain values, for
    `json.dumps(default=plain)`.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def versions() -> dict[str, str]:
    """Returns the versions of this project, of Python, and of the libraries that numbers
    depend on.
    """
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "sae_attr": __version__,
        "python": platform.python_version(),
        **libraries,
    }
