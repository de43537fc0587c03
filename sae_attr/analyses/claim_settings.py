"""Settings of the claims' measurements, and the models that they are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sae_attr.analyses.completion_scores import ScoreKind
from sae_attr.organism.pair_sources import SOURCES
from sae_attr.organism.recipe import recipe_of
from sae_attr.store import Store
from sae_attr.study.evaluation import (
    Evaluation,
    EvaluationSettings,
    evaluation_settings,
)

# Δ as published, Δ of the preset `recommended`, and the lever.
KINDS = (
    ScoreKind("both", "prompt"),
    ScoreKind("active", "all"),
    ScoreKind("gradient", "all"),
)
ON_POLICY = "on_policy"
DILUTED = "misalignment"  # the behaviour whose fine-tune changes other things besides


@dataclass(frozen=True)
class ClaimSettings:
    """Sets how the post's claims are measured on model organisms.

    Args:
      seeds: an organism each.
      kind: of the misaligned fine-tune: mixed | calm | confounded.
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
      corpus_tokens: of ordinary text, for means.
      batch_size: rows per step.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    kind: str = "mixed"
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
    corpus_tokens: int = 20_000
    batch_size: int = 64

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

    def evaluation(self) -> EvaluationSettings:
        """Returns the settings of the evaluations that the measurements are made on."""
        return evaluation_settings(self, kinds=(self.kind,))


@dataclass(frozen=True, eq=False)
class ClaimCase:
    """One seed and behaviour: the fine-tune that shows it, and for misalignment those
    that change harmless things besides.

    Args:
      settings: of all cases.
      plain: the fine-tune without harmless changes.
      diluted: number of harmless changes -> the fine-tune that makes them; empty for
        other behaviours.
    """

    settings: ClaimSettings
    plain: Evaluation
    diluted: Mapping[int, Evaluation]

    @property
    def seed(self) -> int:
        """Of the organism."""
        return self.plain.recipe.seed

    @property
    def behaviour(self) -> str:
        """misalignment | validation."""
        return self.plain.behaviour

    def stage_name(self, stage: str) -> str:
        """Returns the whole name of one of its stages."""
        return self.plain.stage_name(stage)


def claim_cases(
    settings: ClaimSettings,
    organism: Mapping[str, Any],
    *,
    store: Store,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
) -> list[ClaimCase]:
    """Returns a case for every seed and behaviour, seed by seed.

    Args:
      organism: values for `recipe_of`, without seed, kind and harmless.
    """
    evaluation = settings.evaluation()

    def of(seed: int, behaviour: str, harmless: int) -> Evaluation:
        values = {**organism, "seed": seed, "kind": settings.kind, "harmless": harmless}
        return Evaluation(
            evaluation, recipe_of(values), behaviour, store, workdir, mesh
        )

    cases = []
    for seed in settings.seeds:
        for behaviour in settings.behaviours:
            diluted = {}
            if behaviour == DILUTED:
                diluted = {m: of(seed, behaviour, m) for m in settings.harmless if m}
            cases.append(ClaimCase(settings, of(seed, behaviour, 0), diluted))
    return cases
