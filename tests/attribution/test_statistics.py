"""Uncertainty over prompts, rankings, rivals drawn at random, overlaps, and the tokens
nearest to a direction.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sae_attr.attribution import (
    Ranking,
    agreement,
    cluster_statistics,
    overlap,
    random_matched,
    rank,
    split_half_spearman,
)
from sae_attr.attribution.statistics import duplicates, halves
from sae_attr.interpret import nearest_tokens

KEY = jax.random.key(0)


def test_mean_error_and_consistency_of_known_numbers() -> None:
    scores = np.array(
        [[1.0, -2.0, 0.0], [2.0, -1.0, 0.0], [3.0, 1.0, 0.0], [6.0, -6.0, 0.0]]
    )
    got = cluster_statistics(scores, KEY)
    np.testing.assert_allclose(got.mean_k, [3, -2, 0])
    # squared deviations 4 + 1 + 0 + 9 = 14 and 0 + 1 + 9 + 16 = 26, over (4 - 1) and 4
    # prompts
    np.testing.assert_allclose(got.se_k, [np.sqrt(14 / 12), np.sqrt(26 / 12), 0])
    np.testing.assert_allclose(got.consistency_k, [1, 0.75, 1])
    assert np.all(got.low_k <= got.mean_k)
    assert np.all(got.mean_k <= got.high_k)
    assert (got.low_k[0] >= 1, got.high_k[0] <= 6) == (True, True)
    again = cluster_statistics(scores, KEY)
    np.testing.assert_array_equal(got.low_k, again.low_k)


def test_one_prompt_has_no_error() -> None:
    got = cluster_statistics(np.array([[2.0, -1.0]]), KEY)
    assert np.isnan(got.se_k).all()
    np.testing.assert_array_equal([got.low_k, got.mean_k, got.high_k], [[2, -1]] * 3)


def test_the_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(600)
    scores = truth + rng.standard_normal((50, 600)) * np.exp(rng.standard_normal(600))
    got = cluster_statistics(scores, KEY, resamples=2000)
    covered = ((got.low_k <= truth) & (truth <= got.high_k)).mean()
    assert 0.90 < covered < 0.975
    np.testing.assert_allclose(
        (got.high_k - got.low_k).mean(), 2 * 1.96 * got.se_k.mean(), rtol=0.05
    )
    half = cluster_statistics(scores, KEY, resamples=2000, level=0.5)
    assert 0.43 < ((half.low_k <= truth) & (truth <= half.high_k)).mean() < 0.57


def test_the_bootstrap_draws_prompts_not_single_scores() -> None:
    """Two latents that are equal in every prompt stay equal in every resample, so their
    difference has no spread.
    """
    x = np.random.default_rng(1).standard_normal((20, 1))
    got = cluster_statistics(np.concatenate([x, x + 3], axis=1), KEY)
    np.testing.assert_allclose(
        got.high_k - got.low_k, (got.high_k - got.low_k)[0], rtol=1e-9
    )
    np.testing.assert_allclose(got.low_k[1] - got.low_k[0], 3)


def test_halves_are_halves() -> None:
    for p in (4, 7, 30):
        half = halves(p, KEY)
        assert half.shape == (p,)
        assert half.sum() == p // 2
        np.testing.assert_array_equal(half, halves(p, KEY))
    draws = np.array([halves(10, k) for k in jax.random.split(KEY, 100)])
    assert len(np.unique(draws, axis=0)) > 50  # of 252
    assert np.all(np.abs(draws.mean(0) - 0.5) < 0.2)


def test_split_halves_of_signal_and_of_noise() -> None:
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((40, 30))
    strong, spread = split_half_spearman(100 * np.arange(30) + noise, KEY, splits=20)
    assert (strong, spread) == pytest.approx((1, 0), abs=1e-9)
    weak, _ = split_half_spearman(noise - noise.mean(0), KEY, splits=20)
    assert weak == pytest.approx(-1, abs=1e-9)  # what one half has, the other lacks
    none, _ = split_half_spearman(rng.standard_normal((40, 400)), KEY, splits=20)
    assert abs(none) < 0.2
    for shape in ((3, 10), (10, 2)):
        assert np.isnan(split_half_spearman(rng.standard_normal(shape), KEY)).all()


def test_duplicates_and_antipodes() -> None:
    e = np.eye(4)
    dec = np.stack(
        [
            e[0],
            e[1],
            5 * e[0] + 0.1 * e[2],
            -e[1],
            e[2],
            e[0] + e[1],
            -3 * e[0],
            0 * e[0],
            0 * e[0],
        ]
    )
    np.testing.assert_array_equal(duplicates(dec), [-1, -1, 0, 1, -1, -1, 0, -1, -1])
    np.testing.assert_array_equal(
        duplicates(dec, cosine=0.7), [-1, -1, 0, 1, -1, 0, 0, -1, -1]
    )


# ---- rankings ------------------------------------------------------------------------


def test_rank_is_signed_stable_and_never_chooses_nan() -> None:
    scores = np.array([1.0, np.nan, -9.0, 3.0, 1.0, 0.0, 3.0, np.inf, -np.inf])
    got = rank("delta", scores, 4, tokens="prompt")
    np.testing.assert_array_equal(got.latents_k, [3, 6, 0, 4])
    assert (got.name, got.options) == ("delta", {"tokens": "prompt"})
    np.testing.assert_array_equal(
        rank("delta", scores, 100).latents_k, [3, 6, 0, 4, 5, 2]
    )
    many = rank("ties", np.zeros(1000), 10)
    np.testing.assert_array_equal(many.latents_k, np.arange(10))
    with pytest.raises(ValueError, match=r"ranking 'none' has no finite score at all"):
        rank("none", [np.nan, np.inf], 3)


def test_rank_of_shares_the_better_rank() -> None:
    scores = np.array([1.0, np.nan, -9.0, 3.0, 1.0, 0.0, 3.0])
    np.testing.assert_array_equal(
        rank("x", scores, 2).rank_of(np.arange(7)), [3, 0, 6, 1, 3, 5, 1]
    )
    unique = np.random.default_rng(0).permutation(50).astype(np.float32)
    best = rank("x", unique, 50)
    np.testing.assert_array_equal(best.rank_of(best.latents_k), np.arange(1, 51))


def ranking(latents: list[int], n: int = 20) -> Ranking:
    return Ranking("x", np.zeros(n), np.array(latents, int))


def test_overlap_is_a_share_of_the_shorter_list() -> None:
    assert overlap(ranking([1, 2, 3, 4]), ranking([4, 9, 1])) == pytest.approx(2 / 3)
    assert overlap(ranking([1, 2]), ranking([3])) == 0
    assert overlap(ranking([1, 2]), ranking([2, 1, 5])) == 1
    assert overlap(ranking([]), ranking([1])) == 0


def test_agreement_over_what_both_have() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal(40), rng.standard_normal(40)
    y = np.exp(x) + 0.1 * noise
    x[3], y[7], y[8] = np.nan, np.nan, np.inf
    kept = np.delete(np.arange(40), [3, 7, 8])
    got = agreement(x, y)
    assert got["n"] == 37
    assert got["pearson"] == pytest.approx(stats.pearsonr(x[kept], y[kept])[0])
    order = lambda v: np.argsort(np.argsort(v))
    assert got["spearman"] == pytest.approx(
        np.corrcoef(order(x[kept]), order(y[kept]))[0, 1]
    )
    assert got["spearman"] > got["pearson"]
    table = agreement(x[:36].reshape(6, 6), y[:36].reshape(6, 6))
    assert table["n"] == 33
    for a, b in ((np.ones(9), np.arange(9.0)), (np.arange(2.0), np.arange(2.0))):
        assert np.isnan([agreement(a, b)["pearson"], agreement(a, b)["spearman"]]).all()


# ---- latents at random ---------------------------------------------------------------


RATES = np.random.default_rng(5).choice([0.0, 1e-4, 3e-3, 0.1], 4000).astype(np.float32)


def test_random_latents_have_the_rates_of_their_models() -> None:
    like = np.concatenate(
        [
            np.flatnonzero(r == RATES)[:n]
            for r, n in ((np.float32(1e-4), 30), (np.float32(0.1), 10))
        ]
    )
    got = random_matched("random", RATES, like, 100, KEY)
    assert got.options["matched"] == "firing rate"
    assert len(np.unique(got.latents_k)) == 100
    assert not np.isin(got.latents_k, like).any()
    np.testing.assert_array_equal(
        RATES[got.latents_k], RATES[like[np.arange(100) % 40]]
    )
    np.testing.assert_array_equal(
        rank("again", got.scores_n, 100).latents_k, got.latents_k
    )


def test_nearest_rates_where_none_is_equal() -> None:
    rates = 10 ** np.random.default_rng(6).uniform(-5, -0.5, 3000)
    like = np.argsort(rates)[[300, 1500, 2700]]
    got = random_matched("random", rates, like, 60, KEY)
    gap = np.abs(
        np.log10(rates[got.latents_k]) - np.log10(rates[like[np.arange(60) % 3]])
    )
    assert (
        gap.max() < 0.1
    )  # 3,000 latents over 4.5 decades: 20 of them lie within about 0.015


def test_random_draws_depend_on_the_key_alone() -> None:
    like = np.flatnonzero(RATES > 0)[:20]
    draw = lambda key: random_matched("random", RATES, like, 50, key).latents_k
    np.testing.assert_array_equal(draw(KEY), draw(KEY))
    assert len(np.intersect1d(draw(KEY), draw(jax.random.key(1)))) < 50


def test_avoided_latents_and_unknown_rates_are_never_drawn() -> None:
    rates = np.where(np.arange(200) % 4 == 0, np.nan, 0.01)
    avoid = np.arange(100)
    got = random_matched("random", rates, np.array([1]), 500, KEY, avoid=avoid)
    np.testing.assert_array_equal(
        np.sort(got.latents_k), [i for i in range(100, 200) if i % 4]
    )
    assert not np.isin(1, got.latents_k)


def test_dead_latents_are_drawn_for_dead_ones_only() -> None:
    rates = np.zeros(300)
    rates[:30] = 1e-5
    got = random_matched("random", rates, np.arange(5), 25, KEY)
    np.testing.assert_array_equal(np.sort(got.latents_k), np.arange(5, 30))
    more = random_matched("random", rates, np.arange(5), 100, KEY)
    np.testing.assert_array_equal(np.sort(more.latents_k), np.arange(5, 30))
    mixed = random_matched("random", rates, np.array([0, 200]), 80, KEY)
    np.testing.assert_array_equal(
        np.sort(rates[mixed.latents_k])[-29:], np.full(29, 1e-5, np.float64)
    )
    dead = random_matched("random", rates, np.arange(100, 105), 25, KEY)
    assert not rates[dead.latents_k].any()


def test_without_rates_the_draw_is_uniform() -> None:
    like = np.array([0, 1])
    draws = [
        random_matched("random", np.full(12, np.nan), like, 5, k)
        for k in jax.random.split(KEY, 300)
    ]
    assert {d.options["matched"] for d in draws} == {"nothing"}
    counts = np.bincount(np.concatenate([d.latents_k for d in draws]), minlength=12)
    assert not counts[:2].any()
    assert stats.chisquare(counts[2:]).pvalue > 1e-3


# ---- tokens --------------------------------------------------------------------------


def test_nearest_tokens_finds_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    unembedding = rng.standard_normal((500, 64)) * np.exp(rng.standard_normal((500, 1)))
    unit = unembedding / np.linalg.norm(unembedding, axis=1, keepdims=True)
    planted = 3 * unit[17] + 2 * unit[400]
    ids, cosines = nearest_tokens(
        jnp.asarray(np.stack([planted, -unembedding[3]])),
        jnp.asarray(unembedding),
        count=4,
    )
    assert ids.shape == cosines.shape == (2, 4)
    np.testing.assert_array_equal(ids[0, :2], [17, 400])
    np.testing.assert_allclose(
        cosines[0], unit[ids[0]] @ planted / np.linalg.norm(planted), rtol=1e-5
    )
    assert np.all(np.diff(cosines) <= 0)
    assert 3 not in np.asarray(ids[1])
