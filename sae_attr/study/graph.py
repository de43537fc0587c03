"""The order of a study's stages; each stage states in its own file what it reads,
declares and runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study import versions
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.score_table import score_versions
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages import (
    attribute,
    effects,
    grade,
    interpret,
    judge,
    pair,
    sample,
    select,
    steer,
    strengths,
)
from sae_attr.study.stages.convergence import convergence_stages

# Stages of every case. Those that find latents run for all cases before any is steered,
# since a selection may read other cases' attributions. Figures and the page are no
# stages: they are made of the results on every run.
FINDING = [sample.STAGE, grade.STAGE, pair.STAGE, attribute.STAGE]
STEERING = [
    select.STAGE,
    strengths.STAGE,
    steer.STAGE,
    judge.STAGE,
    effects.STAGE,
    interpret.STAGE,
]


def study_stages(cases: Sequence[Case]) -> list[Stage]:
    """Returns the stages of a study in order: every case up to its attribution, then
    steering, then what cases share. Stages that write the files of cases come before.
    """
    stages = []
    for part in (FINDING, STEERING):
        for case in cases:
            stages += [
                _stage(kind, direction, case, cases)
                for kind, direction in in_order(part)
            ]
    return stages + convergence_stages(cases)


def in_order(kinds: Sequence[CaseStage]) -> list[tuple[CaseStage, str]]:
    """Returns the stages of a case with their directions: neighbours that run for
    either direction run for away, then for toward.
    """
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


def stage_names() -> list[str]:
    """Returns the stages of a case in order, without the case's name."""
    return [
        _directed(kind.name, direction)
        for kind, direction in in_order([*FINDING, *STEERING])
    ]


def shared_names(cases: Sequence[Case]) -> list[str]:
    """Returns the stages of several cases together."""
    return [stage.name for stage in convergence_stages(cases)]


def _directed(name: str, direction: str) -> str:
    return f"{name}.{direction}" if direction else name


def _stage(kind: CaseStage, direction: str, case: Case, cases: Sequence[Case]) -> Stage:
    """A stage of a case in the graph."""
    directed = {other.name for other in (*FINDING, *STEERING) if other.directed}
    needs = []
    for need in kind.needs:
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
        called_versions(kind.calls),
    )


def called_versions(calls: Sequence[str]) -> dict[str, int]:
    """Returns the versions of the attribution's stages that a stage runs, and those of
    the scores where it runs them.
    """
    called = versions.versions_of(calls)
    return called | score_versions() if "scores" in called else called
