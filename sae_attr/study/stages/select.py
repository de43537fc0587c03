"""The stage that selects the latents that are steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sae_attr.attribution.score_registry import key_of
from sae_attr.store import Arrays, Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.latent_scores import LatentScores
from sae_attr.study.selection import (
    Selection,
    about,
    preset_of,
    select,
    with_further,
    with_screened,
)
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages import dictionaries
from sae_attr.study.sweep_conditions import FIXED_SIGN

# 2: rates of candidates alone match no random latents.
VERSION = 2
_RANDOM_KEY = 12  # the purpose of the study's seed that random latents are drawn with


def best_latents(case: Case, attribution: Result, method: str) -> list[int] | None:
    """Returns a preset's best latents; None for a method that is no preset."""
    preset = preset_of(attribution.meta["summary"], method)
    if preset is None:
        return None
    return attribution.meta["columns"][preset]["latent"][: case.study.top]


def by_score(inputs: StageInputs) -> tuple[Selection, dict[str, str]]:
    """Returns the best latents of every method, random ones, and those that the studied
    method chose in other cases with the same dictionary; and why a method is left out.
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
    return select(
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


def select_latents(inputs: StageInputs, progress: Progress) -> Computed:
    """Selects latents by score, by the screen where the study has one, and those of the
    case's further dictionaries.
    """
    study, (selection, skipped) = inputs.case.study, by_score(inputs)
    if study.screen:
        attribution = inputs["attribute"]
        summary = attribution.meta["summary"]
        scope = summary["presets"][summary["primary"]]["tokens"]
        screened = {way: inputs[f"screen.{way}"].arrays for way in DIRECTIONS}
        selection = with_screened(
            selection,
            np.asarray(screened[DIRECTIONS[0]]["latents_k"]),
            screen_gain(screened, study.screen_rank),
            study.top,
            attribution.arrays[key_of("gradient", scope)],
        )
    if inputs.case.dictionaries:
        selection = _with_dictionaries(inputs, selection)
    return selection.arrays(), about(selection, skipped)


def _with_dictionaries(inputs: StageInputs, selection: Selection) -> Selection:
    """Returns a selection with the best latents of the case's further dictionaries."""
    attribution, ranked = inputs["attribute"], inputs[dictionaries.NAME]
    summary = attribution.meta["summary"]
    scope = summary["presets"][summary["primary"]]["tokens"]
    return with_further(
        selection,
        dictionaries.methods_of(ranked.arrays),
        LatentScores.load(attribution, ranked),
        key_of("gradient", scope),
    )


def screen_gain(screened: Mapping[str, Arrays], by: str) -> np.ndarray:
    """Returns how far each screened latent moves log p(C) − log p(C′) to the side that
    matters, nats.

    Args:
      screened: direction -> arrays of the stage `screen`.
      by: one of the directions, or both: their mean.
    """
    gains = {}
    for direction, arrays in screened.items():
        mean_k = np.asarray(arrays["change_kp"]).mean(1)
        gains[direction] = FIXED_SIGN[direction] * mean_k
    if by != "both":
        return gains[by]
    return np.mean(list(gains.values()), axis=0)


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the selection depends on."""
    study = case.study
    declared = {"methods": study.methods, "top": study.top, "random": study.random}
    return declared | ({"screen_rank": study.screen_rank} if study.screen else {})


def other_attributions(case: Case, cases: Sequence[Case]) -> list[str]:
    """Returns the attributions of other cases with the same dictionary."""
    names = []
    for other in cases:
        if other is not case and other.files.sae == case.files.sae:
            names.append(f"{other.name}.attribute")
    return names


def _also_needs(case: Case, cases: Sequence[Case]) -> list[str]:
    return [*dictionaries.of_case(case, cases), *other_attributions(case, cases)]


STAGE = CaseStage(
    "select",
    select_latents,
    fields,
    needs=("screen", "attribute"),
    also_needs=_also_needs,
    version=VERSION,
)
