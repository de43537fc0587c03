"""A case study: its cases with their files and judges, and its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sae_attr.organism.build import organism_stages
from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.report.figures import Draw, draw_anew
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
from sae_attr.study.attribution_stages import attribution_names
from sae_attr.study.case import Case, Runtime
from sae_attr.study.case_checks import check_case, check_dictionaries, try_case
from sae_attr.study.continuations import exact_prompts
from sae_attr.study.judges import judge_spec, open_judge, open_reader, reader_spec
from sae_attr.study.neutral_prompts import NEUTRAL, neutral_prompts
from sae_attr.study.organism_case import organism_case
from sae_attr.study.outputs import Shown, show
from sae_attr.study.prompts import split_prompts
from sae_attr.study.settings import CaseSettings, StudySettings
from sae_attr.study.stage_choice import StageChoice
from sae_attr.study.stage_order import shared_names, stage_names, study_stages
from sae_attr.study.stages import describe, match
from sae_attr.study.stages.sampled_check import has_judge
from sae_attr.study.unread_replies import GRADED_SPLITS, graded_split, read_again
from sae_attr.text.pairs import Prompt, read_prompts

_READING = {describe.NAME, match.NAME}  # stages that ask the reader
# Stages that take long: what would end them is tried before.
_EXPENSIVE = {
    "sample",
    "steer",
    "rates",
    "specificity",
    *attribution_names(),
    *GRADED_SPLITS,
    *_READING,
}

# Keys of a config beside `StudySettings`: what is studied, and how fast.
NO_SETTINGS = ("organism", "mesh", "batch_size", "attribution")


@dataclass(frozen=True, eq=False)
class CaseStudy:
    """Several cases and the graph of stages that they make.

    Args:
      settings: of the study.
      runtime: where and how fast.
      cases: opened.
      stages: in order.
      recipe: of the organism that the study makes; None without one.
    """

    settings: StudySettings
    runtime: Runtime
    cases: tuple[Case, ...]
    stages: tuple[Stage, ...]
    recipe: Recipe | None = None

    @property
    def real_cases(self) -> list[Case]:
        """The cases of models that the study does not build itself."""
        return [case for case in self.cases if case.settings.organism is None]

    def shown(self, results: Mapping[str, Result], draw: Draw = draw_anew) -> Shown:
        """Returns figures, page, tables and sentences, as far as the results go; see
        `show`.
        """
        stages, shared = stage_names(self.settings), shared_names(self.cases)
        return show(self.cases, stages, shared, results, draw)

    def check(self, choice: StageChoice) -> None:
        """Looks at every input of what is to run, so that what is wrong is said before
        anything is computed or written.

        Raises:
          ValueError: words that name no stage; files that do not fit each other.
        """
        for case in self.cases:
            check_dictionaries(case)
        for case, missing in self._to_run(choice):
            if missing:
                check_case(case)

    def try_out(self, choice: StageChoice) -> None:
        """Runs, of what is to run, what is cheap and would end the study after long
        work; see `try_case`.
        """
        for case, missing in self._to_run(choice):
            if missing & _EXPENSIVE:
                judge = bool(missing & _graded_kinds(case))
                reader = bool(missing & _READING)
                try_case(case, self.stages, judge=judge, reader=reader)

    def unread(self, choice: StageChoice) -> list[str]:
        """Returns the finished stages whose unread replies the judge can give now,
        which are to be computed again; see `unread.read_again`.
        """
        names = self._chosen(choice)
        mended = []
        for case in self.real_cases:
            graded = set()
            for name in names:
                if graded_split(case, name):
                    graded.add(name)
            stored = stored_results(
                self.runtime.store, self.stages, graded.__contains__
            )
            mended += read_again(case, stored)
        return mended

    def _chosen(self, choice: StageChoice) -> set[str]:
        stages = select_stages(self.stages, only=choice.only, until=choice.until)
        return {stage.name for stage in stages}

    def _to_run(self, choice: StageChoice) -> Iterator[tuple[Case, set[str]]]:
        """Yields the cases of real models, each with the kinds of its stages that are to run:
        sample, grade, steer, ...
        """
        again = with_readers(self.stages, matching_names(self.stages, choice.force))
        names, missing = self._chosen(choice), set()
        for status in stage_statuses(self.runtime.store, self.stages):
            is_left = status.state != "done" or status.name in again
            if is_left and status.name in names:
                missing.add(status.name)
        for case in self.real_cases:
            kinds = set()
            for name in missing:
                owner, _, rest = name.partition(".")
                if owner == case.name:
                    kinds.add(rest.split(".")[0])
            yield case, kinds


def _graded_kinds(case: Case) -> set[str]:
    """Returns the kinds of stages of a case that ask the judge."""
    if not has_judge(case):
        return set()
    kinds = set(GRADED_SPLITS)
    if case.study.strengths_by == "exact":
        kinds.remove("strengths")
    return kinds


def study_settings(values: Mapping[str, Any]) -> StudySettings:
    """Returns settings from plain nested values, as a config has them.

    Args:
      values: fields of `StudySettings`, with `cases` by name.

    Raises:
      ValueError: a key that no field has, a value that cannot be, a case without its
        files.
    """
    cases = []
    for name, case in values["cases"].items():
        fields = {**case, "name": name, "judge": given_only(case["judge"])}
        fields["reader"] = given_only(case.get("reader") or {})
        cases.append(settings_from(CaseSettings, fields, where=f"config.cases.{name}"))
    return settings_from(StudySettings, {**values, "cases": tuple(cases)})


def open_study(values: Mapping[str, Any], runtime: Runtime) -> CaseStudy:
    """Opens a study from plain nested values; nothing is loaded yet but the prompts.

    Args:
      values: `StudySettings`, its `cases` by name, and `organism`, the fields of
        `OrganismSettings` (None without one).

    Raises:
      ValueError: settings that cannot be, prompts that cannot be read, a judge that
        cannot be opened.
    """
    fields = dict(values)
    for name in NO_SETTINGS:
        fields.pop(name, None)
    settings = study_settings(fields)
    recipe = None
    if values.get("organism") is not None:
        recipe = recipe_of(values["organism"])
    cases = []
    for case in settings.cases:
        cases.append(open_case(case, settings, recipe, runtime))
    stages = []
    if recipe is not None:
        bars = runtime.progress
        stages += organism_stages(recipe, mesh=runtime.mesh, progress=bars)
    stages += study_stages(cases)
    return CaseStudy(settings, runtime, tuple(cases), tuple(stages), recipe)


def open_case(
    case: CaseSettings, study: StudySettings, recipe: Recipe | None, runtime: Runtime
) -> Case:
    """Opens a case: a real model's, or the organism's.

    Raises:
      ValueError: prompts that cannot be read, a judge that cannot be opened, a case of
        an organism that the config does not have.
    """
    if case.organism is not None:
        if recipe is None:
            raise ValueError(
                f"case {case.name} looks at the organism, but the config has none; set "
                "config.organism"
            )
        return organism_case(case, study, recipe, runtime)
    folder, mesh = runtime.workdir / "judged", runtime.mesh
    judge = open_judge(judge_spec(case), folder, mesh)
    reader = open_reader(reader_spec(case), folder, mesh)
    prompts = case_prompts(case, reads=reader is not None)
    return Case(case, study, case, prompts, judge, runtime, exact_prompts, reader)


def case_prompts(case: CaseSettings, *, reads: bool) -> dict[str, tuple[Prompt, ...]]:
    """Returns the prompts of a case by split; the neutral ones among them where latents
    are described: those of its file, or the package's.
    """
    records = read_prompts(case.prompts)
    splits = {record.split for record in records}
    probes = case.probes
    if NEUTRAL in splits:
        probes = (*probes, NEUTRAL)
    prompts = split_prompts(records, case.shares, path=case.prompts, probes=probes)
    if reads and NEUTRAL not in prompts:
        prompts[NEUTRAL] = neutral_prompts(prompts["effects"])
    elif not reads:
        prompts.pop(NEUTRAL, None)
    return prompts
