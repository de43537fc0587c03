"""The interface of judges: items go in, grades come out as they arrive, and an identity
says who graded by which rubric.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sae_attr.store import digest
from sae_attr.text.chat import Message

MALFORMED = "MALFORMED"


class JudgeStopped(RuntimeError):
    """A judge ended before the last item; every grade that it gave was yielded before
    this was raised.

    Attributes:
      graded: items graded in this call.
      left: items without a grade.
    """

    def __init__(self, message: str, *, graded: int, left: int) -> None:
        super().__init__(message)
        self.graded, self.left = graded, left


class BudgetExhausted(JudgeStopped):
    """The budget in calls or tokens ran out."""


@dataclass(frozen=True)
class Item:
    """One completion to grade.

    Args:
      id: unique within one call of `grade`.
      prompt: the model's input: a text, or messages ({"role", "content"}).
      completion: its answer.
    """

    id: str
    prompt: str | tuple[Message, ...]
    completion: str


@dataclass(frozen=True)
class Grade:
    """A judge's verdict on one completion; what it leaves open is None, never a number.

    Args:
      label: the rubric's word: a number of its scale ("4"), an excluded class
        ("REFUSAL"), or "MALFORMED".
      score: the place on the rubric's scale; None where the answer is excluded or the
        reply malformed.
      behaviour: 1.0 the completion has the behaviour, 0.0 it has not, None excluded,
        malformed or not asked.
      coherent: 1.0 or 0.0; None where it is unknown, because the judge does not tell
        (`tells_coherence`) or gave no verdict.
      excluded: the completion is of a class that is not scored (refusal, satire, code,
        ...): a missing value that may be resampled.
      malformed: the judge's reply could not be read: a missing value that says nothing
        about the completion.
      raw: the reply as it came.
      discarded: earlier malformed replies, where the judge was asked again.
      weighted: the score is a mean weighted by token probabilities.
      details: plain values that the judge adds (served model, fingerprint, tokens, why
        a reply ended, ...).
    """

    label: str
    score: float | None = None
    behaviour: float | None = None
    coherent: float | None = None
    excluded: bool = False
    malformed: bool = False
    raw: str = ""
    discarded: tuple[str, ...] = ()
    weighted: bool = False
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.excluded or self.malformed) and (
            self.score is not None or self.behaviour is not None
        ):
            raise ValueError(
                f"grade {self.label!r} is excluded or malformed, so score and "
                "behaviour must be None"
            )
        for name in ("behaviour", "coherent"):
            if getattr(self, name) not in (None, 0.0, 1.0):
                raise ValueError(
                    f"grade {self.label!r}: {name} is {getattr(self, name)!r}; it must "
                    "be 0.0, 1.0 or None"
                )


@runtime_checkable
class Judge(Protocol):
    """Whatever grades completions: a server, a local model, a rule."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that decide a grade beside the item: kind, name, version, rubric
        (name, version, hash), settings.

        It is part of every cache key and of every result, and does not change while the
        judge lives.
        """
        ...

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """Yields (id, grade) of every item, as they arrive and in any order.

        Raises:
          ValueError: an id that occurs twice.
          JudgeStopped: the judge could not go on; what was yielded before stays valid.
        """
        ...


def tells_coherence(judge: object) -> bool:
    """Returns whether a judge says if completions are coherent; where it does not,
    coherence must be measured in another way.

    A judge says so in its property `tells_coherence`; one without the property counts
    as telling.
    """
    return bool(getattr(judge, "tells_coherence", True))


def check_items(items: Sequence[Item]) -> None:
    """Raises ValueError where an id occurs twice."""
    uses = Counter([item.id for item in items])
    repeated = [name for name, count in uses.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids stand twice among the items to grade, first "
            f"{repeated[0]!r}; make ids unique"
        )


def item_key(item: Item) -> str:
    """Returns a name for the text that is graded, whatever the item's id."""
    # Not the id: it names condition and attempt, and the same text may stand under many.
    return digest({"prompt": item.prompt, "completion": item.completion})


def judge_name(identity: Mapping[str, Any]) -> str:
    """Returns a short name of a judge for tables: its name, its rubric, and the first
    digits of its identity's digest.
    """
    name = str(identity.get("name", identity.get("kind", "judge")))
    rubric = identity.get("rubric") or ""
    if isinstance(rubric, Mapping):
        rubric = rubric.get("name", "")
    parts = [name, str(rubric), digest(identity)[:6]]
    return ":".join(filter(None, parts))


def grade_row(grade: Grade) -> dict[str, Any]:
    """Returns a grade as plain values for JSON, without the fields at their default."""
    row = {"label": grade.label}
    default = dataclasses.asdict(Grade(grade.label))
    for name, value in dataclasses.asdict(grade).items():
        if value != default[name]:
            row[name] = value
    return row


def grade_of_row(row: Mapping[str, Any]) -> Grade:
    """Inverts `grade_row`; keys that are no fields of a grade are ignored."""
    names = {field.name for field in dataclasses.fields(Grade)}
    fields: dict[str, Any] = {name: row[name] for name in names & row.keys()}
    fields["discarded"] = tuple(fields.get("discarded", ()))
    return Grade(**fields)


def values(grades: Iterable[Grade | None], field: str = "behaviour") -> np.ndarray:
    """Returns `score`, `behaviour` or `coherent` of grades as float64 [n]; NaN where it
    is missing or there is no grade.
    """
    numbers = []
    for grade in grades:
        value = getattr(grade, field, None)
        numbers.append(math.nan if value is None else float(value))
    return np.array(numbers, np.float64)


def counts(grades: Iterable[Grade]) -> dict[str, int]:
    """Counts grades: all, scored, excluded and malformed ones, and the excluded ones of
    each label.
    """
    grades = list(grades)
    excluded: Counter[str] = Counter()
    scored = malformed = 0
    for grade in grades:
        scored += grade.score is not None
        malformed += grade.malformed
        if grade.excluded:
            excluded[grade.label] += 1
    return {
        "graded": len(grades),
        "scored": scored,
        "excluded": excluded.total(),
        "malformed": malformed,
        **dict(sorted(excluded.items())),
    }
