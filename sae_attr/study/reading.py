"""The first latents of every method with the passages that activate them most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_attr.report.method_style import RANDOM
from sae_attr.report.page import LatentReading, ShadedPassage, TokenEffect
from sae_attr.study.case_results import CaseResults

FIRST = 6  # latents of every method
_LEVELS = 4


def first_latents(results: CaseResults) -> Iterator[LatentReading]:
    """Yields the first latents of every method but the random one, each once."""
    compared = results.selection.compared()
    seen: set[int] = set()
    for name, latents in compared.items():
        if name == RANDOM:
            continue
        for latent in latents[:FIRST].tolist():
            reading = _reading(results, latent)
            if latent in seen or not (reading.passages or reading.raised):
                continue
            seen.add(latent)
            yield reading


def _reading(results: CaseResults, latent: int) -> LatentReading:
    """Returns what was looked up of a latent."""
    interpreted = results.of["interpret"].meta
    passages = interpreted["passages"].get(str(latent), [])
    effects = interpreted["effects"].get(str(latent), {})
    methods = []
    for name, latents in results.selection.compared().items():
        if latent in latents:
            methods.append(name)
    return LatentReading(
        latent,
        tuple(methods),
        tuple(interpreted["nearest"][str(latent)]),
        tuple(map(shaded, passages)),
        activity_note(passages),
        raised=_effects(effects.get("raised", ())),
        lowered=_effects(effects.get("lowered", ())),
        address=results.case.setup.sae_files.latent_page(latent),
    )


def _effects(pairs: Sequence[Sequence[Any]]) -> tuple[TokenEffect, ...]:
    return tuple(TokenEffect(token, change) for token, change in pairs)


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
