"""What a study shows beside its page."""

from __future__ import annotations

from typing import Any

import pytest
from etils import epath

from sae_attr.store import Result
from sae_attr.study.outputs import stage_cost


@pytest.mark.parametrize(
    ("meta", "cost"),
    [
        ({"samples": 3, "tokens": 40}, {"samples": 3, "tokens": 40}),
        ({"tokens": 4096}, {}),  # of a corpus: none of them is sampled
        (
            {"counts": {"labels": {"A": 2, "B": 1}, "resampled": 1}},
            {"graded": 3, "resampled": 1},
        ),
        ({}, {}),
    ],
)
def test_the_cost_of_a_stage_is_what_it_sampled_and_graded(
    meta: dict[str, Any], cost: dict[str, int]
) -> None:
    result = Result({}, meta, "key", 0.0, False, epath.Path("key"))
    assert stage_cost(result) == cost
