"""Effects of steering: against brute force, under known distributions, and where nearly
everything is missing.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from sae_attr.steering.effects import (
    detectable_effect,
    false_discovery,
    latent_effects,
    sign_flip_p,
)
from sae_attr.steering.groups import group_draws
from sae_attr.steering.paired import (
    EffectSettings,
    Paired,
    interval,
    paired,
    prompt_draws,
    weighted_mean,
)

NAN = float("nan")
FEW = EffectSettings(resamples=400, flips=500, permutations=500)


def ragged(
    seed: int = 0, k: int = 4, p: int = 7, s: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Graded completions with holes; the last latent has none at all, prompt 0 of
    latent 0 has one.
    """
    rng = np.random.default_rng(seed)
    behaviour, base = (
        rng.integers(0, 2, shape).astype(float) for shape in ((k, p, s), (p, s))
    )
    behaviour[rng.random(behaviour.shape) < 0.3], base[rng.random(base.shape) < 0.2] = (
        NAN,
        NAN,
    )
    behaviour[-1], behaviour[0, 0, 1:] = NAN, NAN
    behaviour[0, 0, 0], base[0, 0] = 1.0, 0.0
    return behaviour, base


def by_hand(
    behaviour: np.ndarray, base: np.ndarray, weighing: str
) -> tuple[float, int]:
    """Change of one latent, loop by loop, and the number of its pairs."""
    means, everything = [], []
    for steered_s, base_s in zip(behaviour, base):
        pairs = [x - y for x, y in zip(steered_s, base_s) if x == x and y == y]
        everything += pairs
        means += [sum(pairs) / len(pairs)] if pairs else []
    values = means if weighing == "prompts" else everything
    return (sum(values) / len(values) if values else NAN), len(everything)


@pytest.mark.parametrize("weighing", ["prompts", "pairs"])
def test_changes_and_counts_against_loops(weighing) -> None:
    behaviour, base = ragged()
    found = latent_effects(
        behaviour,
        base,
        settings=EffectSettings(weighing=weighing, resamples=50, flips=50),
    )
    for k in range(4):
        change, n = by_hand(behaviour[k], base, weighing)
        np.testing.assert_allclose(found.change_k[k], change, rtol=1e-12)
        assert found.pairs_k[k] == n
        assert found.missing_k[k] == pytest.approx(1 - n / 35)
    np.testing.assert_allclose(found.steered_k - found.base_k, found.change_k)


def test_the_two_ways_of_weighing_agree_where_nothing_is_missing_and_are_the_difference_of_rates() -> (
    None
):
    rng = np.random.default_rng(1)
    behaviour, base = rng.random((3, 6, 4)), rng.random((6, 4))
    a, b = (
        latent_effects(behaviour, base, settings=EffectSettings(weighing=w))
        for w in ("prompts", "pairs")
    )
    np.testing.assert_allclose(
        a.change_k, behaviour.mean((1, 2)) - base.mean(), rtol=1e-12
    )
    np.testing.assert_allclose(a.change_k, b.change_k, rtol=1e-12)
    np.testing.assert_allclose(
        a.se_k, (behaviour - base).mean(2).std(1, ddof=1) / np.sqrt(6), rtol=1e-12
    )


def test_a_latent_without_a_pair_is_unknown_everywhere_and_moves_no_other() -> None:
    behaviour, base = ragged()
    found = latent_effects(behaviour, base, settings=FEW)
    without = latent_effects(behaviour[:3], base, settings=FEW)
    for name, values in vars(found).items():
        if name == "pairs_k":
            assert values[3] == 0
        elif name == "missing_k":
            assert values[3] == 1
        else:
            assert np.isnan(values[3]), name
        np.testing.assert_array_equal(values[:3], getattr(without, name), err_msg=name)


def test_missing_is_not_zero() -> None:
    base = np.array([[0.0, 0.0], [1.0, 1.0]])
    steered = np.array([[[1.0, NAN], [NAN, 1.0]]])
    assert latent_effects(steered, base, settings=FEW).change_k[0] == 0.5
    assert latent_effects(np.nan_to_num(steered), base, settings=FEW).change_k[0] == 0.0


def test_a_latent_that_lost_most_of_its_answers_is_not_measured() -> None:
    behaviour, base = np.zeros((3, 10, 2)), np.ones((10, 2))
    base[:5] = np.nan  # what the unsteered model lost counts against nobody
    behaviour[1, 5:8] = np.nan  # 6 of 10 lost
    behaviour[2, 5:7] = np.nan  # 4 of 10 lost
    found = latent_effects(behaviour, base)
    np.testing.assert_array_equal(found.change_k, [-1, np.nan, -1])
    assert np.isnan([found.low_k[1], found.p_zero_k[1], found.se_k[1]]).all()
    kept = latent_effects(behaviour, base, settings=EffectSettings(most_missing=0.7))
    np.testing.assert_array_equal(kept.change_k, [-1, -1, -1])


def test_one_prompt_has_a_change_but_no_interval_and_no_evidence() -> None:
    found = latent_effects(np.ones((1, 1, 50)), np.zeros((1, 50)), settings=FEW)
    assert found.change_k[0] == 1.0
    assert found.p_zero_k[0] == 1.0
    assert np.isnan([found.se_k[0], found.low_k[0], found.high_k[0]]).all()
    assert np.isnan(detectable_effect(paired(np.ones((1, 1, 50)), np.zeros((1, 50)))))


def test_incoherence_rises_where_coherence_falls() -> None:
    behaviour, base = ragged()
    coherent = np.ones_like(behaviour)
    coherent[1, :, 0] = 0.0
    found = latent_effects(behaviour, base, coherent, np.ones_like(base), settings=FEW)
    np.testing.assert_allclose(found.incoherence_k, [0, 0.2, 0, 0], atol=1e-12)


