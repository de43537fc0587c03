"""Specificity: means, ratios and their intervals against brute force, and what cannot
be told.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from sae_attr.comparison_records import DirectionsControl, SetMean, TopicRate
from sae_attr.steering.effects import latent_effects
from sae_attr.steering.paired import (
    EffectSettings,
)
from sae_attr.steering.specificity import (
    directions_control,
    gaussian_directions,
    mean_rate,
    set_changes,
    set_means,
    text_means,
)
from sae_attr.steering.topic_rates import SetRates, generalisation, topic_rates

NAN = float("nan")
FEW = EffectSettings(resamples=300, permutations=300)
RNG = np.random.default_rng(0)
ROWS = {"first": np.array([0, 1, 2]), "random": np.array([3, 4, 5, 6])}


def changes(name: str, shift_k: np.ndarray, prompts: int = 30):
    """A set on which latents change the rate by about `shift_k`."""
    base = RNG.uniform(0.4, 0.6, prompts)
    noise = RNG.normal(0, 0.05, (len(shift_k), prompts))
    rate = np.clip(base + shift_k[:, None] + noise, 0, 1)
    return set_changes(name, rate, base, np.arange(prompts), settings=FEW)


def test_changes_of_single_prompts_are_those_of_latent_effects() -> None:
    rate, base = RNG.uniform(size=(5, 12)), RNG.uniform(size=12)
    of_set = set_changes("a", rate, base, np.arange(12), settings=FEW)
    effects = latent_effects(rate[..., None], base[:, None], settings=FEW)
    for name in ("change_k", "low_k", "high_k"):
        np.testing.assert_allclose(getattr(of_set, name), getattr(effects, name))
    assert of_set.base.value == pytest.approx(base.mean())
    grouped = set_changes("a", rate, base, np.arange(12) // 6, settings=FEW)
    np.testing.assert_allclose(grouped.change_k, of_set.change_k)
    assert not np.allclose(grouped.low_k, of_set.low_k)


def test_a_ratio_says_which_part_of_the_change_another_set_shows() -> None:
    shift = np.array([-0.3, -0.32, -0.28, 0.01, -0.02, 0.0, 0.02])
    sets = [
        changes("effects", shift),
        changes("as much", shift),
        changes("half", shift / 2),
        changes("none", 0 * shift),
    ]
    means = {(m.method, m.name): m for m in set_means("away", sets, ROWS, settings=FEW)}
    first = means["first", "effects"]
    assert first.latents == 3
    assert first.change.value == pytest.approx(sets[0].change_k[:3].mean())
    assert np.isnan(first.ratio.value)
    for name, ratio in (("as much", 1.0), ("half", 0.5), ("none", 0.0)):
        found = means["first", name].ratio
        assert found.value == pytest.approx(ratio, abs=0.1)
        assert found.low < found.value < found.high
        expected = means["first", name].change.value / first.change.value
        assert found.value == pytest.approx(expected)
    assert not means["first", "none"].ratio.is_clear
    # Random latents change nothing: a ratio of nothing is not a number.
    assert not means["random", "effects"].change.is_clear
    assert np.isnan(means["random", "half"].ratio.value)
    assert SetMean.load(asdict(means["first", "half"])) == means["first", "half"]


def test_a_latent_that_was_not_steered_is_in_no_mean() -> None:
    shift = np.array([-0.3, NAN, -0.3, 0.0, 0.0, 0.0, 0.0])
    base = np.full(8, 0.5)
    rate = np.broadcast_to(base + shift[:, None], (7, 8))
    of_set = set_changes("effects", rate, base, np.arange(8), settings=FEW)
    first, _ = set_means("away", [of_set], ROWS, settings=FEW)
    assert (first.latents, first.change.value) == (2, pytest.approx(-0.3))
    cost = text_means(np.where(np.isnan(shift), NAN, 0.2), ROWS, settings=FEW)
    assert cost["first"].value == pytest.approx(0.2)


def test_any_direction_beside_random_latents() -> None:
    rows = gaussian_directions(40, 24, seed=3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert abs(float(rows.mean())) < 0.03
    np.testing.assert_array_equal(rows, gaussian_directions(40, 24, seed=3))
    assert not np.array_equal(rows, gaussian_directions(40, 24, seed=4))
    alike = changes("effects", RNG.normal(-0.1, 0.03, 20))
    random = RNG.normal(-0.1, 0.03, 25)
    random[3] = NAN
    control = directions_control("away", 0.3, alike, random, settings=FEW)
    assert (control.directions, control.latents) == (20, 24)
    assert control.p > 0.05
    assert control.of_directions.low < control.of_directions.value
    other = directions_control("away", 0.3, alike, random - 0.2, settings=FEW)
    assert other.p < 0.02
    assert DirectionsControl.load(asdict(other)) == other


def of_topics(
    name: str, more: dict[str, float], per_topic: int = 12, *, two: bool = True
) -> SetRates:
    topics = [topic for topic in more for _ in range(per_topic)]
    other = RNG.uniform(0.1, 0.3, len(topics))
    rate = np.array([more[topic] for topic in topics]) + other
    groups = [f"{name}{i // 3}" for i in range(len(topics))]
    rate = rate + RNG.normal(0, 0.02, len(rate))
    return SetRates(name, topics, groups, rate, other if two else None)


def test_rates_by_topic_and_what_a_fine_tune_does_beside_its_own() -> None:
    sets = [
        of_topics("effects", {"art": 0.4, "health": 0.6, "law": 0.3}),
        of_topics("true_beliefs", {"health": 0.5, "": 0.0}),
    ]
    rates = topic_rates(sets, ["health"], settings=FEW)
    order = [(rate.name, rate.topic, rate.trained) for rate in rates]
    assert order == [
        ("effects", "", False),
        ("effects", "health", True),
        ("effects", "art", False),
        ("effects", "law", False),
        ("true_beliefs", "", False),
        ("true_beliefs", "health", True),
    ]
    art = rates[2]
    assert (art.prompts, art.difference.is_clear) == (12, True)
    assert art.difference.value == pytest.approx(art.rate.value - art.other.value)
    assert TopicRate.load(asdict(art)) == art
    on, beside = generalisation(sets, ["health"], settings=FEW) or (None, None)
    assert on is not None
    assert on.prompts == 24
    assert beside is not None
    assert beside.difference.value == pytest.approx(0.35, abs=0.02)
    stays = [of_topics("effects", {"art": 0.0, "health": 0.6, "law": 0.0})]
    _, beside = generalisation(stays, ["health"], settings=FEW) or (None, None)
    assert beside is not None
    assert not beside.difference.is_clear


@pytest.mark.parametrize(
    ("trained", "two"), [((), True), (("health",), False), (("sport",), True)]
)
def test_without_a_trained_topic_or_a_second_model_nothing_generalises(
    trained: tuple[str, ...], two: bool
) -> None:
    sets = [of_topics("effects", {"art": 0.1, "health": 0.2}, two=two)]
    assert generalisation(sets, trained, settings=FEW) is None


def test_one_group_has_no_interval() -> None:
    estimate = mean_rate(np.array([0.2, NAN, 0.4]), np.zeros(3, int), settings=FEW)
    assert estimate.value == pytest.approx(0.3)
    assert np.isnan([estimate.low, estimate.high]).all()
    assert not estimate.is_clear


def test_nothing_steered_changes_nothing() -> None:
    base = np.full(4, 0.5)
    nobody = set_changes("a", np.zeros((0, 4)), base, np.arange(4), settings=FEW)
    assert nobody.change_k.shape == nobody.low_k.shape == (0,)
    control = directions_control("away", 0.0, nobody, np.zeros(0), settings=FEW)
    assert (control.directions, control.latents) == (0, 0)
    none = {"first": np.zeros(0, int)}
    (mean,) = set_means("away", [nobody], none, settings=FEW)
    assert mean.latents == 0
    assert np.isnan(mean.change.value)
    assert np.isnan(text_means(np.zeros(0), none, settings=FEW)["first"].value)
