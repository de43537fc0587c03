"""Balanced accuracies of descriptions against numbers by hand."""

from __future__ import annotations

import numpy as np
from scipy import stats

from sae_attr.passage_draws import FITS, ORDINARY, OTHER
from sae_attr.study.description_scores import (
    AGAINST,
    balanced_accuracy,
    difference_of_means,
    mean_accuracy,
    right_of,
)

VERDICTS = {
    FITS: [1.0, 1.0, 1.0, 0.0, None],
    ORDINARY: [0.0, 0.0, 0.0, 0.0],
    OTHER: [1.0, 0.0, 1.0, 1.0, 1.0, None],
}


def test_accuracy_weighs_both_sides_alike_and_leaves_unread_replies_out() -> None:
    assert right_of(VERDICTS, (FITS,)) == (3, 4)
    assert right_of(VERDICTS, AGAINST[""]) == (5, 9)
    accuracy = balanced_accuracy(VERDICTS, AGAINST[""])
    np.testing.assert_allclose(accuracy.value, (3 / 4 + 5 / 9) / 2)
    assert balanced_accuracy(VERDICTS, (ORDINARY,)).value == (3 / 4 + 1) / 2
    # Of a sum of two posteriors the interval is about that of a normal one.
    spread = np.hypot(stats.beta(3.5, 1.5).std(), stats.beta(5.5, 4.5).std()) / 2
    np.testing.assert_allclose((accuracy.high - accuracy.low) / 4, spread, rtol=0.06)


def test_an_answer_that_is_always_the_same_is_at_chance() -> None:
    for verdict in (0.0, 1.0):
        same = {FITS: [verdict] * 10, ORDINARY: [verdict] * 30}
        accuracy = balanced_accuracy(same, AGAINST[""])
        assert accuracy.value == 0.5
        assert accuracy.low < 0.5 < accuracy.high
    assert np.isnan(balanced_accuracy({FITS: [1.0]}, AGAINST[""]).value)


def test_groups_are_compared_over_latents() -> None:
    options = {"resamples": 2000, "seed": 0}
    first, second = [0.9, 0.8, 0.7, 0.8], [0.5, 0.6, 0.4]
    difference = difference_of_means(first, second, **options)
    np.testing.assert_allclose(difference.value, 0.3)
    assert 0.1 < difference.low < 0.3 < difference.high < 0.5
    np.testing.assert_allclose(mean_accuracy(first, **options).value, 0.8)
    assert np.isnan(mean_accuracy([0.9], **options).low)
    assert np.isnan(difference_of_means(first, [], **options).value)
