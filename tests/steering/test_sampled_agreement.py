"""Exact against sampled changes: known answers, sampling noise, and whole groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sae_attr.steering.groups import group_draws, group_interval, group_numbers
from sae_attr.steering.paired import (
    EffectSettings,
    paired,
    prompt_draws,
)
from sae_attr.steering.sampled_agreement import (
    binomial_errors,
    exact_changes,
    sampled_agreement,
)

NAN = float("nan")
FEW = EffectSettings(resamples=300)
RNG = np.random.default_rng(0)


def sampled(rate_kp: np.ndarray, base_p: np.ndarray, samples: int, seed: int = 1):
    """Answers drawn with the exact probabilities."""
    rng = np.random.default_rng(seed)
    shape = (*rate_kp.shape, samples)
    steered = (rng.random(shape) < rate_kp[..., None]).astype(float)
    base = (rng.random((len(base_p), samples)) < base_p[:, None]).astype(float)
    return steered, base


def test_answers_drawn_with_the_exact_probabilities_agree_up_to_their_noise() -> None:
    rate, base = RNG.uniform(0.1, 0.9, (30, 24)), RNG.uniform(0.2, 0.6, 24)
    rate = 0.5 * rate + RNG.uniform(-0.1, 0.5, (30, 1))
    rate = np.clip(rate, 0, 1)
    pairs = paired(*sampled(rate, base, 8), settings=FEW)
    group = group_numbers([str(i // 3) for i in range(24)])
    agreement = sampled_agreement("away", rate, base, pairs, group, settings=FEW)
    assert agreement.latents == 30
    assert agreement.pearson.value > 0.85
    assert agreement.pearson.low < agreement.pearson.value < agreement.pearson.high
    differences = []
    for seed in range(40):
        drawn = paired(*sampled(rate, base, 8, seed), settings=FEW)
        gap_k = exact_changes(rate, base, drawn) - drawn.diff_kp.mean(1)
        differences.append(np.abs(gap_k).mean())
    assert np.mean(differences) == pytest.approx(agreement.noise, rel=0.15)
    # Unsteered answers that all latents share cost no correlation.
    correlations = []
    for seed in range(40):
        drawn = paired(*sampled(rate, base, 8, seed), settings=FEW)
        pair = (exact_changes(rate, base, drawn), drawn.diff_kp.mean(1))
        correlations.append(np.corrcoef(*pair)[0, 1])
    assert np.mean(correlations) == pytest.approx(agreement.attainable, abs=0.01)
    one = paired(*sampled(rate, base, 1), settings=FEW)
    few = sampled_agreement("away", rate, base, one, group, settings=FEW)
    assert few.attainable < agreement.attainable
    changes = exact_changes(rate, base, pairs)
    of_samples = pairs.diff_kp.mean(1)
    expected = np.asarray(stats.spearmanr(changes, of_samples))[0]
    assert agreement.spearman.value == pytest.approx(expected)
    signs = (np.sign(changes) == np.sign(of_samples)).mean()
    assert agreement.same_sign.value == pytest.approx(signs)
    # Other answers than the probabilities': beyond the noise.
    turned = paired(*sampled(1 - rate, base, 8), settings=FEW)
    other = sampled_agreement("away", rate, base, turned, group, settings=FEW)
    assert other.pearson.value < -0.8
    assert other.difference.value > 3 * other.noise


def test_the_standard_error_is_that_of_repeated_sampling() -> None:
    rate, base = np.full((1, 6), 0.3), np.full(6, 0.5)
    changes = []
    for seed in range(400):
        pairs = paired(*sampled(rate, base, 5, seed))
        changes.append(pairs.diff_kp.mean())
    error = binomial_errors(rate, base, pairs)
    assert error[0] == pytest.approx(np.sqrt((0.21 + 0.25) / 30))
    assert np.std(changes) == pytest.approx(error[0], rel=0.12)


def test_what_no_answer_is_known_of_is_in_neither_change() -> None:
    rate, base = RNG.uniform(size=(4, 5)), RNG.uniform(size=5)
    steered, unsteered = sampled(rate, base, 4)
    steered[3] = NAN  # a latent without a graded answer
    steered[0, 2] = NAN  # a prompt that a latent lost
    pairs = paired(steered, unsteered, settings=FEW)
    group = np.arange(5)
    agreement = sampled_agreement("toward", rate, base, pairs, group, settings=FEW)
    assert agreement.latents == 3
    kept = [0, 1, 3, 4]
    expected = (rate - base)[0, kept].mean()
    assert exact_changes(rate, base, pairs)[0] == pytest.approx(expected)
    nobody = paired(np.full_like(steered, NAN), unsteered, settings=FEW)
    empty = sampled_agreement("toward", rate, base, nobody, group, settings=FEW)
    assert empty.latents == 0
    assert np.isnan([empty.pearson.value, empty.difference.value, empty.noise]).all()


def test_whole_groups_are_drawn() -> None:
    group = group_numbers(["b", "a", "b", "c", "a"])
    np.testing.assert_array_equal(group, [0, 1, 0, 2, 1])
    counts = group_draws(group, settings=FEW)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    alone = group_draws(np.arange(5), settings=FEW)
    np.testing.assert_array_equal(alone, prompt_draws(5, settings=FEW))
    low, high = group_interval(np.ones((300, 2)), np.zeros(5, int), settings=FEW)
    assert np.isnan([low, high]).all()
