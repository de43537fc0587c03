"""Judges made of judges: a behaviour counted among coherent answers only, and a
majority of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.judge.base import Grade, Item, Judge, check_items, tells_coherence, values

TIE = "TIE"


@dataclass(frozen=True)
class CoherentOnly:
    """Grades a behaviour where the completion is coherent; another is excluded (Betley
    et al. 2025: aligned and coherent).

    The coherence of all items is asked first and the behaviour of the coherent ones
    then. Hand it cached judges, so that a stop between the two loses nothing.
    """

    behaviour: Judge
    coherence: Judge

    @property
    def tells_coherence(self) -> bool:
        """As the judge of coherence does."""
        return tells_coherence(self.coherence)

    @property
    def identity(self) -> dict[str, Any]:
        """Those of both judges."""
        both = {
            "behaviour": dict(self.behaviour.identity),
            "coherence": dict(self.coherence.identity),
        }
        rubric = both["behaviour"].get("rubric", "")
        return {
            "kind": "coherent_only",
            "name": both["behaviour"].get("name", ""),
            "rubric": rubric,
            **both,
        }

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """(id, grade): the behaviour's grade with the coherence judge's verdict; raises
        what the judges raise.
        """
        check_items(items)
        by_id = {item.id: item for item in items}
        coherent: list[Item] = []
        for name, grade in self.coherence.grade(items):
            if grade.coherent == 1.0:
                coherent.append(by_id[name])
            else:
                yield name, _incoherent(grade)
        for name, grade in self.behaviour.grade(coherent):
            yield name, _replaced(grade, coherent=1.0)


@dataclass(frozen=True)
class Panel:
    """The verdicts of most of several judges; judges of one rubric, so that their
    scores can be averaged.

    Behaviour and coherence are each the majority of the judges that tell, None where
    there is no majority (label "TIE"); the score is the mean over the judges that gave
    one. Excluded is what at least half of the judges exclude.
    """

    judges: tuple[Judge, ...]

    @property
    def tells_coherence(self) -> bool:
        """Whether any member does: the others have no vote."""
        return any(tells_coherence(judge) for judge in self.judges)

    @property
    def identity(self) -> dict[str, Any]:
        """Those of all members."""
        members = [dict(judge.identity) for judge in self.judges]
        return {"kind": "panel", "name": f"panel of {len(members)}", "members": members}

    def grade(self, items: Sequence[Item]) -> Iterator[tuple[str, Grade]]:
        """(id, grade) once all members have graded an item, in the last member's order;
        raises what they raise.
        """
        check_items(items)
        *others, last = self.judges
        given = [dict(judge.grade(items)) for judge in others]
        for name, grade in last.grade(items):
            yield name, majority([*(grades[name] for grades in given), grade])


def majority(grades: Sequence[Grade]) -> Grade:
    """One grade from several of one completion; see `Panel`."""
    labels = Counter(grade.label for grade in grades)
    details: Mapping[str, Any] = {"labels": dict(labels)}
    raw = "\n".join(grade.raw for grade in grades)
    coherent = _most(values(grades, "coherent"))
    if all(grade.malformed for grade in grades):
        return Grade(grades[0].label, malformed=True, raw=raw, details=details)
    aside = Counter(grade.label for grade in grades if grade.excluded)
    if 2 * aside.total() >= len(grades):
        return Grade(
            aside.most_common(1)[0][0],
            coherent=coherent,
            excluded=True,
            raw=raw,
            details=details,
        )
    scores, behaviour = values(grades, "score"), _most(values(grades, "behaviour"))
    asked = any(grade.behaviour is not None for grade in grades)
    score = float(np.nanmean(scores)) if np.isfinite(scores).any() else None
    label = TIE if (asked and behaviour is None) or score is None else f"{score:g}"
    return Grade(
        label,
        score=score,
        behaviour=behaviour,
        coherent=coherent,
        raw=raw,
        details=details,
    )


def warnings_of(judge: Any) -> list[str]:
    """What a reader of the grades must know, gathered from a judge and from those that
    it asks; each once.
    """
    inner = [
        getattr(judge, name)
        for name in ("judge", "behaviour", "coherence")
        if hasattr(judge, name)
    ]
    found = [
        text
        for other in (*inner, *getattr(judge, "judges", ()))
        for text in warnings_of(other)
    ]
    return list(dict.fromkeys([*getattr(judge, "warnings", ()), *found]))


def _most(verdicts: np.ndarray) -> float | None:
    """1.0 or 0.0 where more than half of those that tell say so, else None."""
    told = verdicts[np.isfinite(verdicts)]
    share = told.mean() if len(told) else 0.5
    return None if share == 0.5 else float(share > 0.5)


def _incoherent(grade: Grade) -> Grade:
    if grade.malformed:
        return grade
    details = {**grade.details, "coherence": grade.score}
    return Grade(
        "INCOHERENT",
        coherent=grade.coherent,
        excluded=True,
        raw=grade.raw,
        details=details,
    )


def _replaced(grade: Grade, **fields: Any) -> Grade:
    return Grade(**{**vars(grade), **fields})
