"""CSV that a spreadsheet reads back as written, and tables on edge cases."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from sae_attr.report.ranking_text import latent_table, legend, origin_table
from sae_attr.report.tables import csv_text, text_table


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)"])
def test_a_formula_is_quoted(text: str) -> None:
    assert read(csv_text({"a": [text], "b": np.array([text])}))[1] == [
        f"'{text}",
        f"'{text}",
    ]


@pytest.mark.parametrize(
    "text", ["", " =1", "plain", "a,b", 'say "x"', "é – Δ", "'quoted'"]
)
def test_other_text_comes_back_as_it_is(text: str) -> None:
    rows = read(csv_text({"tokens": np.array([text, "next"]), "after": [1, 2]}))
    assert rows == [["tokens", "after"], [text, "1"], ["next", "2"]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two⟨U+000A⟩lines"),
        ("\tx\r", "⟨U+0009⟩x⟨U+000D⟩"),
        ("\x1b[2J\x07", "⟨U+001B⟩[2J⟨U+0007⟩"),  # clears a terminal, and rings
        ("a\u202eb", "a⟨U+202E⟩b"),
    ],
)
def test_controls_are_named_in_csv_and_terminal(text: str, shown: str) -> None:
    assert read(csv_text({"tokens": [text]}))[1] == [shown]
    assert shown in latent_table(columns(tokens=[text, "b"]))


def test_a_token_of_thousands_of_characters_does_not_widen_a_table() -> None:
    widest = max(
        len(line)
        for line in latent_table(columns(tokens=["x" * 4000, "b"])).splitlines()
    )
    assert widest < 240
    assert "x… (4,000 characters)" in latent_table(columns(tokens=["x" * 4000, "b"]))
    assert read(csv_text({"tokens": ["x" * 4000]}))[1] == [
        "x" * 4000
    ]  # the file keeps all of it


def test_negative_numbers_are_no_formulas_and_floats_come_back_exactly() -> None:
    values = np.array([-0.1, 1e-30, 3.0, np.pi, -np.inf])
    rows = read(csv_text({"x": values, "i": np.array([-1, 2, 3, 4, 5])}))[1:]
    assert [float(row[0]) for row in rows] == values.tolist()
    assert [row[1] for row in rows] == ["-1", "2", "3", "4", "5"]


def test_float32_nan_and_bool_are_spelled_plainly() -> None:
    rows = read(
        csv_text(
            {"x": np.array([0.1, np.nan], np.float32), "f": np.array([True, False])}
        )
    )[1:]
    assert np.float32(rows[0][0]) == np.float32(0.1)
    assert [rows[1][0], rows[0][1], rows[1][1]] == ["nan", "true", "false"]


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different lengths: \{'a': 1, 'b': 2\}"):
        csv_text({"a": [1], "b": [1, 2]})


def columns(**changes: Any) -> dict[str, np.ndarray]:
    made = {
        "rank": [1, 2],
        "latent": [7, 123456],
        "delta": [0.5, -0.25],
        "se": [0.1, np.nan],
        "consistency": [1.0, 0.5],
        "projection": [1.0, -1.0],
        "gradient": [-2.0, 2.0],
        "firing_rate": [0.5, np.nan],
        "duplicate_of": [-1, 7],
        "tokens": ["'a' 'b'", "'c'"],
        "from_user": [0.75, 0.0],
        "from_completion": [0.25, 0.0],
    }
    return {name: np.array(values) for name, values in (made | changes).items()}


def test_a_table_sets_numbers_right_and_text_left_under_one_rule() -> None:
    columns = {
        "method": ["gradient", "LRP"],
        "n": [1_000, None],
        "r": np.array([0.5, np.nan], np.float32),
        "interval": ["0.1 [0.0, 0.2]", None],
    }
    text = text_table(columns, {"n": ",", "r": ".2f"}, right=("interval",))
    assert text.splitlines() == [
        "method        n     r        interval",
        "-------------------------------------",
        "gradient  1,000  0.50  0.1 [0.0, 0.2]",
        "LRP                 –",
    ]


def test_a_table_refuses_columns_of_different_length() -> None:
    with pytest.raises(ValueError, match=r"different lengths: \{'a': 1, 'b': 2\}"):
        text_table({"a": [1], "b": [1, 2]})


def test_the_table_shows_unknown_rates_duplicates_and_no_ablation() -> None:
    head, _, first, second = latent_table(columns()).splitlines()
    assert head.split()[-2:] == ["copy", "of"]
    assert "50.00%" in first
    assert first.endswith("'a' 'b'")
    assert " – " in second
    assert second.split()[-2:] == ["'c'", "7"]
    assert "!" not in first + second


def test_the_table_marks_where_first_order_fails() -> None:
    lines = latent_table(
        columns(exact=[0.4, np.nan], taylor_fails=[True, False])
    ).splitlines()[2:]
    assert "0.4000  !" in lines[0]
    assert "!" not in lines[1]


def test_the_table_is_cut_at_count_and_may_be_empty() -> None:
    assert len(latent_table(columns(), count=1).splitlines()) == 3
    empty = {name: values[:0] for name, values in columns().items()}
    assert len(latent_table(empty).splitlines()) == 2
    assert len(origin_table(empty).splitlines()) == 2


def test_columns_of_the_table_line_up() -> None:
    head, _, first, second = latent_table(columns()).splitlines()
    for title, text in (("latent", "7"), ("signs", "100%"), ("fires", "50.00%")):
        end = head.index(title) + len(title)
        assert first[:end].endswith(text), title
    assert second[: head.index("latent") + 6].endswith("123456")


def test_shares_are_percent_of_the_sum_and_a_sum_of_zero_is_no_share() -> None:
    head, _, first, second = origin_table(columns()).splitlines()
    assert head.split() == ["latent", "user", "completion"]
    assert first.split() == ["7", "75%", "25%"]
    assert second.split() == ["123456", "–", "–"]


def test_the_legend_names_the_scope_of_the_ablation_only_where_there_was_one() -> None:
    assert "exact" not in legend(None)
    assert "'prompt'" in legend("prompt")
