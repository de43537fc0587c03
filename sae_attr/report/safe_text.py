"""Text of unknown origin made harmless for readers: control characters are shown by name, and
long text is cut.
"""

from __future__ import annotations

import re

# Latents' tokens and models' answers hold such characters: one that turns the direction
# makes a line of a table or a terminal read as something else.
# Controls but tab and newline, those that turn the direction of text around, halves of
# surrogate pairs, and non-characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Returns text in which every character that would act instead of being seen is
    named: U+202E becomes ⟨U+202E⟩.
    """
    return _UNSEEN.sub(_named, text)


def _named(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"


# What stays in a text of several lines, and breaks the line of a table.
_BREAKS = re.compile("[\t\n]")


def one_line(text: str, most: int = 0) -> str:
    """Returns text as a cell of a table shows it: as `visible`, tabs and line ends
    named too, cut after `most` characters.
    """
    shown = _BREAKS.sub(_named, visible(text))
    if most:
        shown = shortened(shown, most)
    return shown


def shortened(text: str, most: int) -> str:
    """Returns the first `most` characters of text and how many there are, or the text
    itself where it is no longer.
    """
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text):,} characters)"
