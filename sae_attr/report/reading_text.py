"""Latents to be read, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sae_attr.report.description_text import description_sentence
from sae_attr.report.method_style import method_name
from sae_attr.report.numbers import signed
from sae_attr.report.page.reading_records import (
    LatentReading,
    ShadedPassage,
    TokenEffect,
)
from sae_attr.report.safe_text import one_line

_STRONG = 3  # level from which a token of a passage stands in marks


def reading_text(readings: Iterable[LatentReading]) -> str:
    """Returns a paragraph per latent: its tokens, its page, and its passages, in which
    the tokens where it is most active stand in marks: «so».
    """
    return "\n\n".join("\n".join(_lines(reading)) for reading in readings) + "\n"


def _lines(reading: LatentReading) -> Iterator[str]:
    methods = ", ".join(map(method_name, reading.methods))
    yield f"latent {reading.latent} ({methods})"
    yield f"  nearest tokens: {' '.join(map(_quoted, reading.tokens))}"
    if reading.raised:
        yield f"  it raises: {_effects(reading.raised)}"
        yield f"  it lowers: {_effects(reading.lowered)}"
    if reading.address:
        yield f"  {reading.address}"
    if reading.note:
        yield f"  {reading.note}"
    for description in reading.descriptions:
        yield f"  {description_sentence(description)}"
    for passage in reading.passages:
        yield f"  | {one_line(marked(passage))}"


def _quoted(token: str) -> str:
    return repr(one_line(token))


def _effects(effects: Sequence[TokenEffect]) -> str:
    return ", ".join(f"{_quoted(e.token)} {signed(e.change, 2)}" for e in effects)


def marked(passage: ShadedPassage) -> str:
    """Returns a passage whose most active tokens stand in marks."""
    parts = []
    for token, level in zip(passage.tokens, passage.levels, strict=True):
        parts.append(f"«{token}»" if level >= _STRONG else token)
    return passage.gap.join(parts)
