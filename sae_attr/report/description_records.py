"""What a reader wrote of latents, and what came of testing it."""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.comparison_records import Estimate


@dataclass(frozen=True)
class Description:
    """Holds what a reader wrote of a latent, and how well that tells which texts fit.

    Args:
      source: what the reader saw: `passages`, `answers` or `neutral` (answers to neutral
        prompts).
      text: as the reader wrote it; "" where its reply could not be read.
      accuracy: balanced accuracy on held-out texts; NaN where it was not tested.
      fits, ordinary, other: texts of each kind that were told rightly, of so many: that
        fit; passages or answers of no latent in particular; those of another latent.
    """

    source: str
    text: str
    accuracy: Estimate = Estimate()  # noqa: RUF009 (frozen)
    fits: tuple[int, int] = (0, 0)
    ordinary: tuple[int, int] = (0, 0)
    other: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SourceTest:
    """Balanced accuracies of all descriptions by one source.

    Args:
      source: as of a `Description`.
      latents, random: descriptions that were tested, of latents that methods selected
        and of random ones.
      mean, random_mean, difference: their means, and what is between them.
      ordinary, other: means of the selected latents against texts of one kind alone.
    """

    source: str
    latents: int
    random: int
    mean: Estimate
    random_mean: Estimate
    difference: Estimate
    ordinary: Estimate
    other: Estimate


@dataclass(frozen=True)
class ReaderTest:
    """Holds what came of having latents described.

    Args:
      tests: one per source.
      sentences: what the numbers show.
    """

    tests: tuple[SourceTest, ...]
    sentences: tuple[str, ...] = ()
