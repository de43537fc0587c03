"""A study opened: its cases with their files and judges, and its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sae_attr.case_study.case import Case, Runtime, Source
from sae_attr.case_study.chain import study_stages
from sae_attr.case_study.judges import open_judge
from sae_attr.case_study.prompts import Prompt, read_prompts
from sae_attr.case_study.settings import Budget, CaseSettings, SampleSettings, StudySettings
from sae_attr.organism import OrganismSettings, make_world, organism_judge, prompts
from sae_attr.store import Stage, listing
from sae_attr.store.graph import chosen_stages

SPLITS = ("pairs", "strengths", "effects")


@dataclass(frozen=True, eq=False)
class CaseStudy:
    """Several cases and the chain of stages that they make.

    Args:
      settings: of the study.
      runtime: where and how fast.
      cases: opened.
      stages: in order.
    """

    settings: StudySettings
    runtime: Runtime
    cases: tuple[Case, ...]
    stages: tuple[Stage, ...]

    def check(self, *, only: Sequence[str] = (), until: str | None = None, force: Sequence[str] = ()) -> None:
        """Looks at every input of what is to run, so that what is wrong is said before anything is computed or written.

        Raises:
          ValueError: words that name no stage; files that do not fit each other.
        """
        chosen = {stage.name for stage in chosen_stages(self.stages, only=only, until=until)}
        states = {status.name: status.state for status in listing(self.runtime.store, self.stages)}
        for case in self.cases:
            mine = [name for name in chosen if name.startswith(f"{case.settings.name}.")]
            if case.settings.organism is None and any(states[name] != "done" for name in mine):
                case.check()


def study_settings(values: Mapping[str, Any]) -> StudySettings:
    """Settings from plain nested values, as a config has them; keys of other parts are passed over.

    Raises:
      ValueError: a value that cannot be; a case without its files.
    """
    own = _fields_of(StudySettings, values)
    cases = tuple(
        CaseSettings(**{**_fields_of(CaseSettings, case), "name": name, "judge": case["judge"]})
        for name, case in values["cases"].items()
    )
    parts = {"sampling": SampleSettings(**_fields_of(SampleSettings, values["sampling"]))}
    return StudySettings(**{**own, **parts, "budget": Budget(**values["budget"]), "cases": cases})


def _fields_of(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a dataclass and given; lists as tuples."""
    names = {field.name for field in fields(kind)}
    given = {k: v for k, v in values.items() if k in names and v is not None}
    out = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name in ("sae_options", "attribution"):
        if name in out:
            out[name] = {k: v for k, v in out[name].items() if v is not None}
    return out


def open_study(values: Mapping[str, Any], runtime: Runtime) -> CaseStudy:
    """A study from plain nested values; nothing is loaded yet but the prompts.

    Args:
      values: `StudySettings`, its `cases` by name, and `organism`, the fields of `OrganismSettings` (None without one).

    Raises:
      ValueError: settings that cannot be, prompts that cannot be read, a judge that cannot be opened.
    """
    settings = study_settings(values)
    organism = None if values.get("organism") is None else OrganismSettings(**values["organism"])
    opened = tuple(_open_case(case, settings, organism, runtime) for case in settings.cases)
    return CaseStudy(settings, runtime, opened, tuple(study_stages(opened, settings, organism, runtime)))


def _open_case(case: CaseSettings, study: StudySettings, organism: OrganismSettings | None, runtime: Runtime) -> Case:
    if case.organism is None:
        source = Source(
            **{field.name: getattr(case, field.name) for field in fields(Source) if field.name != "prompts"},
            prompts=read_prompts(case.prompts, case.shares),
        )
        return Case(case, study, source, open_judge(case.judge, runtime.workdir / "judged", runtime.mesh), runtime)
    if organism is None:
        raise ValueError(f"case {case.name} looks at the organism, but the config has none; set config.organism")
    world = make_world(organism.seed)
    asked = {split: tuple(Prompt(p.id, p.text) for p in prompts(world, case.organism, split)) for split in SPLITS}
    judge = organism_judge(world, case.organism)
    return Case(case, study, organism_source(organism, case.organism, runtime, asked), judge, runtime)
