"""Values as a table's columns show and sort them."""

from __future__ import annotations

import pytest

from sae_attr.report.page.cells import cell
from sae_attr.report.page.records import Column

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "value", "text", "order"),
    [
        ("integer", 7, "7", "7.0"),
        ("number", -0.012345, "−0.0123", "-0.012345"),
        ("percent", 0.0876, "8.8 %", "0.0876"),
        ("points", -0.055, "−5.5", "-0.055"),
        ("number", NAN, "–", ""),
        ("integer", None, "–", ""),
        ("flag", True, "●", "1"),
        ("flag", None, "", ""),
        ("text", "Zed", "Zed", "zed"),
        ("tokens", (" B", "a"), " B a", "b a"),
        ("tokens", None, "", ""),
        ("number", -0.0, "0", "-0.0"),
        (
            "methods",
            ["delta_attribution", "my_own"],
            "Δ-attribution, my own",
            "δ-attribution, my own",
        ),
        ("methods", None, "", ""),
    ],
)
def test_cells(kind, value, text, order) -> None:
    found = cell(Column("k", "t", kind), value)
    assert (found.text, found.order) == (text, order)
