"""The stage that samples completions of the model with the behaviour, for pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_attr.steering.plan import UNSTEERED
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import (
    CaseStage,
    StageInputs,
    declared_prompts,
    declared_sampling,
)
from sae_attr.study.case_sweep import CaseSweep
from sae_attr.study.input_files import fingerprints
from sae_attr.study.sample_sources import declared_server

VERSION = 1


def pair_sweep(case: Case) -> CaseSweep:
    """Returns the sweep of the unsteered model with the behaviour, on the prompts for
    pairs.
    """
    samples = case.settings.pair_samples
    return CaseSweep(case, "away", "pairs", (UNSTEERED,), 0.0, samples)


def sample(inputs: StageInputs, progress: Progress) -> Computed:
    """Samples `pair_samples` completions per prompt: arrays `tokens_rn`."""
    tokens_rn, counts = pair_sweep(inputs.case).sample(progress, "sample")
    return {"tokens_rn": tokens_rn}, counts


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the completions depend on."""
    return {
        **declared_source(case),
        "samples": case.settings.pair_samples,
        "sampling": declared_sampling(case),
        "seed": case.study.seed,
        **declared_server(case),
    }


def declared_source(case: Case) -> dict[str, Any]:
    """Returns the prompts for pairs, and what the model that answers them is read from."""
    declared = {
        "prompts": declared_prompts(case, "pairs"),
        "limit": case.settings.pair_prompts,
        "dtype": case.study.dtype,
        "resid_dtype": case.study.resid_dtype,
    }
    if not case.file_stages:
        declared["files"] = fingerprints(case.files)
    return declared


def file_stages(case: Case, cases: Sequence[Case]) -> Sequence[str]:
    """Returns the stages that write the case's files."""
    return case.file_stages


STAGE = CaseStage(
    "sample",
    sample,
    fields,
    also_needs=file_stages,
    version=VERSION,
    applies=lambda study: study.pairs_by == "samples",
)
