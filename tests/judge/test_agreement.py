"""Statistics of agreement against values worked out by hand or by definition."""

from __future__ import annotations

import numpy as np
import pytest

from sae_attr.judge.agreement import (
    all_pairs,
    rate,
    score_agreement,
    verdict_agreement,
    wilson,
)
from sae_attr.judge.coefficients import kappa, krippendorff_alpha, quadratic_kappa

NAN = float("nan")


def test_kappas_against_their_definitions() -> None:
    # 20 both, 5 first only, 10 second only, 15 neither: p_o 0.7, p_e 0.5 (the textbook
    #   example)
    a = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    b = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    assert kappa(a, b) == pytest.approx(0.4)
    found = verdict_agreement(a, b)
    assert (found.both, found.first_only, found.second_only, found.neither) == (
        20,
        5,
        10,
        15,
    )
    assert found.agree.value == pytest.approx(0.7)
    assert found.kappa.low < 0.4 < found.kappa.high
    assert (found.first_rate.value, found.second_rate.value) == (0.5, 0.6)
    # quadratic weights by the table of observed and expected counts
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 6, 200).astype(float), rng.integers(1, 6, 200).astype(float)
    y[:120] = x[:120]
    table = np.zeros((5, 5))
    for i, j in zip(x, y):
        table[int(i) - 1, int(j) - 1] += 1 / 200
    weights = (np.arange(5)[:, None] - np.arange(5)) ** 2
    expected = table.sum(1)[:, None] * table.sum(0)
    assert quadratic_kappa(x, y) == pytest.approx(
        1 - (weights * table).sum() / (weights * expected).sum()
    )


def test_kappas_are_those_of_scikit_learn_on_whole_scales() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 6, 200), rng.integers(1, 6, 200)
    a[:120] = b[:120]
    x, y = a.astype(float), b.astype(float)
    assert kappa(x, y) == pytest.approx(metrics.cohen_kappa_score(a, b))
    expected = metrics.cohen_kappa_score(a, b, weights="quadratic")
    assert quadratic_kappa(x, y) == pytest.approx(expected)


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, four observers: 0.743 nominal, 0.849 interval."""
    rows = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    ratings = np.array(
        [[NAN if c == "." else float(c) for c in row.split()] for row in rows]
    )
    assert krippendorff_alpha(ratings, level="nominal") == pytest.approx(
        0.743, abs=5e-4
    )
    assert krippendorff_alpha(ratings) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(ratings[:, :1]) != krippendorff_alpha(
        ratings[:, :1]
    )  # one value: not defined
    with pytest.raises(ValueError, match="choose interval or nominal"):
        krippendorff_alpha(ratings, level="ratio")


def test_scores_are_compared_where_both_are_there() -> None:
    a, b = np.array([1, 2, 3, 4, NAN, 5]), np.array([2, 4, 6, NAN, 1, 10])
    found = score_agreement(a, b, resamples=50)
    assert (found.n, found.missing) == (4, pytest.approx(1 / 3))
    assert found.pearson.value == pytest.approx(1.0)
    assert found.spearman.value == pytest.approx(1.0)
    assert found.mean_difference.value == pytest.approx(-2.75)
    assert found.weighted_kappa.value < 0.7


def test_wilson_and_rates() -> None:
    found = wilson(3, 10)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (
        0.3,
        0.1078,
        0.6032,
    )
    assert np.isnan(wilson(0, 0).value)
    assert rate(np.array([1.0, NAN, 0.0, NAN])).value == 0.5


def test_clusters_are_drawn_whole() -> None:
    """Items that repeat within a question carry no more than the question."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=12), rng.normal(size=12)
    x, y, question = np.repeat(x, 40), np.repeat(y, 40), np.repeat(np.arange(12), 40)
    width = lambda e: e.high - e.low
    plain = score_agreement(x, y, resamples=200).pearson
    clustered = score_agreement(x, y, clusters_n=list(question), resamples=200).pearson
    assert width(clustered) > 3 * width(plain)
    assert (
        clustered
        == score_agreement(x, y, clusters_n=list(question), resamples=200).pearson
    )


def test_what_is_not_defined_is_nan() -> None:
    nothing = score_agreement(np.array([NAN, 1.0]), np.array([1.0, NAN]))
    assert (nothing.n, nothing.missing) == (0, 1.0)
    assert np.isnan(
        [nothing.pearson.value, nothing.weighted_kappa.low, nothing.spearman.high]
    ).all()
    flat = score_agreement(np.ones(5), np.ones(5), resamples=20)
    assert np.isnan([flat.pearson.value, flat.weighted_kappa.value]).all()
    assert np.isnan(kappa(np.ones(4), np.ones(4)))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 and 3 grades"):
        score_agreement(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"must be 1\.0, 0\.0 or NaN"):
        verdict_agreement(np.array([0.5]), np.array([1.0]))


def test_all_pairs() -> None:
    scores = {name: np.arange(6.0) + k for k, name in enumerate("abc")}
    found = all_pairs(
        scores, {"a": np.array([1.0, 0, 1, 0, 1, 0]), "b": np.ones(6)}, resamples=10
    )
    names = [(pair.first, pair.second) for pair in found]
    assert names == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.verdicts is not None for pair in found] == [True, False, False]
