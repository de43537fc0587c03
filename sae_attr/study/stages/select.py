"""The stage that selects the latents that are steered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.selection import about, preset_of, select

# 2: rates of candidates alone match no random latents.
VERSION = 2
_RANDOM_KEY = 12  # the purpose of the study's seed that random latents are drawn with


def best_latents(case: Case, attribution: Result, method: str) -> list[int] | None:
    """Returns a preset's best latents; None for a method that is no preset."""
    preset = preset_of(attribution.meta["summary"], method)
    if preset is None:
        return None
    return attribution.meta["columns"][preset]["latent"][: case.study.top]


def select_latents(inputs: StageInputs, progress: Progress) -> Computed:
    """Selects the best latents of every method, random ones, and those that the studied
    method chose in other cases with the same dictionary.
    """
    case, study = inputs.case, inputs.case.study
    attribution = inputs["attribute"]
    summary = attribution.meta["summary"]
    rankings = {}
    for method in ("delta_attribution", "recommended"):
        best = best_latents(case, attribution, method)
        if best is not None:
            rankings[method] = best
    others: set[int] = set()
    for other in inputs.others("attribute"):
        others |= set(best_latents(case, other, study.methods[0]) or ())
    selection, skipped = select(
        rankings,
        attribution.arrays,
        scope=summary["presets"][summary["primary"]]["tokens"],
        methods=study.methods,
        top=study.top,
        random=study.random,
        key=jax.random.fold_in(jax.random.key(study.seed), _RANDOM_KEY),
        others=sorted(others),
        why=summary["skipped"],
    )
    return selection.arrays(), about(selection, skipped)


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the selection depends on."""
    study = case.study
    return {"methods": study.methods, "top": study.top, "random": study.random}


def other_attributions(case: Case, cases: Sequence[Case]) -> list[str]:
    """Returns the attributions of other cases with the same dictionary."""
    names = []
    for other in cases:
        if other is not case and other.files.sae == case.files.sae:
            names.append(f"{other.name}.attribute")
    return names


STAGE = CaseStage(
    "select",
    select_latents,
    fields,
    needs=("attribute",),
    also_needs=other_attributions,
    version=VERSION,
)
