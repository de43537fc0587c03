"""Values of a table's columns as the page shows and sorts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_attr.report.method_style import method_name
from sae_attr.report.numbers import UNKNOWN, is_known, share, signed
from sae_attr.report.page.records import Column


@dataclass(frozen=True)
class Cell:
    """A value as a table shows it.

    Args:
      text: what is shown.
      order: what it is sorted by: a number as text, "" where it is not known, or text.
      tokens: the parts of a cell of tokens.
    """

    text: str
    order: str
    tokens: tuple[str, ...] = ()


def cell(column: Column, value: Any) -> Cell:
    """Returns a value as its column shows it."""
    if column.kind == "tokens":
        parts = tuple(map(str, value or ()))
        text = " ".join(parts)
        return Cell(text, text.strip().lower(), parts)
    if column.kind == "methods":
        names = map(str, value or ())
        text = ", ".join(map(method_name, names))
        return Cell(text, text.lower())
    if column.kind == "text":
        text = "" if value is None else str(value)
        return Cell(text, text.strip().lower())
    if column.kind == "flag":
        order = "" if value is None else str(int(bool(value)))
        return Cell("●" if value else "", order)
    if isinstance(value, str):
        return Cell(value, "")  # a latent of a further dictionary comes behind numbers
    if not is_known(value):
        return Cell(UNKNOWN, "")  # an empty order comes last, whichever way one sorts
    return Cell(_number(column, value), repr(float(value)))


def _number(column: Column, value: float) -> str:
    """Returns a number with the digits and the unit of its column."""
    if column.kind == "integer":
        return f"{int(value)}".replace("-", "−")
    if column.kind == "number":
        digits = 3 if column.digits is None else column.digits
        return f"{value + 0.0:.{digits}g}".replace("-", "−")  # + 0.0: no −0
    digits = 1 if column.digits is None else column.digits
    if column.kind == "percent":
        return share(value, digits)
    return signed(100 * value, digits)
