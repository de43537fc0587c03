"""The stage that splits Δ of the steered latents by the roles of tokens, and ranks the
dictionary where only the user's tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.presets import Preset, decoder_rows
from sae_attr.attribution.roles import role_parts, scores_of_roles
from sae_attr.attribution.score_registry import Candidates, key_of
from sae_attr.store import Arrays, Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.latent_scores import LatentScores
from sae_attr.study.selection import Selection, preset_of
from sae_attr.study.stages import dictionaries
from sae_attr.study.stages.evidence import NEEDS, evidence_of
from sae_attr.text.rows import USER

VERSION = 1


def split_by_role(inputs: StageInputs, progress: Progress) -> Computed:
    """Computes `parts.PRESET`, Δ of the steered latents by role `[roles, u]` under the
    preset of every method that is one, and `user_only_n`, the studied method's score of
    every latent where only the user's tokens count.
    """
    setup, study = inputs.case.setup, inputs.case.study
    attribution = inputs["attribute"]
    summary = attribution.meta["summary"]
    latents_u = Selection.load(inputs["select"].arrays).latents_u
    dec_ud = decoder_rows(inputs.case.latents, latents_u)
    evidence = evidence_of(setup, {name: inputs[name] for name in NEEDS})
    presets = {preset.name: preset for preset in setup.settings.presets()}
    used = [summary["primary"]]
    for method in study.methods:
        used.append(preset_of(summary, method) or summary["primary"])
    further = inputs[dictionaries.NAME] if inputs.case.dictionaries else None
    scores = LatentScores.load(attribution, further)
    pushes = {}
    for name in dict.fromkeys(used):
        key = key_of("gradient", presets[name].tokens)
        pushes[key] = scores.of(key, latents_u)
    few = Candidates(np.arange(len(latents_u)), dec_ud, pushes)
    arrays: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(used):
        arrays[f"parts.{name}"] = role_parts(evidence, presets[name], few)
    studied = preset_of(summary, study.methods[0])
    if studied is None:
        why = f"{study.methods[0]} is no sum over tokens"
        return arrays, {"user_only_skipped": why}
    of_user, why = _user_only(evidence, presets[studied])
    return arrays | of_user, {"user_only_skipped": why}


def _user_only(
    evidence: Evidence, preset: Preset
) -> tuple[dict[str, np.ndarray], str | None]:
    """Returns the score of every latent from the user's tokens alone, or why there is
    none.
    """
    scores = scores_of_roles(evidence, preset, (USER,))
    if isinstance(scores, Skipped):
        return {}, scores.why
    return {"user_only_n": scores}, None


def parts_of(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns preset -> Δ of the steered latents by role `[roles, u]`."""
    parts = {}
    for name, values in arrays.items():
        if name.startswith("parts."):
            parts[name.removeprefix("parts.")] = np.asarray(values)
    return parts


def fields(case: Case) -> Mapping[str, Any]:
    """Returns the config fields that the parts depend on."""
    return {"methods": case.study.methods}


STAGE = CaseStage(
    "roles",
    split_by_role,
    fields,
    needs=("select", "attribute", *NEEDS),
    also_needs=dictionaries.of_case,
    version=VERSION,
)
