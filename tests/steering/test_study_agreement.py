"""Convergence of two studies: ranks by hand, chance by enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from sae_attr.steering.study_agreement import RankedStudy, convergence, overlap_chance

NAN = float("nan")


def make(
    title: str,
    ranked: list[int],
    selected: int,
    toward: dict[int, float],
    base: float = 0.1,
) -> RankedStudy:
    change = np.array(list(toward.values()))
    return RankedStudy(
        title,
        np.array(ranked),
        selected,
        np.array(list(toward)),
        change,
        change - 0.1,
        change + 0.1,
        base,
    )


ONE = make("one", [3, 5, 1, 0, 2, 4, 6, 7], 3, {3: 0.2, 5: 0.5, 1: NAN, 6: 0.3})
OTHER = make("other", [6, 3, 4, 5, 0, 1, 2], 2, {6: 0.4, 3: 0.1}, 0.3)


def test_each_first_latent_is_looked_up_in_the_other() -> None:
    found = convergence(ONE, OTHER, population=8)
    a, b = found.firsts
    assert (a.study, a.latent, a.rank_in_other, a.rank_p) == ("one", 3, 2, 2 / 8)
    assert (a.toward_rank, a.toward_of) == (
        3,
        3,
    )  # 5 and 6 did more; 1 was not measured
    assert (a.change, a.base_rate, a.other_change, a.other_base_rate) == (
        0.2,
        0.1,
        0.1,
        0.3,
    )
    assert (b.latent, b.rank_in_other, b.toward_rank, b.toward_of) == (6, 7, 1, 2)
    assert b.other_change == 0.3
    assert (found.shared, found.selected, found.population) == ((3,), (3, 2), 8)
    assert found.expected == pytest.approx(3 * 2 / 8)


def test_first_by_toward_effect_and_a_latent_the_other_never_saw() -> None:
    found = convergence(ONE, OTHER, population=8, first_by="toward")
    assert found.firsts[0].latent == 5
    assert np.isnan(found.firsts[0].other_change)
    lone = make("lone", [7, 3], 1, {})
    first = convergence(lone, OTHER, population=8, first_by="toward").firsts[0]
    assert (first.latent, first.rank_in_other, first.toward_rank, first.toward_of) == (
        7,
        None,
        None,
        0,
    )
    assert np.isnan([first.rank_p, first.change]).all()


def test_chance_of_the_overlap_against_enumeration_with_and_without_strata() -> None:
    one, other = {0, 1, 4}, {1, 4, 5}
    plain = np.zeros(7, int)
    sizes = [len(one & set(c)) for c in combinations(range(7), 3)]
    assert overlap_chance(one, other, plain) == pytest.approx(
        (np.mean(sizes), np.mean(np.array(sizes) >= 2))
    )
    assert overlap_chance(one, other, plain)[1] == pytest.approx(
        stats.hypergeom.sf(1, 7, 3, 3)
    )
    strata = np.array([0, 0, 0, 0, 1, 1, 1])
    sizes = [
        len(one & {*low, *high})
        for low in combinations(range(4), 1)
        for high in combinations(range(4, 7), 2)
    ]
    assert overlap_chance(one, other, strata) == pytest.approx(
        (np.mean(sizes), np.mean(np.array(sizes) >= 2))
    )


def test_chance_at_its_ends() -> None:
    assert overlap_chance({0}, {1}, np.zeros(5, int))[1] == 1.0
    assert overlap_chance(set(), {1}, np.zeros(5, int)) == (0.0, 1.0)
    assert overlap_chance({0, 1}, {0, 1}, np.zeros(2, int)) == pytest.approx((2.0, 1.0))
    assert overlap_chance({0}, {0}, np.array([0, -1, -1, 0])) == pytest.approx(
        (0.5, 0.5)
    )


def test_bad_input_names_what_disagrees() -> None:
    with pytest.raises(ValueError, match="empty chose no latent"):
        convergence(make("empty", [1, 2], 0, {}), OTHER, population=8)
    with pytest.raises(ValueError, match="one ranks latent 7, the population is 5"):
        convergence(ONE, OTHER, population=5)
    with pytest.raises(ValueError, match="3 strata for a population of 8"):
        convergence(ONE, OTHER, population=8, strata_n=np.zeros(3, int))
    with pytest.raises(ValueError, match="outside the population"):
        overlap_chance({1}, {0}, np.array([0, -1]))
