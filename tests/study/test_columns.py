"""The schema of latents.csv."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sae_attr.study import columns
from sae_attr.study.columns import schema, written

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_columns_stand_in_the_schemas_order_and_values_are_written_alike() -> None:
    given = {
        "tokens": [["a", " b"], ["c"]],
        "methods": [("random",), ["delta_attribution", "recommended"]],
        "rank_recommended": [2, 1],
        "rank_gradient": [1, 2],
        "delta": np.array([0.5, 0.25]),
        "away": [None, 0.25],
        "latent": [7, 3],
    }
    made = written(given)
    assert list(made) == [
        "latent",
        "methods",
        "delta",
        "rank_recommended",
        "rank_gradient",
        "away",
        "tokens",
    ]
    assert made["tokens"] == ["'a' ' b'", "'c'"]
    assert made["methods"] == ["random", "delta_attribution recommended"]
    assert math.isnan(made["away"][0])


def test_a_column_of_another_schema_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no column 'push'; add it to attribution\.columns"
    ):
        written({"latent": [1], "push": [0.5]})


def test_the_documentation_has_every_column() -> None:
    text = (DOCS / "case_study.md").read_text(encoding="utf-8")
    assert [name for name in schema() if f"`{name}`" not in text] == []


def test_a_new_column_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with its meaning, at its place in the table of the schema; nothing else
    knows the columns of the file.
    """
    with pytest.raises(ValueError, match="no column 'entropy'"):
        written({"latent": [3], "entropy": [0.5]})
    monkeypatch.setattr(columns, "_AFTER", {"entropy": "of x", **columns._AFTER})
    table = written({"tokens": [["a"]], "entropy": [0.5], "delta": [1.0]})
    assert list(table) == ["delta", "entropy", "tokens"]
    assert schema()["entropy"] == "of x"
