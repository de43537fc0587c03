"""Methods against random latents and each other: brute force, exact distributions,
planted differences.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from sae_attr.steering.compare import (
    adjusted,
    adjusted_counts,
    difference,
    differences,
    method_counts,
    panel_numbers,
)
from sae_attr.steering.effects import latent_effects
from sae_attr.steering.paired import (
    EffectSettings,
    Paired,
    paired,
)
from sae_attr.steering.random_band import (
    Band,
    SteeredDirection,
    beyond_random_p,
    outside,
    outside_p,
    random_band,
)

NAN = float("nan")
FEW = EffectSettings(resamples=300, permutations=2000, flips=100)


def study(
    change_k: np.ndarray,
    methods: dict[str, list[int]],
    *,
    direction="toward",
    prompts: int = 6,
) -> SteeredDirection:
    """Latents 100, 101, … whose changes are exactly these; NaN is a latent without a
    pair.
    """
    diff = np.repeat(np.asarray(change_k, float)[:, None], prompts, 1)
    weight = (~np.isnan(diff)).astype(float)
    pairs = Paired(
        np.nan_to_num(diff), weight, np.zeros_like(diff), weight.astype(int), 1
    )
    ids = 100 + np.arange(len(diff))
    return SteeredDirection(
        direction, ids, pairs, {k: [100 + i for i in v] for k, v in methods.items()}
    )


def test_band_and_counts_against_numpy() -> None:
    change = np.concatenate([np.linspace(-1, 1, 21), [0.95, -0.95, 0.9, 0.91, NAN]])
    methods = {"ours": [21, 22, 23, 24, 25], "random": list(range(21))}
    for direction in ("toward", "away"):
        case = study(change, methods, direction=direction)
        band = random_band(case)
        assert [band.low, band.high] == pytest.approx([-0.9, 0.9])
        ours, random = method_counts(case, settings=FEW)
        assert (ours.chosen, ours.measured, random.measured, band.latents) == (
            5,
            4,
            21,
            21,
        )
        above, below = 2, 1  # 0.9 lies on the edge: inside
        assert (ours.outside, ours.other_side) == (
            (above, below) if direction == "toward" else (below, above)
        )
        assert ours.mean == pytest.approx(np.nanmean(change[21:]))
        assert ours.low <= ours.mean <= ours.high
        assert ours.gap == pytest.approx(np.nanmean(change[21:]) - change[:21].mean())
        assert ours.gap_low <= ours.gap <= ours.gap_high
        assert np.isnan([random.gap, random.gap_p]).all()


def test_the_gap_to_random_latents_is_seen_where_it_is_planted() -> None:
    change = np.tile([-0.1, -0.05, 0.0, 0.05, 0.1], 10)
    change[:10] -= 0.3
    methods = {"strong": [*range(10)], "none": [*range(10, 20)]}
    case = study(change, methods | {"random": [*range(20, 50)]}, direction="away")
    strong, none, _ = method_counts(case, settings=FEW)
    assert strong.gap_high < 0
    assert strong.gap_p < 0.01
    assert none.gap_low < 0 < none.gap_high
    assert none.gap_p > 0.05


def test_as_many_random_latents_are_outside_as_expected() -> None:
    rng = np.random.default_rng(0)
    seen, expected = [], []
    for _ in range(200):
        case = study(
            rng.normal(size=60),
            {"ours": list(range(30)), "random": list(range(30, 60))},
            prompts=1,
        )
        ours, _ = method_counts(case, settings=EffectSettings(resamples=2))
        seen.append(ours.outside)
        expected.append(ours.expected)
    assert np.mean(seen) == pytest.approx(
        expected[0], abs=4 * np.std(seen) / np.sqrt(200)
    )


def test_the_p_of_a_count_is_the_share_of_relabellings_with_as_many() -> None:
    """21 random latents: the edge is the second from its end, so that the number of 5
    others beyond it can be counted over all orders of the 26.
    """
    band, settings = Band(-0.9, 0.9, 21), EffectSettings()
    rng = np.random.default_rng(0)
    ranks = rng.permuted(np.tile(np.arange(26), (40_000, 1)), axis=1)
    edge = np.sort(ranks[:, :21], axis=1)[:, 1:2]
    beyond = (ranks[:, 21:] < edge).sum(1)
    for count in range(6):
        share = (beyond >= count).mean()
        p = outside_p(count, 5, band, "away", settings)
        assert p == pytest.approx(share, abs=0.01), count
    assert outside_p(0, 5, band, "away", settings) == 1
    assert np.isnan(outside_p(2, 5, Band(NAN, NAN, 0), "away", settings))


def test_counts_are_corrected_together_and_random_latents_are_no_finding() -> None:
    change = np.concatenate([np.linspace(-1, 1, 21), [2.0, 2.0, 2.0, 0.0, 0.0]])
    methods = {"ours": [21, 22, 23], "other": [24, 25], "random": list(range(21))}
    counts = method_counts(study(change, methods), settings=FEW)
    ours, other, random = adjusted_counts(counts)
    assert ours.p < 0.02
    assert ours.q == pytest.approx(2 * ours.p)
    assert other.q == other.p == 1
    assert np.isnan([random.p, random.q]).all()


def test_the_edge_and_the_unmeasured_are_inside() -> None:
    change = np.array([-1, -0.5, NAN, 0.5, 1])
    assert np.flatnonzero(outside(change, -0.5, 0.5, "away")).tolist() == [0]
    assert np.flatnonzero(outside(change, -0.5, 0.5, "toward")).tolist() == [4]


def test_beyond_random_by_counting() -> None:
    case = study(
        np.array([0.3, 0.0, NAN, 0.1, 0.2, 0.3]),
        {"ours": [0, 1, 2], "random": [3, 4, 5]},
    )
    np.testing.assert_allclose(beyond_random_p(case)[:3], [2 / 4, 4 / 4, NAN])
    away = study(
        -np.array([0.3, 0.0, NAN, 0.1, 0.2, 0.3]),
        {"ours": [0], "random": [3, 4, 5]},
        direction="away",
    )
    assert beyond_random_p(away)[0] == 0.5


def test_a_difference_counts_what_both_chose_once() -> None:
    change = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, *np.linspace(-0.5, 0.5, 11)])
    case = study(
        change, {"a": [0, 1, 2, 3], "b": [3, 4, 5, 2], "random": list(range(6, 17))}
    )
    found = difference(case, "a", "b", settings=FEW)
    assert found.shared == (102, 103)
    assert (
        found.only_first_outside,
        found.only_second_outside,
        found.shared_outside,
        found.count,
    ) == (2, 1, 1, 1)
    assert found.mean == pytest.approx(change[:4].mean() - change[2:6].mean())
    back = difference(case, "b", "a", settings=FEW)
    assert (back.count, back.mean) == (-found.count, pytest.approx(-found.mean))


def test_permutations_against_all_relabellings() -> None:
    change = np.array(
        [0.9, 0.8, 0.7, 0.1, 0.75, 0.2, 0.0, -0.1, 0.6, *np.linspace(-0.5, 0.5, 11)]
    )
    case = study(
        change,
        {"a": [0, 1, 2, 3, 8], "b": [4, 5, 6, 7, 8], "random": list(range(9, 20))},
    )
    found = difference(
        case, "a", "b", settings=EffectSettings(resamples=10, permutations=20_000)
    )
    high = random_band(case).high
    for got, values in (
        (found.mean_p, change),
        (found.count_p, (change > high).astype(float)),
    ):
        total, seen = values[:8].sum(), values[:4].sum() - values[4:8].sum()
        drawn = [2 * values[list(c)].sum() - total for c in combinations(range(8), 4)]
        assert got == pytest.approx(
            np.mean(np.abs(drawn) >= abs(seen) - 1e-12), abs=0.02
        )


def test_counts_have_the_hypergeometric_p() -> None:
    change = np.concatenate(
        [np.ones(12), np.zeros(8), np.ones(4), np.zeros(16), np.linspace(-0.5, 0.5, 21)]
    )
    case = study(
        change,
        {"a": list(range(20)), "b": list(range(20, 40)), "random": list(range(40, 61))},
    )
    found = difference(
        case, "a", "b", settings=EffectSettings(resamples=10, permutations=20_000)
    )
    assert found.count == 8
    assert found.count_p == pytest.approx(
        stats.fisher_exact([[12, 8], [4, 16]]).pvalue, abs=0.005
    )


def test_p_values_are_uniform_when_labels_mean_nothing_and_small_when_they_do() -> None:
    rng, ps = np.random.default_rng(1), []
    names = {
        "a": list(range(15)),
        "b": list(range(15, 30)),
        "random": list(range(30, 60)),
    }
    few = EffectSettings(resamples=2, permutations=400)
    for _ in range(150):
        ps.append(
            difference(
                study(rng.normal(size=60), names, prompts=1), "a", "b", settings=few
            ).mean_p
        )
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    planted = rng.normal(size=60)
    planted[:15] += 3
    assert difference(study(planted, names), "a", "b", settings=few).mean_p < 0.01


def noisy(seed: int = 0) -> SteeredDirection:
    """40 latents over 20 prompts, some pairs missing; `a` does more than `b`."""
    rng = np.random.default_rng(seed)
    rate = np.r_[np.full(10, 0.5), np.full(10, 0.2), np.full(20, 0.2)][:, None, None]
    behaviour = (rng.random((40, 20, 5)) < rate).astype(float)
    behaviour[rng.random(behaviour.shape) < 0.1] = NAN
    base = (rng.random((20, 5)) < 0.2).astype(float)
    names = {
        "a": list(range(11)),
        "b": list(range(10, 20)),
        "random": list(range(20, 40)),
    }
    return SteeredDirection("toward", np.arange(40), paired(behaviour, base), names)


def test_the_intervals_say_what_was_drawn_again() -> None:
    case, found = noisy(), {}
    for drawn in ((), ("prompts",), ("latents",), ("prompts", "latents")):
        d = difference(
            case,
            "a",
            "b",
            settings=EffectSettings(resamples=500, permutations=10, resampled=drawn),
        )
        assert d.resampled == drawn
        assert d.mean_low <= d.mean <= d.mean_high or not drawn
        found[drawn] = (d.mean_high - d.mean_low, d.count_high - d.count_low)
    assert found[()] == (0, 0)
    assert (
        found["prompts", "latents"][0]
        > max(found["prompts",][0], found["latents",][0])
        > 0
    )
    with pytest.raises(ValueError, match=r"resampled names \['rows'\]"):
        difference(case, "a", "b", settings=EffectSettings(resampled=("rows",)))


def test_a_planted_difference_is_outside_its_interval_and_the_same_twice() -> None:
    case = noisy()
    once, again = (difference(case, "a", "b", settings=FEW) for _ in range(2))
    assert once.mean_low > 0
    assert once.count_low > 0
    assert vars(once) | {"count_q": 0, "mean_q": 0} == vars(again) | {
        "count_q": 0,
        "mean_q": 0,
    }


def test_every_comparison_is_corrected_together() -> None:
    case = noisy()
    found = adjusted(
        [*differences(case, settings=FEW), difference(case, "b", "a", settings=FEW)]
    )
    p = np.array([[d.count_p for d in found], [d.mean_p for d in found]])
    q = np.array([[d.count_q for d in found], [d.mean_q for d in found]])
    np.testing.assert_allclose(q.ravel(), stats.false_discovery_control(p.ravel()))
    assert adjusted([]) == ()


def test_latents_without_pairs_are_in_no_count_and_no_mean() -> None:
    change = np.array([NAN, NAN, NAN, NAN, *np.linspace(-0.5, 0.5, 11)])
    case = study(
        change, {"a": [0, 1], "b": [2, 3], "none": [], "random": [*range(4, 15), 0]}
    )
    a, *_, none, _ = method_counts(case, settings=FEW)
    assert (a.chosen, a.measured, a.outside, none.chosen) == (2, 0, 0, 0)
    assert np.isnan([a.mean, a.low, a.high, none.mean, none.low]).all()
    for second in ("b", "none"):
        found = difference(case, "a", second, settings=FEW)
        assert np.isnan([found.mean, found.mean_p, found.count_p, found.mean_low]).all()


def test_without_a_measured_random_latent_there_is_no_band_and_all_else_stands() -> (
    None
):
    case = study(
        np.array([NAN, NAN, -0.5, 0.1, -0.2]), {"a": [2, 3, 4], "random": [0, 1]}
    )
    assert random_band(case).latents == 0
    a, _ = method_counts(case, settings=FEW)
    assert (a.measured, a.outside, a.other_side) == (3, 0, 0)
    assert a.mean == pytest.approx(-0.2)
    assert np.isnan(a.expected)


def test_bad_input_names_what_disagrees() -> None:
    with pytest.raises(ValueError, match="without 'random' there is no band"):
        study(np.zeros(3), {"a": [0]})
    with pytest.raises(
        ValueError, match=r"a chose latents that were not steered toward: \[109\]"
    ):
        study(np.zeros(3), {"a": [9], "random": [1]})
    with pytest.raises(ValueError, match="names a latent twice"):
        SteeredDirection(
            "away",
            np.array([1, 1]),
            paired(np.zeros((2, 1, 1)), np.zeros((1, 1))),
            {"random": [1]},
        )
    with pytest.raises(ValueError, match="random latents make the band"):
        difference(noisy(), "a", "random")


def test_a_panel_holds_every_method_with_random_last() -> None:
    case = noisy()
    rng = np.random.default_rng(0)
    effects = latent_effects(rng.random((40, 20, 5)), rng.random((20, 5)), settings=FEW)
    panel = panel_numbers(case, effects, base_rate=0.2)
    assert [s["method"] for s in panel["strips"]] == ["a", "b", "random"]
    assert panel["strips"][1]["latents"] == list(range(10, 20))
    assert panel["strips"][1]["change"] == effects.change_k[10:20].tolist()
    assert (panel["prompts"], panel["samples"], panel["direction"]) == (20, 5, "toward")
