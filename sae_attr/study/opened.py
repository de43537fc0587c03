"""A study opened: its cases with their files and judges, and its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sae_attr.organism.build import locate, organism_stages
from sae_attr.organism.exact import DECIDES, STUDIED, exact_rates, prompt_paths
from sae_attr.organism.prompts import prompts
from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.settings import given_only, settings_from
from sae_attr.store import (
    Result,
    Stage,
    matching_names,
    select_stages,
    stage_statuses,
    stored_results,
    with_readers,
)
from sae_attr.study.case import Case, Runtime, Source
from sae_attr.study.chain import STAGES, shared_stages, study_stages
from sae_attr.study.judges import KINDS, open_judge
from sae_attr.study.prompts import SPLITS, split_prompts
from sae_attr.study.settings import CaseSettings, StudySettings
from sae_attr.study.showing import Shown, show
from sae_attr.study.unread import grades_of, read_again
from sae_attr.text.pairs import Prompt, read_prompts

_GRADES = {"grade", "strengths", "judge"}
_DEAR = {"sample", "attribute", "steer", *_GRADES}

NO_SETTINGS = (
    "organism",
    "mesh",
    "batch_size",
    "attribution",
)  # keys beside `StudySettings`: what is studied, and how fast


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

    def shown(self, results: Mapping[str, Result]) -> Shown:
        """Figures, page, tables and sentences, as far as the results go; see `show`."""
        return show(
            self.cases,
            STAGES,
            [stage.name for stage in shared_stages(self.cases)],
            results,
        )

    def check(
        self,
        *,
        only: Sequence[str] = (),
        until: str | None = None,
        force: Sequence[str] = (),
    ) -> None:
        """Looks at every input of what is to run, so that what is wrong is said before
        anything is computed or written.

        Raises:
          ValueError: words that name no stage; files that do not fit each other.
        """
        for case, missing in self._to_run(only=only, until=until, force=force):
            if missing:
                case.check()

    def try_out(
        self,
        *,
        only: Sequence[str] = (),
        until: str | None = None,
        force: Sequence[str] = (),
    ) -> None:
        """Runs, of what is to run, what is cheap and would end the study after dear
        work; see `Case.try_out`.
        """
        for case, missing in self._to_run(only=only, until=until, force=force):
            if missing & _DEAR:
                case.try_out(judge=bool(missing & _GRADES))

    def unread(
        self, *, only: Sequence[str] = (), until: str | None = None
    ) -> list[str]:
        """The finished stages whose unread replies the judge gives now, which are to be
        made again; see `unread.read_again`.
        """
        names = {
            stage.name for stage in select_stages(self.stages, only=only, until=until)
        }
        mended = []
        for case in self.cases:
            if case.settings.organism is None:
                graded = {name for name in names if grades_of(case, name)}
                mended += read_again(
                    case,
                    stored_results(
                        self.runtime.store, self.stages, graded.__contains__
                    ),
                )
        return mended

    def _to_run(
        self, *, only: Sequence[str], until: str | None, force: Sequence[str]
    ) -> Iterator[tuple[Case, set[str]]]:
        """The cases of real models, each with the kinds of its stages that are to run:
        sample, grade, steer, ...
        """
        names = {
            stage.name for stage in select_stages(self.stages, only=only, until=until)
        }
        states = {
            status.name: status.state
            for status in stage_statuses(self.runtime.store, self.stages)
        }
        again = with_readers(self.stages, matching_names(self.stages, force))
        missing = {name for name in names if states[name] != "done" or name in again}
        for case in self.cases:
            if case.settings.organism is None:
                mine = [
                    name
                    for name in missing
                    if name.startswith(f"{case.settings.name}.")
                ]
                yield case, {name.split(".")[1] for name in mine}


def study_settings(values: Mapping[str, Any]) -> StudySettings:
    """Settings from plain nested values, as a config has them.

    Args:
      values: fields of `StudySettings`, with `cases` by name.

    Raises:
      ValueError: a key that no field has, a value that cannot be, a case without its
        files.
    """
    cases = []
    for name, case in values["cases"].items():
        judge = {**case, "name": name, "judge": given_only(case["judge"])}
        cases.append(settings_from(CaseSettings, judge, where=f"config.cases.{name}"))
    return settings_from(StudySettings, {**values, "cases": tuple(cases)})


def open_study(values: Mapping[str, Any], runtime: Runtime) -> CaseStudy:
    """A study from plain nested values; nothing is loaded yet but the prompts.

    Args:
      values: `StudySettings`, its `cases` by name, and `organism`, the fields of
        `OrganismSettings` (None without one).

    Raises:
      ValueError: settings that cannot be, prompts that cannot be read, a judge that
        cannot be opened.
    """
    settings = study_settings(
        {name: value for name, value in values.items() if name not in NO_SETTINGS}
    )
    recipe = None if values.get("organism") is None else recipe_of(values["organism"])
    opened = tuple(
        _open_case(case, settings, recipe, runtime) for case in settings.cases
    )
    parts: list[Stage] = []
    if recipe is not None:
        bars = runtime.progress
        parts = organism_stages(recipe, mesh=runtime.mesh, progress=bars)
    return CaseStudy(settings, runtime, opened, (*parts, *study_stages(opened)))


def _open_case(
    case: CaseSettings, study: StudySettings, recipe: Recipe | None, runtime: Runtime
) -> Case:
    if case.organism is not None:
        if recipe is None:
            raise ValueError(
                f"case {case.name} looks at the organism, but the config has none; set "
                "config.organism"
            )
        source = organism_source(recipe, case, runtime)
        return Case(
            case,
            study,
            source,
            open_judge(
                {
                    "kind": "organism",
                    "behaviour": case.organism,
                    "world": recipe.seed,
                },
                runtime.workdir / "judged",
                runtime.mesh,
            ),
            runtime,
        )
    given = {
        field.name: getattr(case, field.name)
        for field in fields(Source)
        if hasattr(case, field.name)
    }
    source = Source(
        **{
            **given,
            "prompts": split_prompts(
                read_prompts(case.prompts), case.shares, path=case.prompts
            ),
        }
    )
    judge = dict(case.judge)
    # A judge that renders prompts does so with the case's date.
    kind = KINDS.get(judge.get("kind", ""))
    if kind is not None and "template_options" in kind.keys:
        day = {"date": case.template_options.get("date")}
        judge["template_options"] = {
            **day,
            **{
                k: v
                for k, v in (judge.get("template_options") or {}).items()
                if v is not None
            },
        }
    return Case(
        case,
        study,
        source,
        open_judge(judge, runtime.workdir / "judged", runtime.mesh),
        runtime,
    )


def organism_source(recipe: Recipe, case: CaseSettings, runtime: Runtime) -> Source:
    """The organism's files for one behaviour: misalignment looks at the misaligned
    model, validation at the validating one.
    """
    built, behaviour = locate(recipe, runtime.store), str(case.organism)
    if behaviour not in STUDIED:
        raise ValueError(
            f"the organism has no behaviour {behaviour!r}; choose misalignment or "
            "validation"
        )
    asked = {split: prompts(built.world, behaviour, split) for split in SPLITS}
    by_id = {p.id: p for p in asked["strengths"]}

    def exact(params: Any, chosen: Sequence[Prompt], edits: Any, **options: Any) -> Any:
        decided = [
            by_id[p.id] for p in chosen if by_id[p.id].kind == DECIDES[behaviour]
        ]
        return exact_rates(
            params, prompt_paths(built.world, behaviour, decided), edits, **options
        )

    plain_prompts = {
        split: tuple(Prompt(p.id, p.text) for p in found)
        for split, found in asked.items()
    }
    studied = STUDIED[behaviour]
    parts = (studied, "chat", "sae", "corpus")
    return Source(
        getattr(built, studied),
        built.chat,
        built.sae,
        built.corpus,
        plain_prompts,
        exact=exact,
        stages=tuple(built.stages[part] for part in parts),
    )
