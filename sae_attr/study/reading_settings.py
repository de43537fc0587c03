"""Settings of how latents are read: passages, tokens, and a reader's descriptions."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = ("passages", "answers", "neutral")
FIRES = ("all", "strong")


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """Sets what a study looks up for readers (docs/case_study.md, Reading the first
    latents).

    Args:
      passages, passage_tokens: top passages per latent, and how much corpus is
        searched; 0 leaves them out.
      interpreted: latents per method for which passages are looked for.
      logit_tokens: tokens of ordinary text over which the effect on the logits through
        the final norm is averaged; 0 leaves it out.
      shown: steered completions per latent and direction that the page shows.
      described: latents per method that a case's reader describes; none without one
        (`reader.kind`).
      described_random: random latents that it describes beside them, as controls.
      described_by: what a latent is described by, each on its own: its top `passages`,
        `answers` to prompts for effects while it is steered toward the behaviour, and
        answers to `neutral` prompts.
      described_answers: prompts of either kind for that, and as many others that test
        the description.
      described_tokens: of these answers at most; None for `sampling.max_new`, which a
        study of first words may have set too low to tell anything.
      tested: texts that fit and as many that do not, of either of two kinds, by which a
        description is tested; 0 leaves the test out.
      test_tokens: tokens of ordinary text, behind `passage_tokens`, that passages for
        tests come from.
      test_fires: passages that fit a latent are drawn from `all` texts where it is
        active, or from those where it is at least half as active as anywhere in them:
        `strong`.
    """

    passages: int = 4
    passage_tokens: int = 100_000
    interpreted: int = 20
    logit_tokens: int = 256
    shown: int = 2
    described: int = 3
    described_random: int = 6
    described_by: tuple[str, ...] = SOURCES
    described_answers: int = 6
    described_tokens: int | None = None
    tested: int = 10
    test_tokens: int = 100_000
    test_fires: str = "all"


def check_reading(settings: ReadingSettings) -> None:
    """Raises ValueError for settings by which no latent can be described or tested."""
    for source in settings.described_by:
        if source not in SOURCES:
            raise ValueError(
                f"described_by {source!r} is unknown; choose of {', '.join(SOURCES)}"
            )
    if len(set(settings.described_by)) < len(settings.described_by):
        raise ValueError(f"described_by {settings.described_by} names one source twice")
    if settings.test_fires not in FIRES:
        raise ValueError(
            f"test_fires {settings.test_fires!r} is unknown; choose of "
            f"{', '.join(FIRES)}"
        )
    for name in ("described", "described_random", "tested", "test_tokens"):
        if getattr(settings, name) < 0:
            raise ValueError(
                f"{name} is {getattr(settings, name)}; give a number from 0"
            )
    longest = settings.described_tokens
    if longest is not None and longest < 1:
        raise ValueError(
            f"described_tokens is {longest}; give at least 1, or None for "
            "sampling.max_new"
        )
    if settings.described_answers < 1:
        raise ValueError(
            f"described_answers is {settings.described_answers}; give at least 1, or "
            "leave answers and neutral out of described_by"
        )
