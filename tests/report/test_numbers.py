"""Numbers as they are written."""

from __future__ import annotations

import pytest

from sae_attr.report.numbers import duration, p_value, signed

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.26, "+1.3"),
        (-0.5, "−0.5"),
        (0.0, "0.0"),
        (-0.04, "0.0"),
        (NAN, "–"),
        (None, "–"),
        (53, "+53.0"),
    ],
)
def test_signed(value, text) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "< 0.001"),
        (0.001, "= 0.001"),
        (0.0456, "= 0.046"),
        (0.31, "= 0.31"),
        (NAN, "–"),
    ],
)
def test_p_value(value, text) -> None:
    assert p_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.021, "0.02 s"),
        (12.44, "12.4 s"),
        (119.7, "2 min 0 s"),
        (3 * 3600 + 125, "3 h 2 min"),
        (NAN, "–"),
    ],
)
def test_duration(value, text) -> None:
    assert duration(value) == text
