"""The stage that ranks the latents of a case's further dictionaries: crosscoders, SAEs of
a difference, or other SAEs of the studied site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_attr.attribution.score_registry import score_versions
from sae_attr.store import Arrays, Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.dictionary_ranking import ranked
from sae_attr.study.further_dictionaries import about, check_kind, check_place
from sae_attr.study.settings import StudySettings
from sae_attr.study.stages.evidence import NEEDS, evidence_of

VERSION = 1
NAME = "dictionaries"


def rank_all(inputs: StageInputs, progress: Progress) -> Computed:
    """Ranks every further dictionary.

    Arrays: `method.NAME`, the numbers of its best latents (`StudyLatents`), best first;
      `latents_k`, those of all; `score.KEY` of each of them, NaN where a dictionary
      does not have it. How each was ranked is in `meta`.
    """
    case, setup = inputs.case, inputs.case.setup
    if not case.dictionaries:
        return {}, {}
    evidence = evidence_of(setup, {name: inputs[name] for name in NEEDS})
    arrays: dict[str, np.ndarray] = {}
    meta, columns = {}, []
    for dictionary in case.dictionaries:
        check_kind(dictionary, two_models=not setup.no_second_model)
        check_place(dictionary, setup)
        best = ranked(
            dictionary,
            evidence,
            setup.settings.presets(),
            dictionary.settings.top or case.study.top,
            same_site=setup.read_site == setup.site,
        )
        numbers = case.latents.numbers(dictionary.name, best.latents_k)
        arrays[f"method.{dictionary.name}"] = numbers
        columns.append((numbers, best.scores))
        meta[dictionary.name] = {
            **about(dictionary),
            "steered": len(numbers),
            **best.facts,
        }
    return arrays | _columns(columns), {"dictionaries": meta}


def _columns(
    ranked_latents: list[tuple[np.ndarray, dict[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Returns the numbers of all latents, and every score that a dictionary has."""
    numbers_k = np.concatenate([numbers for numbers, _ in ranked_latents])
    keys = dict.fromkeys(key for _, scores in ranked_latents for key in scores)
    columns = {"latents_k": numbers_k}
    for key in keys:
        parts = []
        for numbers, scores in ranked_latents:
            unknown = np.full(len(numbers), np.nan, np.float32)
            parts.append(scores.get(key, unknown))
        columns[f"score.{key}"] = np.concatenate(parts)
    return columns


def methods_of(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns dictionary -> numbers of its best latents, best first."""
    methods = {}
    for name, latents in arrays.items():
        if name.startswith("method."):
            methods[name.removeprefix("method.")] = np.asarray(latents)
    return methods


def applies(study: StudySettings) -> bool:
    """Returns whether a case of a study has further dictionaries."""
    return any(case.dictionaries for case in study.cases)


def of_case(case: Case, cases: Sequence[Case]) -> tuple[str, ...]:
    """Returns the whole name of the stage where a case has dictionaries: what they need
    of it others do not, so that a case's dictionaries leave other cases alone.
    """
    return (f"{case.name}.{NAME}",) if case.dictionaries else ()


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the rankings depend on."""
    declared: dict[str, Any] = {}
    for dictionary in case.dictionaries:
        s = dictionary.settings
        declared[s.name] = [dictionary.key, s.by, s.reads, s.top]
    if not declared:
        return {}
    # Numbers of latents follow from the order.
    return {
        "dictionaries": declared,
        "order": list(declared),
        "top": case.study.top,
        "scores": score_versions(),
    }


STAGE = CaseStage(
    NAME,
    rank_all,
    fields,
    needs=("attribute", *NEEDS),
    version=VERSION,
    applies=applies,
)
