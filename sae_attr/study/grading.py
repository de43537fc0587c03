"""What a judge says of sampled completions; excluded answers are sampled again, and are
missing if that does not help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from sae_attr.judge import Grade, Item, Judge
from sae_attr.store import Arrays, Progress
from sae_attr.study.samples import Answer, Rows, padded, sampled, unpadded

INCOHERENT = "INCOHERENT"


@dataclass(frozen=True, eq=False)
class Graded:
    """Completions with what was said of them.

    Args:
      tokens_rn: int32 `[r, n]`, −1 after the end: the completion that counts (of the
        last attempt).
      behaviour_r: 1, 0, or NaN where no attempt gave an answer that can be graded.
      coherent_r: 1, 0 or NaN, of the FIRST attempt: sampling again must not hide what
        steering breaks.
      attempt_r: the attempt that counts.
      labels_r: the judge's word for it.
    """

    tokens_rn: np.ndarray
    behaviour_r: np.ndarray
    coherent_r: np.ndarray
    attempt_r: np.ndarray
    labels_r: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """As a stage stores them."""
        return {
            name: getattr(self, name)
            for name in ("tokens_rn", "behaviour_r", "coherent_r", "attempt_r")
        }

    @classmethod
    def load(cls, arrays: Arrays, meta: Mapping[str, Any]) -> Graded:
        """From a stored stage."""
        return cls(
            **{k: np.asarray(v) for k, v in arrays.items()},
            labels_r=tuple(meta["labels"]),
        )

    def shaped(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Behaviour and coherence as `[arms, prompts, samples]`."""
        return self.behaviour_r.reshape(shape), self.coherent_r.reshape(shape)


def known_mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def judged(judge: Judge, items: Sequence[Item], *, bar: bool = True) -> list[Grade]:
    """Grades in the order of the items; a judge may answer in any."""
    found: dict[str, Grade] = {}
    for name, grade in tqdm(
        judge.grade(items),
        total=len(items),
        desc="grade",
        unit="answer",
        disable=not bar,
    ):
        found[name] = grade
    return [found[item.id] for item in items]


Coherence = Callable[[Rows, list[list[int]]], np.ndarray]
"""Coherence of completions, 1.0, 0.0 or NaN, measured without the judge."""


def how_read(grade: Grade) -> str:
    """Returns how a reply was read: "weighted" by token probabilities, by its "text",
    or "unreadable".
    """
    if grade.malformed:
        return "unreadable"
    return "weighted" if grade.weighted else "text"


def incoherent(grade: Grade) -> Grade:
    """Returns the grade of an answer that was measured to be incoherent: what the judge
    said of it does not count.
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


def with_coherence(grades: Sequence[Grade], coherent_r: np.ndarray) -> list[Grade]:
    """Returns grades in which coherence is what was measured; an incoherent answer is
    excluded, whatever its grade.
    """
    out = []
    for grade, value in zip(grades, coherent_r, strict=True):
        if value == 0:
            out.append(incoherent(grade))
        else:
            out.append(replace(grade, coherent=None if np.isnan(value) else 1.0))
    return out


def graded(
    rows: Rows,
    tokens_rn: np.ndarray,
    judge: Judge,
    item: Callable[[str, int, list[int]], Item],
    answer: Answer,
    progress: Progress,
    *,
    attempts: int,
    batch_size: int,
    bar: bool = True,
    coherence: Coherence | None = None,
) -> tuple[Graded, dict[str, Any]]:
    """Grades completions, samples the excluded ones again up to `attempts` times, and
    says what happened.

    Args:
      rows: of first attempts, as they were sampled.
      tokens_rn: their completions.
      item: `(id, prompt number, token ids) -> Item` for the judge.
      answer: samples rows again.
      progress: of this stage; sampled rows are kept there, and grades are kept by the
        judge's cache.
      coherence: measures it where the judge does not tell; None leaves it to the judge.

    Returns:
      `Graded`, and counts: labels of all attempts, how replies were read, resampled,
      missing, malformed.
    """
    ids = list(unpadded(tokens_rn))
    behaviour_r, coherent_r = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    attempt_r, labels = np.zeros(len(rows), int), [""] * len(rows)
    counts: dict[str, Any] = {
        "labels": Counter(),
        "read": Counter(),
        "resampled": 0,
        "malformed": 0,
    }
    todo = np.arange(len(rows))
    for attempt in range(attempts + 1):
        if attempt:
            again = rows[todo].again(attempt)
            fresh = sampled(
                answer,
                again,
                progress,
                batch_size=batch_size,
                name=f"attempt {attempt}",
                bar=bar,
            )
            ids = _replaced(ids, todo, fresh)
            counts["resampled"] += len(todo)
        grades = judged(
            judge,
            [item(f"{r}/{attempt}", int(rows.prompt_r[r]), ids[r]) for r in todo],
            bar=bar,
        )
        if coherence is not None:
            grades = with_coherence(
                grades, coherence(rows[todo], [ids[r] for r in todo])
            )
        for r, grade in zip(todo, grades, strict=True):
            behaviour_r[r] = np.nan if grade.behaviour is None else grade.behaviour
            attempt_r[r], labels[r] = attempt, grade.label
            counts["labels"][grade.label] += 1
            counts["malformed"] += grade.malformed
            counts["read"][how_read(grade)] += 1
            if not attempt:
                coherent_r[r] = (
                    np.nan if grade.coherent is None else float(grade.coherent)
                )
        todo = todo[[grade.excluded for grade in grades]]
        if not len(todo):
            break
    width = max(tokens_rn.shape[1], 1)
    out = Graded(padded(ids, width), behaviour_r, coherent_r, attempt_r, tuple(labels))
    counts |= {
        "missing": int(np.isnan(behaviour_r).sum()),
        "labels": dict(sorted(counts["labels"].items())),
    }
    counts["read"] = dict(sorted(counts["read"].items()))
    return out, counts


def _replaced(
    ids: list[list[int]], where: np.ndarray, fresh: list[list[int]]
) -> list[list[int]]:
    out = list(ids)
    for r, values in zip(where, fresh, strict=True):
        out[r] = values
    return out
