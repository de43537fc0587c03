"""The strength search on tables that were worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae_attr.steering import choose_strengths

GRID = np.array([0.5, 1.0, 2.0, 4.0])
NAN = float("nan")
RATES = np.array(
    [
        [
            0.0,
            0.1,
            0.3,
            0.9,
        ],  # passes up to 0.3 = 0.2 + 0.1, which no rounding may spoil
        [0.4, 0.1, 0.2, 0.9],  # the smallest fails, larger ones pass
        [0.9, 0.9, 0.9, 0.9],
        [0.0, 0.0, 0.0, 0.0],
        [0.0, NAN, 0.1, NAN],  # nothing was judged: does not pass
    ]
)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [2, 2, -1, 3, 2]),
        ({"pick": "before_failing"}, [2, -1, -1, 3, 0]),
        ({"rule": "absolute"}, [1, 1, -1, 3, 2]),
        (
            {"rule": "absolute", "budget": 0.95, "pick": "before_failing"},
            [3, 3, 3, 3, 0],
        ),
        ({"budget": 0.0}, [1, 2, -1, 3, 2]),
        # Of the coherent 80 % a quarter may be lost: 40 % incoherent pass.
        ({"rule": "proportional", "budget": 0.25}, [2, 2, -1, 3, 2]),
        ({"rule": "proportional", "budget": 0.0}, [1, 2, -1, 3, 2]),
        ({"rule": "proportional", "budget": 0.875}, [3, 3, 3, 3, 2]),
    ],
)
def test_which_strength_is_taken(options: dict[str, Any], want: list[int]) -> None:
    chosen = choose_strengths(RATES, GRID, 0.2, **options)
    assert chosen.index_k.tolist() == want
    assert chosen.strength_k.tolist() == [0.0 if k < 0 else GRID[k] for k in want]
    recorded = {"rule": "relative", "pick": "largest", "budget": 0.1} | options
    assert {name: getattr(chosen, name) for name in recorded} == recorded


def test_unsteered_rates_per_latent() -> None:
    chosen = choose_strengths(RATES[:2], GRID, np.array([0.0, 0.8]))
    assert chosen.index_k.tolist() == [1, 3]
    np.testing.assert_allclose(chosen.limit_k, [0.1, 0.9])
    assert choose_strengths(RATES[:0], GRID, 0.0).strength_k.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"strengths_c": GRID[:3]},
            r"rates of shape \(5, 4\) do not fit \(3,\) strengths",
        ),
        ({"strengths_c": GRID[::-1]}, "must be positive and ascend"),
        ({"strengths_c": -GRID[::-1]}, "must be positive and ascend"),
        ({"incoherent_kc": 100 * RATES}, r"must lie in 0..1"),
        ({"rule": "both"}, "rule 'both' is unknown"),
        ({"pick": "first"}, "pick 'first' is unknown"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_strengths(
            **{"incoherent_kc": RATES, "strengths_c": GRID, "unsteered": 0.2, **change}
        )
