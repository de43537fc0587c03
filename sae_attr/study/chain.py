"""The stages of all cases of a study in order, with what each reads and declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.store import Computed, Progress, Result, Stage, StageRun
from sae_attr.study import checking, effects, finding, versions
from sae_attr.study.case import Case
from sae_attr.study.score_table import score_versions
from sae_attr.study.settings import DIRECTIONS

# A stage's number is raised when its code gives other numbers than before. Figures and
# the page are no stages: they are made of the results on every run.
VERSIONS: dict[str, int] = {
    "sample": 1,
    "grade": 1,
    "pair": 2,  # 2: what may stand in a pair is decided before prompts are chosen
    "attribute": 1,
    "select": 2,
    "strengths": 1,
    "steer": 1,
    "judge": 1,
    "effects": 1,
    "interpret": 2,
    "convergence": 1,
}

# The attribution's stages that each of them runs; what is read from another stage's
# result is in that one's key already.
CALLS: Mapping[str, tuple[str, ...]] = {
    "attribute": versions.ALL,
    "interpret": ("norm-limits",),
}


@dataclass
class _Chain:
    """Stages of one case, as they are added."""

    name: str
    declared: Mapping[str, Mapping[str, Any]]
    stages: list[Stage]

    def full(self, names: Sequence[str]) -> tuple[str, ...]:
        """Whole names of this case's stages; those that name another case are whole
        already.
        """
        return tuple(
            name if name.startswith("/") else f"/{self.name}.{name}" for name in names
        )

    def add(
        self,
        stage: str,
        make: Callable[..., Computed],
        *needs: str,
        progress: bool = False,
        **extra: Any,
    ) -> None:
        """`make` is given the results that it needs in order and, where it is long, the
        stage's progress.

        `extra`: further declared fields.
        """
        reads = tuple(name.removeprefix("/") for name in self.full(needs))

        def run(results: Mapping[str, Result], done: Progress) -> Computed:
            inputs = [results[name] for name in reads]
            return make(*inputs, *([done] if progress else []))

        kind = stage.split(".")[0]
        fields = {**self.declared[kind], **extra}
        self.stages.append(stage_of(f"{self.name}.{stage}", kind, run, fields, reads))


def stage_of(
    name: str,
    kind: str,
    run: StageRun,
    fields: Mapping[str, Any],
    needs: tuple[str, ...],
) -> Stage:
    """Returns a stage with the versions of its kind and of what it calls."""
    calls = versions.versions_of(CALLS.get(kind, ()))
    return Stage(
        name,
        run,
        fields,
        needs,
        VERSIONS[kind],
        calls | score_versions() if "scores" in calls else calls,
    )


def study_stages(cases: Sequence[Case]) -> list[Stage]:
    """All stages of a study, in order: files, then every case up to its attribution,
    then the checks.
    """
    chains = {case: _Chain(case.settings.name, _declared(case), []) for case in cases}
    for case, chain in chains.items():
        _find(chain, case)
    for case, chain in chains.items():
        _check(
            chain,
            case,
            [
                c.settings.name
                for c in cases
                if c is not case and c.source.sae == case.source.sae
            ],
        )
    out = [stage for chain in chains.values() for stage in chain.stages[:4]]
    out += [stage for chain in chains.values() for stage in chain.stages[4:]]
    return [*out, *shared_stages(cases)]


def _declared(case: Case) -> Mapping[str, Mapping[str, Any]]:
    return finding.fields(case) | checking.fields(case) | effects.fields(case)


def _find(chain: _Chain, case: Case) -> None:
    """sample → grade → pair → attribute."""
    files = tuple(f"/{name}" for name in case.source.stages)
    extra = {} if files else {"files": case.source.fingerprints()}
    chain.add(
        "sample",
        lambda *inputs: finding.sample(case, inputs[-1]),
        *files,
        progress=True,
        **extra,
    )
    chain.add(
        "grade",
        lambda samples, done: finding.grade(case, samples, done),
        "sample",
        progress=True,
    )
    chain.add("pair", lambda grades: finding.pair(case, grades), "grade")
    chain.add("attribute", lambda pairs: finding.attribute(case, pairs), "pair")


def _check(chain: _Chain, case: Case, others: Sequence[str]) -> None:
    """select → (strengths → steer → judge) in both directions → effects → interpret."""
    theirs = [f"/{name}.attribute" for name in others]
    chain.add("select", lambda *read: finding.choose(case, *read), "attribute", *theirs)
    for direction in DIRECTIONS:
        _steer(chain, case, direction)
    graded = [stage for d in DIRECTIONS for stage in (f"strengths.{d}", f"judge.{d}")]
    chain.add("effects", lambda *read: effects.effects(case, *read), "select", *graded)
    chain.add(
        "interpret", lambda selection: effects.interpret(case, selection), "select"
    )


def _steer(chain: _Chain, case: Case, direction: str) -> None:
    choice, made = f"strengths.{direction}", f"steer.{direction}"
    run = lambda stage: lambda *read: stage(case, direction, *read)
    chain.add(choice, run(checking.strengths), "select", "attribute", progress=True)
    chain.add(made, run(checking.steer), "select", choice, "attribute", progress=True)
    chain.add(
        f"judge.{direction}",
        run(checking.judge),
        "select",
        choice,
        "attribute",
        made,
        progress=True,
    )


def shared_stages(cases: Sequence[Case]) -> list[Stage]:
    """What several cases share."""
    if len(cases) < 2 or len({case.source.sae for case in cases}) > 1:
        return []
    read = tuple(
        f"{case.settings.name}.{stage}"
        for case in cases
        for stage in ("attribute", "select", "effects")
    )

    def run(results: Mapping[str, Result], progress: Progress) -> Computed:
        return effects.converge(cases, *(results[name] for name in read))

    return [stage_of("convergence", "convergence", run, {}, read)]


STAGES = (
    "sample", "grade", "pair", "attribute", "select",
    *(f"{stage}.{d}" for d in DIRECTIONS for stage in ("strengths", "steer", "judge")),
    "effects", "interpret",
)  # fmt: skip
