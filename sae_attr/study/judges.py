"""Opens judges from plain settings; the table of their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sae_attr.judge import (
    CoherentOnly,
    Judge,
    cached,
    keywords,
    load_rubric,
    local_model,
    no_judge,
    openai_judge,
)
from sae_attr.judge.from_main import AskedByMain
from sae_attr.judge.kinds import JudgeKind, Workplace
from sae_attr.judge.rubric_files import reading_rubric
from sae_attr.organism import grader
from sae_attr.settings import given_only
from sae_attr.study.settings import CaseSettings

_ALL = (
    openai_judge.KIND,
    local_model.KIND,
    keywords.KIND,
    grader.KIND,
    no_judge.KIND,
)
# `judge.kind` -> kind. A new kind is a module with its record, and one entry here.
KINDS: dict[str, JudgeKind] = {kind.name: kind for kind in _ALL}


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of every judge, beside those of its kind.

    Args:
      kind: openai (any compatible server) | local (a language model here) | keywords |
        organism (the embedded world's grader) | none (nothing is graded).
      rubric: what is graded: a name of sae_attr/judge/rubrics or a .toml file.
      coherence: a second rubric; answers are graded by `rubric` only where they are
        coherent by this one.
    """

    kind: str = "openai"
    rubric: str | None = None
    coherence: str | None = None


@dataclass(frozen=True)
class ReaderSettings:
    """Settings of every reader, beside those of its kind.

    Args:
      kind: openai | local; judge: the case's own judge, with its settings; none: no
        latent is described.
    """

    kind: str = no_judge.NAME


def judge_settings() -> tuple[type, ...]:
    """Returns the dataclasses whose fields are the keys of a judge's config: those of
    every judge, and those of each kind.
    """
    settings: list[type] = [JudgeSettings]
    for kind in KINDS.values():
        settings += kind.settings
    return tuple(settings)


@dataclass(frozen=True)
class Reader:
    """A language model that describes latents, and says which texts fit a description;
    it never learns which latent they are of.

    Args:
      write: source of the texts -> judge that describes a latent by them.
      match: source -> judge that says whether a text fits a description.
    """

    write: Mapping[str, Judge]
    match: Mapping[str, Judge]


# Source of what a latent is described by -> the rubrics of describing and of matching.
READING = {
    "passages": ("describe_passages", "match_passage"),
    "answers": ("describe_answers", "match_answer"),
    "neutral": ("describe_answers", "match_answer"),
}


def open_reader(
    spec: Mapping[str, Any], folder: epath.Path, mesh: jax.sharding.Mesh
) -> Reader | None:
    """Opens a reader, whose replies are stored as a judge's grades are; None where none
    is named.

    Args:
      spec: `kind`, openai or local, and the settings of the kind.

    Raises:
      ValueError: a kind that cannot write, an unknown or missing key, a rubric: a
        reader has rubrics of its own.
    """
    values = given_only(spec)
    name = values.pop("kind", no_judge.NAME)
    if name == no_judge.NAME:
        return None
    kind = _kind(name, "reader")
    if not kind.writes:
        writers = [kind.name for kind in _ALL if kind.writes]
        raise ValueError(
            f"reader.kind is {name}, which cannot write a description; choose "
            f"{' or '.join(writers)}, or none"
        )
    for key in ("rubric", "coherence"):
        if values.pop(key, None):
            raise ValueError(
                f"reader.{key} is set, but a reader has rubrics of its own; leave it out"
            )
    _check_needs(kind, values, [], "reader")
    judge_by = kind.opened(values, Workplace(folder, mesh))
    opened: dict[str, Judge] = {}
    for rubrics in READING.values():
        for rubric in rubrics:
            if rubric not in opened:
                judge = judge_by(reading_rubric(rubric))
                opened[rubric] = _stored(judge, kind, folder)
    return Reader(
        {source: opened[names[0]] for source, names in READING.items()},
        {source: opened[names[1]] for source, names in READING.items()},
    )


def _kind(name: Any, role: str) -> JudgeKind:
    """Returns the kind of a judge or reader; raises ValueError for an unknown one."""
    kind = KINDS.get(str(name))
    if kind is None:
        raise ValueError(
            f"{role} kind {name!r} is unknown; choose one of {', '.join(KINDS)}"
        )
    return kind


def _check_needs(
    kind: JudgeKind, values: Mapping[str, Any], absent: Sequence[str], role: str
) -> None:
    """Raises ValueError where settings that a kind needs are missing."""
    missing = [key for key in kind.needs if not values.get(key)] + list(absent)
    if missing:
        raise ValueError(
            f"{role} {kind.name} lacks {', '.join(missing)}; give {role}.{missing[0]}"
        )


def reader_settings() -> tuple[type, ...]:
    """Returns the dataclasses whose fields are the keys of a reader's config."""
    settings: list[type] = [ReaderSettings]
    for kind in KINDS.values():
        if kind.writes:
            settings += kind.settings
    return tuple(settings)


def open_judge(
    spec: Mapping[str, Any], folder: epath.Path, mesh: jax.sharding.Mesh
) -> Judge:
    """Opens a judge whose grades are stored in a folder, so that nothing is graded
    twice.

    Args:
      spec: `kind`, `rubric`, `coherence` (see `JudgeSettings`) and the settings of the
        kind; None stands for the default.

    Raises:
      ValueError: an unknown kind, key or rubric, or a missing one.
    """
    values = given_only(spec)
    name = values.pop("kind", None)
    rubric = values.pop("rubric", None)
    coherence = values.pop("coherence", None)
    kind = _kind(name, "judge")
    absent = [] if rubric or not kind.has_rubric else ["rubric"]
    _check_needs(kind, values, absent, "judge")
    judge_by = kind.opened(values, Workplace(folder, mesh))
    if not kind.has_rubric:
        return judge_by(None)

    def stored(rubric: Any) -> Judge:
        return _stored(judge_by(load_rubric(str(rubric))), kind, folder)

    # A cache for each rubric: a changed second rubric leaves the first one's grades valid.
    return (
        CoherentOnly(stored(rubric), stored(coherence)) if coherence else stored(rubric)
    )


def _stored(judge: Judge, kind: JudgeKind, folder: epath.Path) -> Judge:
    """Returns a judge that keeps its grades; of several processes one asks."""
    if jax.process_count() > 1 and not kind.together:
        judge = AskedByMain(judge)
    return cached(judge, folder)


def judge_spec(case: CaseSettings) -> dict[str, Any]:
    """Returns the judge's settings; one that renders prompts does so with the case's
    date.
    """
    return _dated(dict(case.judge), case)


def reader_spec(case: CaseSettings) -> dict[str, Any]:
    """Returns the reader's settings; those of the judge, changed by its own, where the
    reader is the judge.
    """
    spec = given_only(case.reader)
    if spec.get("kind") == "judge":
        of_judge = given_only(case.judge)
        for name in ("rubric", "coherence"):
            of_judge.pop(name, None)
        spec = {**of_judge, **spec, "kind": of_judge.get("kind")}
    return _dated(spec, case)


def _dated(spec: dict[str, Any], case: CaseSettings) -> dict[str, Any]:
    kind = KINDS.get(str(spec.get("kind")))
    if kind is not None and "template_options" in kind.keys:
        options = given_only(spec.get("template_options") or {})
        date = case.template_options.get("date")
        spec["template_options"] = {"date": date, **options}
    return spec
