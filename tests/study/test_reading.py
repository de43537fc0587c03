"""Passages to read: shading, and what says little about a text."""

from __future__ import annotations

from typing import Any

from sae_attr.study.reading import activity_note, shaded


def passage(**changes: Any) -> dict[str, Any]:
    plain = {
        "code": 4.0,
        "at": 1,
        "tokens": ["a", "b", "c", "d"],
        "codes": [0.0, 4.0, 0.01, 2.0],
        "first": False,
        "template": False,
    }
    return plain | changes


def test_levels_follow_the_activity_and_any_activity_shows() -> None:
    shown = shaded(passage())
    assert shown.levels == (0, 4, 1, 2)
    assert (shown.at, shown.gap) == (1, " ")


def test_tokens_with_their_own_spaces_stand_close_and_line_ends_are_seen() -> None:
    shown = shaded(passage(tokens=["a", " b", "\n", "d"]))
    assert shown.gap == ""
    assert shown.tokens == ("a", " b", "↵", "d")


def test_the_note_counts_first_and_template_tokens() -> None:
    passages = [passage(first=True, template=True), passage(template=True), passage()]
    assert activity_note(passages) == (
        "Most active at the row's first token in 1 of 3 passages and on tokens of the "
        "chat template in 2 of 3 passages."
    )
    assert activity_note([passage()]) == ""
