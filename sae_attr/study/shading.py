"""Passages as a page shades them, and what says that they tell little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.report.page import ShadedPassage

_LEVELS = 4


def shaded(passage: Mapping[str, Any]) -> ShadedPassage:
    """Returns a passage with a level of shading for every token."""
    highest = max(passage["code"], 1e-30)
    levels = []
    for code in passage["codes"]:
        # Any activity shows: the lowest level is for none.
        level = 1 + int((_LEVELS - 1) * code / highest) if code > 0 else 0
        levels.append(min(level, _LEVELS))
    # A latent that is active on line ends would otherwise be active on nothing.
    tokens = tuple(token.replace("\n", "↵") for token in passage["tokens"])
    spaced = any(token[:1].isspace() for token in tokens)
    gap = "" if spaced else " "
    return ShadedPassage(tokens, tuple(levels), passage["at"], gap)


def activity_note(passages: Sequence[Mapping[str, Any]]) -> str:
    """Returns in how many passages the most active token says little about the text: it
    is the first of its row, or one that the chat template writes; "" where in none.
    """
    count, parts = len(passages), []
    first = sum(passage["first"] for passage in passages)
    template = sum(passage["template"] for passage in passages)
    if first:
        parts.append(f"at the row's first token in {first} of {count} passages")
    if template:
        parts.append(
            f"on tokens of the chat template in {template} of {count} passages"
        )
    return f"Most active {' and '.join(parts)}." if parts else ""
