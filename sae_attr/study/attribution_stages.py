"""All stages of an attribution, in order, as part of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sae_attr.activations import MeanActivation
from sae_attr.hooks import Site
from sae_attr.parallel import from_main
from sae_attr.store import Result, Stage, run_stages
from sae_attr.study.setup import Setup
from sae_attr.study.stages import (
    ablation,
    aligned_activations,
    attribute,
    candidate_codes,
    firing,
    gradients,
    mean_activation,
    norm_limits,
    outliers,
    rankings,
    sae_check,
    scores,
)
from sae_attr.study.stages.context import Context

CORPUS_STAGES = (sae_check, norm_limits, mean_activation, firing)
PAIR_STAGES = (
    outliers,
    gradients,
    aligned_activations,
    scores,
    rankings,
    candidate_codes,
    ablation,
    attribute,
)


def attribution_stages(
    setup: Setup,
    *,
    prefix: str = "",
    pairs_stage: str | None = None,
    file_stages: tuple[str, ...] = (),
) -> list[Stage]:
    """Makes the stages of an attribution; the last, `attribute`, holds the report.

    Args:
      prefix, pairs_stage, file_stages: as in `Context`.
    """
    c = Context(setup, prefix, pairs_stage, file_stages)
    return [module.stage(c) for module in (*CORPUS_STAGES, *PAIR_STAGES)]


def run_setup(
    setup: Setup,
    stages: Sequence[Stage],
    *,
    only: Sequence[str] = (),
    until: str | None = None,
) -> Mapping[str, Result]:
    """Runs stages of a setup in its store: loads what is done, computes the rest.

    Args:
      only, until: as for `run_stages`.
    """
    return run_stages(setup.store, stages, only=only, until=until, agree=from_main)


def ordinary_mean(setup: Setup) -> MeanActivation:
    """Computes ā and the mean norm of the corpus; no SAE is needed."""
    c = Context(setup)
    stages = [module.stage(c) for module in (norm_limits, mean_activation)]
    return mean_activation.mean_of(run_setup(setup, stages)[mean_activation.NAME])


def corpus_limits(setup: Setup) -> dict[Site, float]:
    """Measures the largest norm that counts at each site."""
    stages = [norm_limits.stage(Context(setup))]
    return norm_limits.limits_of(run_setup(setup, stages)[norm_limits.NAME])


def attribution_names() -> list[str]:
    """Returns the names of the stages, in order."""
    return [module.NAME for module in (*CORPUS_STAGES, *PAIR_STAGES)]
