"""The order of a study's stages; each stage states in its own file what it reads,
declares and runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.attribution_stages import attribution_names, attribution_stages
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.settings import DIRECTIONS, StudySettings
from sae_attr.study.stages import (
    ablated_rates,
    describe,
    dictionaries,
    effects,
    grade,
    interpret,
    judge,
    match,
    pair,
    rates,
    roles,
    sample,
    sampled_check,
    screen,
    select,
    specificity,
    steer,
    strengths,
    texts_to_read,
    unsteered,
)
from sae_attr.study.stages.convergence import convergence_stages

# Stages of every case: rates without steering, pairs, then those of the attribution (`attribution_stages`), then
# steering. All cases are attributed before any is steered, since a selection may read
# other cases' attributions. Figures and the page are no stages: they are made of the
# results on every run.
PAIRING = [unsteered.STAGE, sample.STAGE, grade.STAGE, pair.STAGE]
STEERING = [
    screen.STAGE,
    dictionaries.STAGE,
    select.STAGE,
    strengths.STAGE,
    steer.STAGE,
    judge.STAGE,
    rates.STAGE,
    specificity.STAGE,
    sampled_check.STAGE,
    effects.STAGE,
    ablated_rates.STAGE,
    roles.STAGE,
    interpret.STAGE,
    texts_to_read.STAGE,
    describe.STAGE,
    match.STAGE,
]


def study_stages(cases: Sequence[Case]) -> list[Stage]:
    """Returns the stages of a study in order: every case up to its attribution, then
    steering, then what cases share. Stages that write the files of cases come before.
    """
    stages: list[Stage] = []
    for case in cases:
        stages += _stages(PAIRING, case, cases)
        stages += attribution_stages(
            case.setup,
            prefix=f"{case.name}.",
            pairs_stage=f"{case.name}.{pair.STAGE.name}",
            file_stages=case.file_stages,
        )
    for case in cases:
        stages += _stages(STEERING, case, cases)
    return stages + convergence_stages(cases)


def _stages(
    kinds: Sequence[CaseStage], case: Case, cases: Sequence[Case]
) -> list[Stage]:
    ordered = in_order(kinds, case.study)
    return [_stage(kind, direction, case, cases) for kind, direction in ordered]


def in_order(
    kinds: Sequence[CaseStage], study: StudySettings
) -> list[tuple[CaseStage, str]]:
    """Returns the stages of a study's cases with their directions: neighbours that run
    for either direction run for away, then for toward.
    """
    kinds = [kind for kind in kinds if kind.applies(study)]
    ordered: list[tuple[CaseStage, str]] = []
    directed: list[CaseStage] = []
    for kind in [*kinds, None]:
        if kind is not None and kind.directed:
            directed.append(kind)
            continue
        for direction in DIRECTIONS:
            ordered += [(waiting, direction) for waiting in directed]
        directed = []
        if kind is not None:
            ordered.append((kind, ""))
    return ordered


def stage_names(study: StudySettings) -> list[str]:
    """Returns the stages of a case in order, without the case's name."""
    names = [_directed(kind.name, way) for kind, way in in_order(PAIRING, study)]
    names += attribution_names()
    for kind, direction in in_order(STEERING, study):
        names.append(_directed(kind.name, direction))
    return names


def shared_names(cases: Sequence[Case]) -> list[str]:
    """Returns the stages of several cases together."""
    return [stage.name for stage in convergence_stages(cases)]


def _directed(name: str, direction: str) -> str:
    return f"{name}.{direction}" if direction else name


def _stage(kind: CaseStage, direction: str, case: Case, cases: Sequence[Case]) -> Stage:
    """Returns a stage of a case in the graph."""
    directed = {other.name for other in STEERING if other.directed}
    absent = {
        other.name for other in (*PAIRING, *STEERING) if not other.applies(case.study)
    }
    needs = []
    for need in kind.needs:
        if need in absent:
            continue
        if need not in directed:
            needs.append(f"{case.name}.{need}")
        elif direction:
            needs.append(f"{case.name}.{need}.{direction}")
        else:
            needs += [f"{case.name}.{need}.{either}" for either in DIRECTIONS]

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        return kind.run(StageInputs(case, direction, results), progress)

    return Stage(
        f"{case.name}.{_directed(kind.name, direction)}",
        run,
        kind.fields(case),
        (*needs, *kind.also_needs(case, cases)),
        kind.version,
    )
