"""Settings of the claims' measurements, and the models that they are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

from sae_attr.analyses.completion_scores import ScoreKind
from sae_attr.analyses.organism_case import (
    OrganismCase,
    OrganismSettings,
    Where,
    organism_cases,
)
from sae_attr.organism.pair_sources import SOURCES
from sae_attr.study.evaluation import Evaluation

# Δ as published, Δ of the preset `recommended`, and the lever.
KINDS = (
    ScoreKind("both", "prompt"),
    ScoreKind("active", "all"),
    ScoreKind("gradient", "all"),
)
ON_POLICY = "on_policy"
DILUTED = "misalignment"  # the behaviour whose fine-tune changes other things besides


@dataclass(frozen=True)
class ClaimSettings(OrganismSettings):
    """Sets how the post's claims are measured on model organisms.

    Args:
      behaviours: of misalignment, validation.
      counts: numbers of pairs that are drawn.
      draws: sets of pairs that are drawn of each number.
      pair_prompts: prompts that are asked for pairs, at most.
      samples: answers of each.
      pairs: of the studied model, at most; twice the largest count are needed.
      sources: where pairs come from, of on_policy, prefilled, base, chat, written.
      source_prompts: prompts that the other sources are asked.
      source_pairs: pairs that are drawn of every source, from at most twice as many.
      harmless: harmless changes that a misaligned fine-tune makes besides, one fine-tune
        for each number; the first is the undiluted one.
      harmless_pairs: pairs of each of these fine-tunes.
      candidates: best latents of every score whose effects are measured on fine-tunes
        with harmless changes.
      top: latents whose recall, overlap and mean effect are reported.
      resamples: of each interval.
      strength_prompts, effect_prompts: that strengths are chosen on, and that effects
        are measured on.
      grid: strengths that are tried, in mean lengths.
      budget: of coherence, as a share.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    behaviours: tuple[str, ...] = ("misalignment", "validation")
    counts: tuple[int, ...] = (1, 2, 5, 10, 35, 148)
    draws: int = 40
    pair_prompts: int = 360
    samples: int = 8
    pairs: int = 296
    sources: tuple[str, ...] = SOURCES
    source_prompts: int = 400
    source_pairs: int = 35
    harmless: tuple[int, ...] = (0, 2, 5)
    harmless_pairs: int = 64
    candidates: int = 60
    top: int = 20
    resamples: int = 2000
    strength_prompts: int = 6
    effect_prompts: int = 18
    grid: tuple[float, ...] = (0.3, 0.5)
    budget: float = 0.10

    def __post_init__(self) -> None:
        if ON_POLICY not in self.sources:
            raise ValueError(
                f"sources {', '.join(self.sources) or 'none'}: {ON_POLICY} is what the "
                "others are compared with; add it"
            )
        if not self.harmless or self.harmless[0] != 0:
            raise ValueError(
                f"harmless {self.harmless}: the first fine-tune is the one without "
                "harmless changes; begin with 0"
            )
        if 2 * max(self.counts) > self.pairs:
            raise ValueError(
                f"counts: {max(self.counts)} pairs and as many other prompts are drawn "
                f"from {self.pairs} pairs; raise pairs to {2 * max(self.counts)}, or "
                "leave that count out"
            )


@dataclass(frozen=True, eq=False)
class ClaimCase(OrganismCase[ClaimSettings]):
    """One seed and behaviour, with the fine-tunes that change harmless things besides.

    Args:
      diluted: number of harmless changes -> the fine-tune that makes them; empty for
        other behaviours than misalignment.
    """

    diluted: Mapping[int, Evaluation]

    @property
    def seed(self) -> int:
        """The organism's seed."""
        return self.evaluation.recipe.seed

    @property
    def behaviour(self) -> str:
        """misalignment | validation."""
        return self.evaluation.behaviour


def claim_cases(
    settings: ClaimSettings, organism: Mapping[str, Any], **where: Unpack[Where]
) -> list[ClaimCase]:
    """Returns a case for every seed and behaviour, seed by seed.

    Args:
      organism: values for `recipe_of`, without seed, kind and harmless.
      where: results lie, pairs are written and models run.
    """
    return organism_cases(_claim_case, settings, organism, **where)


def _claim_case(settings: ClaimSettings, evaluation: Evaluation) -> ClaimCase:
    """Returns the case of a fine-tune without harmless changes."""
    diluted = {}
    if evaluation.behaviour == DILUTED:
        for changes in settings.harmless:
            if changes:
                recipe = replace(evaluation.recipe, harmless=changes)
                diluted[changes] = replace(evaluation, recipe=recipe)
    return ClaimCase(settings, evaluation, diluted)
