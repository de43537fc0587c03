"""What a case's section holds on rates without steering, specificity, and the check of
exact effects by sampled answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.comparison_records import (
    Direction,
    DirectionsControl,
    Estimate,
    SampledAgreement,
    SetMean,
    TopicRate,
)


@dataclass(frozen=True)
class UnsteeredRates:
    """Rates without steering on every set of prompts, by topic.

    Args:
      rates: in the order to show.
      two_models: the rates of a model without the behaviour stand beside them.
      sentences: what they show.
    """

    rates: tuple[TopicRate, ...]
    two_models: bool = False
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Specificity:
    """Holds what steering changes on other prompts and on ordinary text.

    Args:
      sets: names of the sets of prompts, the effects' first.
      figures: numbers of `figures.specificity_figure`, one per direction.
      means: of every method on every set.
      nats: direction -> method -> cost on ordinary text, nats per token; empty where it
        was not measured.
      controls: Gaussian directions beside random latents, one per direction.
      sentences: what the numbers show.
      text_tokens: tokens of ordinary text that were predicted.
    """

    sets: tuple[str, ...]
    figures: tuple[Mapping[str, Any], ...]
    means: tuple[SetMean, ...]
    nats: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    controls: tuple[DirectionsControl, ...] = ()
    sentences: tuple[str, ...] = ()
    text_tokens: int = 0

    def of_method(self, direction: str, method: str) -> list[SetMean]:
        """Returns the means of a method in a direction, in the order of the sets."""
        by_name = {}
        for mean in self.means:
            if (mean.direction, mean.method) == (direction, method):
                by_name[mean.name] = mean
        return [by_name[name] for name in self.sets if name in by_name]

    def lines(self) -> list[tuple[str, str]]:
        """Returns the directions and methods that have means, in order."""
        return list(dict.fromkeys((mean.direction, mean.method) for mean in self.means))


@dataclass(frozen=True)
class SampledCheck:
    """Exact effects of a few latents beside those of sampled and graded answers.

    Args:
      numbers: of `figures.sampled_figure`; None where nothing was sampled.
      agreements: one per direction.
      answers: direction -> counts by name (answers, without a grade, incoherent).
      sentences: what the numbers show, or why there are none.
    """

    numbers: Mapping[str, Any] | None = None
    agreements: tuple[SampledAgreement, ...] = ()
    answers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScreenAgreement:
    """Holds what a screen found in one direction, and how far it agrees with the
    measured effects of the latents that were steered.

    Args:
      tried: latents, random ones apart.
      clear: those that move the pairs further than random latents, to the side that
        matters.
      compared: latents that were steered.
      screen, proposer: Spearman's correlation with the measured changes, of the screen
        and of the score that proposed latents.
    """

    direction: Direction
    tried: int
    clear: int
    compared: int
    screen: Estimate
    proposer: Estimate


@dataclass(frozen=True)
class Screen:
    """Latents that were tried on held-out pairs.

    Args:
      numbers: of `figures.screen_figure`.
      agreements: one per direction.
      sentences: what the numbers show.
    """

    numbers: Mapping[str, Any]
    agreements: tuple[ScreenAgreement, ...]
    sentences: tuple[str, ...] = ()
