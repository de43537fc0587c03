"""The stages of all cases of a study in order, with what each reads and declares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_attr.case_study import checking, effects, finding
from sae_attr.case_study.case import Case
from sae_attr.case_study.settings import DIRECTIONS
from sae_attr.store import Progress, Result, Stage

VERSION = 1  # raised when a stage's code gives other numbers than before
Made = tuple[Mapping[str, Any], Mapping[str, Any]]


def timed(make: Callable[[Mapping[str, Result], Progress], Made]) -> Callable[[Mapping[str, Result], Progress], Made]:
    """A stage that also keeps its own seconds, in `meta["seconds"]`; of a continued one, those since it was continued."""

    def run(inputs: Mapping[str, Result], progress: Progress) -> Made:
        began = time.perf_counter()
        arrays, meta = make(inputs, progress)
        return arrays, {**meta, "seconds": round(time.perf_counter() - began, 3)}

    return run


def case_stages(case: Case, before: tuple[str, ...] = (), inputs: Mapping[str, Any] | None = None) -> list[Stage]:
    """The stages of one case, from sampling to effects.

    Args:
      before: stages that make the case's files, if they are made.
      inputs: fingerprints of its files, if they are not.
    """
    name = case.settings.name
    full = lambda *stages: tuple(f"{name}.{stage}" for stage in stages)
    declared = finding.fields(case) | checking.fields(case) | effects.fields(case)
    out: list[Stage] = []

    def add(stage: str, make: Callable[..., Made], *needs: str, first: bool = False, progress: bool = True) -> None:
        """`make` is given the results that it needs in order and, where it is long, the stage's progress."""

        def run(results: Mapping[str, Result], done: Progress) -> Made:
            return make(*(results[need] for need in full(*needs)), *([done] if progress else []))

        fields = {**declared[stage.split(".")[0]], **(dict(inputs or {}) if first else {})}
        reads = (*(before if first else ()), *full(*needs))
        out.append(Stage(f"{name}.{stage}", timed(run), fields, reads, VERSION))

    add("sample", lambda done: finding.sample(case, done), first=True)
    add("grade", lambda samples, done: finding.grade(case, samples, done), "sample")
    add("pair", lambda grades: finding.pair(case, grades), "grade", progress=False)
    add("attribute", lambda pairs: finding.attribute(case, pairs), "pair", progress=False)
    add("select", lambda found: finding.choose(case, found), "attribute", progress=False)
    for direction in DIRECTIONS:
        _check(add, case, direction)
    judged = [stage for d in DIRECTIONS for stage in (f"strengths.{d}", f"judge.{d}")]
    add("effects", lambda *read: effects.effects(case, *read), "select", *judged, progress=False)
    add("interpret", lambda *read: effects.interpret(case, *read), "select", "effects", progress=False)
    return out


def _check(add: Any, case: Case, direction: str) -> None:
    """Strengths, steering and grading in one direction."""
    choice, made = f"strengths.{direction}", f"steer.{direction}"
    add(choice, lambda *read: checking.strengths(case, direction, *read), "select", "attribute")
    add(made, lambda *read: checking.steer(case, direction, *read), "select", choice, "attribute")
    add(f"judge.{direction}", lambda *read: checking.judge(case, direction, *read), "select", choice, "attribute", made)


def seconds(results: Mapping[str, Result], names: Sequence[str]) -> dict[str, float]:
    """What each stage took when it was made."""
    return {name: float(results[name].meta.get("seconds", 0.0)) for name in names if name in results}
