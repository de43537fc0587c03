"""Grades of sampled completions; excluded answers are sampled again, and are missing if
that does not help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from sae_attr.judge import MALFORMED, Grade, Item, Judge
from sae_attr.steering.plan import Condition, Plan, SweepRow
from sae_attr.steering.sweep import SampleBatches, sample_rows
from sae_attr.store import Arrays, Progress
from sae_attr.text.pairing import Answer

INCOHERENT = "INCOHERENT"
_STORED = ("tokens_rn", "behaviour_r", "coherent_r", "attempt_r")


@dataclass(frozen=True, eq=False)
class GradedAnswers:
    """The answers of a plan with their grades, in the order of the plan's rows.

    Args:
      plan: which condition, prompt and sample every answer belongs to.
      tokens_rn: int32 `[r, n]`, −1 after the end: the completion that counts (of the
        last attempt).
      behaviour_r: 1, 0, or NaN where no attempt gave an answer that can be graded.
      coherent_r: 1, 0 or NaN, of the FIRST attempt: sampling again must not hide what
        steering breaks.
      attempt_r: the attempt that counts.
      labels_r: the judge's word for it.
    """

    plan: Plan
    tokens_rn: np.ndarray
    behaviour_r: np.ndarray
    coherent_r: np.ndarray
    attempt_r: np.ndarray
    labels_r: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a stage stores."""
        return {name: getattr(self, name) for name in _STORED}

    @classmethod
    def load(cls, plan: Plan, arrays: Arrays, meta: Mapping[str, Any]) -> GradedAnswers:
        """Returns the answers that a stage stored; the plan follows from the settings."""
        stored = {name: np.asarray(arrays[name]) for name in _STORED}
        return cls(plan, **stored, labels_r=tuple(meta["labels"]))

    def behaviour(self) -> dict[Condition, np.ndarray]:
        """Returns condition -> behaviour `[prompts, samples]`."""
        return self.plan.by_condition(self.behaviour_r)

    def coherence(self) -> dict[Condition, np.ndarray]:
        """Returns condition -> coherence `[prompts, samples]`."""
        return self.plan.by_condition(self.coherent_r)

    def answers(
        self, condition: Condition, text: Callable[[list[int]], str]
    ) -> dict[tuple[str, int], Answer]:
        """Returns (prompt, sample) -> the answer under a condition.

        Args:
          text: token ids -> what readers see.
        """
        _, prompts, samples = self.plan.shape
        first = self.plan.place[condition] * prompts * samples
        answers = {}
        for r in range(first, first + prompts * samples):
            row = self.plan.rows[r]
            ids = unpadded_row(self.tokens_rn[r])
            answers[row.prompt, row.sample] = Answer(
                text=text(ids),
                ids=tuple(ids),
                behaviour=float(self.behaviour_r[r]),
                coherent=float(self.coherent_r[r]),
                attempt=int(self.attempt_r[r]),
                label=self.labels_r[r],
            )
        return answers

    def unread(self) -> list[dict[str, Any]]:
        """Returns `prompt` and `ids` of the answers whose replies could not be read, as
        a stage keeps them to ask for them again.
        """
        unread = []
        for row, tokens_n, label in zip(
            self.plan.rows, self.tokens_rn, self.labels_r, strict=True
        ):
            if label == MALFORMED:
                ids = unpadded_row(tokens_n)
                unread.append({"prompt": row.prompt, "ids": ids})
        return unread


