"""What a stage of a case study is: a name, a version, the config fields that it
declares, what it reads, and the function that runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.store import Computed, Progress, Result
from sae_attr.study.case import Case
from sae_attr.study.continuation_texts import prompt_texts
from sae_attr.study.settings import StudySettings


@dataclass(frozen=True, eq=False)
class StageInputs:
    """Holds what the function of a stage works on.

    Args:
      case: whose stage it is.
      direction: away or toward, of a stage that runs for either; else "".
      results: whole name -> result of what it reads.
    """

    case: Case
    direction: str
    results: Mapping[str, Result]

    def __getitem__(self, stage: str) -> Result:
        """Returns the result of a stage of the same case, in the same direction where
        that stage has one.
        """
        name = f"{self.case.name}.{stage}"
        directed = f"{name}.{self.direction}"
        return self.results[directed if directed in self.results else name]

    def others(self, stage: str) -> list[Result]:
        """Returns the results of a stage of other cases."""
        of_this_case = f"{self.case.name}.{stage}"
        out = []
        for name, result in self.results.items():
            if name != of_this_case and name.endswith(f".{stage}"):
                out.append(result)
        return out


@dataclass(frozen=True)
class CaseStage:
    """A stage of every case; a new one is a file in `stages/` and its name in the order
    of `study.graph`.

    Args:
      name: in the stage's name, after the case's.
      run: `(inputs, progress) -> (arrays, meta)`.
      fields: the config fields that it declares, beside those of what it reads.
      needs: stages of the same case that it reads, as far as the study has them; one with two directions is read in
        the same direction, or in both by a stage that has none.
      also_needs: `(case, all cases) -> whole names` of further stages that it reads.
      version: raised when its code gives other numbers than before.
      directed: it runs for away and for toward.
      applies: whether a study has it.
    """

    name: str
    run: Callable[[StageInputs, Progress], Computed]
    fields: Callable[[Case], Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    also_needs: Callable[[Case, Sequence[Case]], Sequence[str]] = lambda case, cases: ()
    version: int = 1
    directed: bool = False
    applies: Callable[[StudySettings], bool] = lambda study: True


# ---- declared fields that several stages share ---------------------------------------


def plain(settings: Any, *leave_out: str) -> dict[str, Any]:
    """Returns the fields of a settings dataclass as plain values."""
    values = dataclasses.asdict(settings)
    for name in leave_out:
        del values[name]
    return values


def declared_prompts(case: Case, split: str) -> list[Any]:
    """Returns the ids that a split is sampled from; the organism's follow from its
    recipe.
    """
    if case.settings.organism is not None:
        return []
    return [[name, ids] for name, ids in case.prompt_ids(split).items()]


def steered_scope(case: Case) -> dict[str, Any]:
    """Returns which tokens are steered; tokens that are spared only where some are."""
    study = case.study
    skipped = {"skip": study.steer_skip} if study.steer_skip else {}
    return {"tokens": study.steer_tokens, **skipped}


def declared_exact(case: Case, split: str) -> dict[str, Any]:
    """Returns what exact rates depend on beside the prompts of a split: the texts and
    how they are weighed; the organism's grammar follows from its recipe.
    """
    if case.settings.organism is not None:
        return {}
    texts = []
    for prompt in case.prompts(split):
        of_prompt = prompt_texts(case, prompt)
        texts.append([of_prompt.present.ids, of_prompt.absent.ids])
    measure = plain(case.settings.continuations, "present", "absent")
    return {"texts": texts, "measure": measure}


def declared_sampling(case: Case) -> dict[str, Any]:
    """Returns how completions are sampled, with the ids that end one; the organism's
    follow from its recipe.
    """
    stop_ids = case.study.sampling.stop_ids or ()
    if case.settings.organism is None:
        stop_ids = case.stop_ids
    return plain(case.study.sampling, "attempts") | {"stop_ids": list(stop_ids)}


def declared_judge(case: Case) -> dict[str, Any]:
    """Returns the judge's name, version and rubric."""
    return dict(case.judge.identity)