def test_the_bootstrap_draws_prompts_and_reweighs_them() -> None:
    behaviour, base = ragged()
    pairs, draws = paired(behaviour, base), prompt_draws(7, settings=FEW)
    assert (draws.sum(1) == 7).all()
    assert draws.mean(0) == pytest.approx(np.ones(7), abs=0.2)
    means = [
        np.average(pairs.diff_kp[1], weights=pairs.weight_kp[1] * row) for row in draws
    ]
    found = latent_effects(behaviour, base, settings=FEW)
    np.testing.assert_allclose(
        [found.low_k[1], found.high_k[1]],
        np.quantile(means, [0.025, 0.975]),
        rtol=1e-12,
    )


def test_prompts_of_a_group_stand_or_fall_together() -> None:
    """Means are those of prompts; errors, tests and intervals are those of groups."""
    behaviour, base = ragged(p=12)
    group_p = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5])
    found = latent_effects(behaviour, base, settings=FEW, group_p=group_p)
    apart = latent_effects(behaviour, base, settings=FEW)
    np.testing.assert_allclose(found.change_k, apart.change_k, rtol=1e-12)
    np.testing.assert_allclose(found.base_k, apart.base_k, rtol=1e-12)
    np.testing.assert_array_equal(found.pairs_k, apart.pairs_k)
    single = paired(behaviour, base)
    draws = group_draws(group_p, settings=FEW)
    want = interval(weighted_mean(single.diff_kp, single.weight_kp, draws), FEW.level)
    np.testing.assert_allclose([found.low_k, found.high_k], want, rtol=1e-9)
    values_kp = single.diff_kp * single.weight_kp
    for k in range(3):
        of_group_g = np.bincount(group_p, values_kp[k])
        sums = [abs(np.dot(s, of_group_g)) for s in product((-1, 1), repeat=6)]
        extreme = np.mean(np.array(sums) >= abs(of_group_g.sum()) - 1e-9)
        assert found.p_zero_k[k] == pytest.approx(extreme)
        # The linearised error of a weighted mean, over groups.
        residual_g = np.bincount(
            group_p, single.weight_kp[k] * (single.diff_kp[k] - found.change_k[k])
        )
        error = np.sqrt((residual_g**2).sum() * 6 / 5) / single.weight_kp[k].sum()
        assert found.se_k[k] == pytest.approx(error)
    assert np.isnan(found.change_k[3])
    one = latent_effects(behaviour, base, settings=FEW, group_p=np.zeros(12, int))
    assert np.isnan([one.se_k[0], one.low_k[0]]).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    p_kp = np.clip(0.5 + 0.2 * rng.normal(size=(300, 40, 1)), 0, 1)
    behaviour = (rng.random((300, 40, 8)) < p_kp).astype(float)
    found = latent_effects(
        behaviour, np.full((40, 8), 0.3), settings=EffectSettings(flips=10)
    )
    covered = np.mean((found.low_k <= 0.2) & (found.high_k >= 0.2))
    assert 0.9 < covered < 0.98


def test_sign_flips_against_enumeration_with_ties_and_zeros() -> None:
    diff = np.array(
        [[0.5, -0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5]
    )
    pairs = Paired(diff, np.ones_like(diff), diff, np.ones(diff.shape, int), 1)
    want = []
    for row in diff:
        sums = [
            abs(sum(s * x for s, x in zip(signs, row)))
            for signs in product((-1, 1), repeat=5)
        ]
        want.append(np.mean([v >= abs(sum(row)) - 1e-9 for v in sums]))
    np.testing.assert_allclose(sign_flip_p(pairs), want)
    assert want[1:] == [2 / 32, 1.0]


def test_sign_flip_p_is_uniform_under_the_null_and_small_for_a_planted_effect() -> None:
    rng = np.random.default_rng(3)
    diff = rng.normal(size=(300, 30))
    diff[0] += 2.0
    p = sign_flip_p(Paired(diff, np.ones_like(diff), diff, np.ones(diff.shape, int), 1))
    assert p[0] < 1e-3
    assert stats.kstest(p[1:], "uniform").pvalue > 0.01
    q = false_discovery(p)
    assert q[0] < 0.05
    assert (q[1:] < 0.05).sum() <= 1


def test_false_discovery_by_its_definition_and_unknowns_are_no_tests() -> None:
    p = np.array([0.01, NAN, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(
        false_discovery(p), [0.04, NAN, 4 / 3 * 0.04, 4 / 3 * 0.04, 0.5]
    )
    assert np.isnan(false_discovery(np.array([NAN, NAN]))).all()


def test_the_detectable_effect_is_found_eight_times_in_ten() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(4000, 12))
    pairs = Paired(noise, np.ones_like(noise), noise, np.ones(noise.shape, int), 1)
    effect = detectable_effect(pairs)
    found = np.mean(stats.ttest_1samp(noise + effect, 0.0, axis=1).pvalue < 0.05)
    assert 0.77 < found < 0.84


def test_what_never_varied_says_nothing_about_what_could_be_found() -> None:
    assert np.isnan(detectable_effect(paired(np.zeros((2, 5, 3)), np.zeros((5, 3)))))


def test_bad_input_names_what_disagrees() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) and base_ps \(3, 5\)"):
        paired(np.zeros((2, 3, 4)), np.zeros((3, 5)))
    with pytest.raises(
        ValueError, match=r"behaviour_kps holds values from 0.0 to 87.0"
    ):
        paired(np.full((1, 1, 2), [0.0, 87.0]), np.zeros((1, 2)))