def padded(ids: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Returns token ids as int32 `[rows, width]`, −1 after the end of each."""
    out = np.full((len(ids), width), -1, np.int32)
    for row, values in zip(out, ids, strict=True):
        row[: len(values)] = values
    return out


def unpadded(tokens_rn: np.ndarray) -> Iterator[list[int]]:
    """Returns the token ids of every row, one after another; the inverse of `padded`."""
    return map(unpadded_row, tokens_rn)


def unpadded_row(tokens_n: np.ndarray) -> list[int]:
    """Returns the token ids of one row, without what pads it."""
    return tokens_n[tokens_n >= 0].tolist()


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean over what is not NaN; NaN where everything is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


# ---- grades --------------------------------------------------------------------------


def judged(judge: Judge, items: Sequence[Item], *, bar: bool = True) -> list[Grade]:
    """Returns grades in the order of the items; a judge may answer in any."""
    grades: dict[str, Grade] = {}
    replies = judge.grade(items)
    for name, grade in tqdm(
        replies, total=len(items), desc="grade", unit="answer", disable=not bar
    ):
        grades[name] = grade
    return [grades[item.id] for item in items]


def reading_of(grade: Grade) -> str:
    """Returns how a reply was read: "weighted" by token probabilities, by its "text",
    or "unreadable".
    """
    if grade.malformed:
        return "unreadable"
    return "weighted" if grade.weighted else "text"


def with_coherence(grades: Sequence[Grade], coherent_r: np.ndarray) -> list[Grade]:
    """Returns grades in which coherence is what was measured; an incoherent answer is
    excluded, whatever its grade.
    """
    out = []
    for grade, value in zip(grades, coherent_r, strict=True):
        if value == 0:
            out.append(_incoherent(grade))
        else:
            out.append(replace(grade, coherent=None if np.isnan(value) else 1.0))
    return out


def _incoherent(grade: Grade) -> Grade:
    """Returns the grade of an answer that was measured to be incoherent: what the judge said of
    it does not count.
    """
    return replace(
        grade,
        label=INCOHERENT,
        score=None,
        behaviour=None,
        coherent=0.0,
        excluded=True,
        malformed=False,
    )


# ---- grading a plan ------------------------------------------------------------------

MeasureCoherence = Callable[[Sequence[SweepRow], Sequence[Sequence[int]]], np.ndarray]
"""(rows, their token ids) -> coherence 1.0, 0.0 or NaN, measured without the judge."""


@dataclass(frozen=True)
class Grader:
    """Grades rows, and samples excluded ones again.

    Args:
      judge: of the behaviour.
      item: `(id, prompt's id, token ids) -> Item` for the judge.
      sample: samples rows again.
      attempts: how often an excluded answer is sampled again.
      coherence: measures it where the judge does not report it; None leaves it to the
        judge.
      bar: show bars.
    """

    judge: Judge
    item: Callable[[str, str, list[int]], Item]
    sample: SampleBatches
    attempts: int
    coherence: MeasureCoherence | None = None
    bar: bool = True

    def grades(self, rows: Sequence[SweepRow], ids: Sequence[list[int]]) -> list[Grade]:
        """Returns the grades of completions of rows."""
        items = []
        for row, tokens in zip(rows, ids, strict=True):
            items.append(self.item(row.id, row.prompt, tokens))
        grades = judged(self.judge, items, bar=self.bar)
        if self.coherence is None:
            return grades
        return with_coherence(grades, self.coherence(rows, ids))


def grade_plan(
    plan: Plan, tokens_rn: np.ndarray, grader: Grader, progress: Progress
) -> tuple[GradedAnswers, dict[str, Any]]:
    """Grades the completions of a plan, samples the excluded ones again up to
    `grader.attempts` times, and counts what happened.

    Args:
      tokens_rn: completions of the plan's rows.
      progress: of this stage; rows that are sampled again are kept there, and grades by
        the judge's cache.

    Returns:
      `GradedAnswers`, and counts: labels of all attempts, how replies were read,
      resampled, missing, malformed.
    """
    count = len(plan.rows)
    rows, ids = list(plan.rows), list(unpadded(tokens_rn))
    behaviour_r, coherent_r = np.full(count, np.nan), np.full(count, np.nan)
    labels = [""] * count
    tally = _Tally()
    # An excluded answer is missing, not a 0: refusals under steering would else pass for
    # harmless answers. Another sample of the same prompt stands in for it.
    left = list(range(count))
    for attempt in range(grader.attempts + 1):
        if attempt:
            _sample_again(rows, ids, left, grader, progress)
            tally.resampled += len(left)
        grades = grader.grades([rows[r] for r in left], [ids[r] for r in left])
        excluded = []
        for r, grade in zip(left, grades, strict=True):
            behaviour_r[r] = _number(grade.behaviour)
            labels[r] = grade.label
            tally.add(grade)
            # Of the first attempt: answers are sampled again because they are incoherent,
            # and the later ones would make every strength look coherent.
            if not attempt:
                coherent_r[r] = _number(grade.coherent)
            if grade.excluded:
                excluded.append(r)
        left = excluded
        if not left:
            break
    answers = GradedAnswers(
        plan,
        padded(ids, max(tokens_rn.shape[1], 1)),
        behaviour_r,
        coherent_r,
        np.array([row.attempt for row in rows], int),
        tuple(labels),
    )
    return answers, tally.counts(missing=int(np.isnan(behaviour_r).sum()))


def _sample_again(
    rows: list[SweepRow],
    ids: list[list[int]],
    left: Sequence[int],
    grader: Grader,
    progress: Progress,
) -> None:
    """Puts the next attempts of the rows `left`, and their completions, in their place."""
    for r in left:
        rows[r] = rows[r].again()
    fresh = sample_rows(
        [rows[r] for r in left],
        grader.sample,
        progress,
        name=f"attempt {rows[left[0]].attempt}",
        bar=grader.bar,
    )
    for r, sampled in zip(left, fresh, strict=True):
        ids[r] = list(sampled.ids)


@dataclass
class _Tally:
    """Counts over all attempts."""

    labels: Counter[str] = field(default_factory=Counter)
    readings: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    resampled: int = 0

    def add(self, grade: Grade) -> None:
        """Counts a grade."""
        self.labels[grade.label] += 1
        self.readings[reading_of(grade)] += 1
        self.malformed += grade.malformed

    def counts(self, *, missing: int) -> dict[str, Any]:
        """Returns plain values for a stage's meta."""
        return {
            "labels": dict(sorted(self.labels.items())),
            "read": dict(sorted(self.readings.items())),
            "resampled": self.resampled,
            "malformed": self.malformed,
            "missing": missing,
        }


def _number(value: float | None) -> float:
    """Returns a grade's value; NaN where it has none."""
    return np.nan if value is None else float(value)
