"""Passages to read: shading, and what says little about a text."""

from __future__ import annotations

import re
from typing import Any

from sae_attr.report.page import LatentReading, TokenEffect
from sae_attr.report.reading_text import reading_text
from sae_attr.study.shading import activity_note, shaded


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


def test_the_text_marks_active_tokens_and_shows_control_characters_by_name() -> None:
    reading = LatentReading(
        7,
        ("gradient",),
        ("a\x1b[2J",),
        (shaded(passage(tokens=["a", "b\u202e", "c", "d"])),),
        raised=(TokenEffect("\x07", 0.5),),
        lowered=(TokenEffect("n", -0.25),),
        address="https://www.neuronpedia.org/m/s/7",
    )
    text = reading_text([reading])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    for part in (
        "nearest tokens: 'a⟨U+001B⟩[2J'",
        "it raises: '⟨U+0007⟩' +0.50",
        "it lowers: 'n' −0.25",
        "https://www.neuronpedia.org/m/s/7",
        "| a «b⟨U+202E⟩» c d\n",
    ):
        assert part in text
