from __future__ import annotations

import numpy as np
import pytest

from sae_attr.analyses.dilution import best_latents, candidates, moved_shares

N = 8
EFFECTS = {"away": np.where(np.arange(N) < 2, 0.3, 0.0)}  # two latents matter
BASES = {"away": 0.6}


def test_a_score_that_follows_other_changes_loses_its_share() -> None:
    rng = np.random.default_rng(0)
    noise_pn = rng.normal(0, 0.05, (30, N))
    keeps_pn = noise_pn + (np.arange(N) < 2)
    # The same with two latents that changed more, and have nothing to do with it.
    diluted_pn = keeps_pn + 2 * (np.arange(N) >= N - 2)
    differences = {"attribution": keeps_pn, "activation": diluted_pn}
    first = {name: np.array([0, 1]) for name in differences}
    shares, overlap = moved_shares(
        differences, EFFECTS, BASES, first, draws=10, top=2, seed=0
    )
    np.testing.assert_allclose(shares[0], 0.5)
    np.testing.assert_allclose(shares[1], 0.0)
    np.testing.assert_allclose(overlap[0], 1.0)
    np.testing.assert_allclose(overlap[1], 0.0)


def test_latents_that_were_not_measured_are_not_ranked() -> None:
    effect_n = np.array([np.nan, 0.2, 0.1, np.nan])
    shares, _ = moved_shares(
        {"any": np.array([[4.0, 3.0, 2.0, 1.0]])},
        {"away": effect_n},
        {"away": 0.5},
        {"any": np.array([0])},
        draws=1,
        top=2,
        seed=0,
    )
    np.testing.assert_allclose(shares, 0.3)


def test_the_best_of_any_score_are_candidates() -> None:
    differences = {"a": np.arange(4.0)[None], "b": -np.arange(4.0)[None]}
    np.testing.assert_array_equal(candidates(differences, 1), [0, 3])
    assert best_latents(np.array([1.0, np.nan, 3.0]), 2).tolist() == [2, 0]


def test_a_fine_tune_without_the_behaviour_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate of the behaviour .* is 0"):
        moved_shares({}, {}, {"away": 0.0}, {}, draws=1, top=1, seed=0)
