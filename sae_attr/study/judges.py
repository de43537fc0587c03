"""Opens judges from plain settings; the table of their kinds."""

from __future__ import annotations

from collections.abc import Mapping
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
from sae_attr.organism import grader
from sae_attr.settings import given_only

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


def judge_settings() -> tuple[type, ...]:
    """Returns the dataclasses whose fields are the keys of a judge's config: those of
    every judge, and those of each kind.
    """
    settings: list[type] = [JudgeSettings]
    for kind in KINDS.values():
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
    kind = KINDS.get(str(name))
    if kind is None:
        raise ValueError(
            f"judge kind {name!r} is unknown; choose one of {', '.join(KINDS)}"
        )
    absent = [key for key in kind.needs if not values.get(key)]
    if kind.has_rubric and not rubric:
        absent.append("rubric")
    if absent:
        raise ValueError(
            f"judge {kind.name} lacks {', '.join(absent)}; give judge.{absent[0]}"
        )
    judge_by = kind.opened(values, Workplace(folder, mesh))
    if not kind.has_rubric:
        return judge_by(None)

    def stored(rubric: Any) -> Judge:
        judge = judge_by(load_rubric(str(rubric)))
        if jax.process_count() > 1 and not kind.together:
            judge = AskedByMain(judge)
        return cached(judge, folder)

    # A cache for each rubric: a changed second rubric leaves the first one's grades valid.
    return (
        CoherentOnly(stored(rubric), stored(coherence)) if coherence else stored(rubric)
    )
