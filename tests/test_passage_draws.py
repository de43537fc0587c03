"""Passages for tests of descriptions: which places they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from sae_attr.passage_draws import (
    FITS,
    KINDS,
    ORDINARY,
    OTHER,
    CodedText,
    Drawing,
    drawn_passages,
)

TEXTS, LENGTH = 40, 30


def texts() -> list[CodedText]:
    """Texts of different tokens. Latent 0 is active in every second one at place 20,
    weakly in every fourth; latent 1 in all of them at place 8.
    """
    coded = []
    for number in range(TEXTS):
        codes_tl = np.zeros((LENGTH, 2))
        codes_tl[8, 1] = 1
        if number % 2 == 0:
            codes_tl[20, 0] = 0.4 if number % 4 == 0 else 1.0
        ids_t = 100 * number + np.arange(LENGTH)
        coded.append(CodedText(ids_t, np.arange(LENGTH) > 0, codes_tl))
    return coded


@pytest.mark.parametrize("strong", [False, True])
def test_each_kind_comes_from_places_of_its_own(strong: bool) -> None:
    drawing = Drawing(12, window=3, strong=strong)
    rng = np.random.default_rng(0)
    coded = texts()
    described = tuple((2 * 100 + np.arange(14, 21)).tolist())  # of text 2
    drawn = drawn_passages(coded, 0, 1, drawing, rng, known=[described])
    assert set(drawn) == set(KINDS)
    active = {100 * n + 20 for n in range(TEXTS) if n % 2 == 0}
    for ids in drawn[FITS]:
        number = ids[0] // 100
        assert ids == tuple(100 * number + np.arange(17, 24))
        assert number != 2  # it described the latent
        assert number % 4 == 2 or (number % 4 == 0 and not strong)
    assert len(drawn[FITS]) == (9 if strong else 12)
    for kind in (ORDINARY, OTHER):
        assert len(drawn[kind]) == 12
        for ids in drawn[kind]:
            assert not active & set(ids)
    assert all(ids[3] % 100 == 8 for ids in drawn[OTHER])
    places = [ids for kind in KINDS for ids in drawn[kind]]
    assert len(set(places)) == len(places)


def test_a_latent_that_is_active_everywhere_has_nothing_beside_it() -> None:
    coded = [CodedText(t.ids_t, t.counted_t, t.codes_tl + 1) for t in texts()]
    drawn = drawn_passages(coded, 0, 1, Drawing(5), np.random.default_rng(0))
    assert (len(drawn[FITS]), drawn[ORDINARY], drawn[OTHER]) == (5, [], [])
    empty = drawn_passages([], 0, 1, Drawing(5), np.random.default_rng(0))
    assert empty == {FITS: [], ORDINARY: [], OTHER: []}
