"""Pairs that are held out share no prompt and no group with those that rank."""

from __future__ import annotations

import pytest

from sae_attr.text.held_out import hold_out

RECORDS = [{"id": f"q{i}"} for i in range(20)]
GROUPS = {f"q{i}": f"belief {i // 2}" for i in range(10)}


def test_groups_and_prompts_are_on_one_side_alone() -> None:
    ranking, held = hold_out(RECORDS, GROUPS, 7)
    assert len(held) in (7, 8)  # whole groups
    assert sorted(ranking + held, key=RECORDS.index) == RECORDS
    sides = [{GROUPS.get(r["id"], r["id"]) for r in side} for side in (ranking, held)]
    assert not sides[0] & sides[1]


def test_the_order_of_the_file_decides_nothing() -> None:
    _, held = hold_out(RECORDS, GROUPS, 7)
    _, backwards = hold_out(RECORDS[::-1], GROUPS, 7)
    assert {r["id"] for r in backwards} == {r["id"] for r in held}


def test_nothing_left_to_rank_by_is_an_error() -> None:
    message = r"screen_pairs=25 holds out all 20 prompts .*set it lower"
    with pytest.raises(ValueError, match=message):
        hold_out(RECORDS, GROUPS, 25)
