from __future__ import annotations

import numpy as np
import pytest

from sae_attr.organism.score_agreement import (
    agreement,
    half_agreement,
    single_effects,
)


def test_agreement_of_scores_with_effects() -> None:
    effect = np.arange(10.0)
    scores_sn = np.stack([effect**3, -effect, np.zeros(10)])
    measured = agreement(scores_sn, effect[:, None], top=3)
    np.testing.assert_allclose(measured.spearman[:2], [1, -1])
    np.testing.assert_array_equal(measured.recall, [1, 0, 0])
    np.testing.assert_array_equal(measured.effect, [8, 1, 1])
    assert measured.best_effect == 8
    assert np.isnan(measured.spearman[2])  # a constant orders nothing
    assert measured.draws["effect"].shape == (0, 3)


def test_draws_are_of_the_prompts_that_effects_were_measured_on() -> None:
    rng = np.random.default_rng(0)
    effect_np = np.arange(40.0)[:, None] + rng.normal(0, 20, (40, 12))
    score_1n = np.arange(40.0)[None]
    measured = agreement(score_1n, effect_np, top=5, draws=400, seed=1)
    drawn_b = measured.draws["effect"][:, 0]
    of_prompts_p = effect_np[35:].mean(0)
    expected = of_prompts_p.std() / np.sqrt(12)
    assert drawn_b.std() == pytest.approx(expected, rel=0.15)
    assert drawn_b.mean() == pytest.approx(measured.effect[0], abs=3 * expected / 20)
    # All prompts alike: nothing to draw.
    same = agreement(score_1n, np.tile(effect_np[:, :1], 4), top=5, draws=20)
    assert np.ptp(same.draws["spearman"]) < 1e-12
    again = agreement(score_1n, effect_np, top=5, draws=400, seed=1)
    np.testing.assert_array_equal(again.draws["effect"], measured.draws["effect"])


def test_half_of_the_prompts_knows_what_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    true_n = rng.normal(size=200)
    noise_np = rng.normal(size=(200, 8))
    exact = half_agreement(np.tile(true_n[:, None], 8), top=20)
    assert exact.spearman[0] == pytest.approx(1)
    assert exact.effect[0] == pytest.approx(exact.best_effect)
    nothing = half_agreement(noise_np, top=20)
    assert abs(nothing.spearman[0]) < 0.2
    assert nothing.effect[0] < 0.5 * nothing.best_effect
    with pytest.raises(ValueError, match="1 prompt; two halves"):
        half_agreement(noise_np[:, :1])


def test_a_direction_alone_has_an_effect_and_no_rank() -> None:
    effect_kp = np.array([[0.2, 0.4], [np.nan, np.nan]])
    measured = single_effects(effect_kp, draws=50)
    assert measured.effect[0] == pytest.approx(0.3)
    assert np.isnan(measured.effect[1])
    assert np.isnan(measured.spearman).all()
    assert set(np.round(measured.draws["effect"][:, 0], 6)) == {0.2, 0.3, 0.4}
