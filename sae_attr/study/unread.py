"""Replies of a judge that an earlier run could not read: they are asked for again,
since a judge may have been mended.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sae_attr.judge import MALFORMED, JudgeStopped
from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.grading import Graded, judged
from sae_attr.study.samples import padded, unpadded

SPLITS = {
    "grade": "pairs",
    "strengths": "strengths",
    "judge": "effects",
}  # kind of a stage -> whose prompts it grades


def unread_arrays(answers: Graded, prompt_r: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the answers whose replies could not be read, as a stage stores them that
    keeps no others.
    """
    rows = [r for r, label in enumerate(answers.labels_r) if label == MALFORMED]
    ids = list(unpadded(answers.tokens_rn[rows]))
    return {
        "unread_tokens_rn": padded(ids, answers.tokens_rn.shape[1]),
        "unread_prompt_r": np.asarray(prompt_r)[rows],
    }


def unread_answers(
    case: Case, kind: str, result: Result
) -> Iterator[tuple[int, list[int]]]:
    """Yields prompt number and token ids of every answer of a finished stage whose
    reply could not be read.
    """
    if kind == "strengths":
        tokens_rn = np.asarray(
            result.arrays.get("unread_tokens_rn", np.zeros((0, 0), np.int32))
        )
        yield from zip(
            np.asarray(result.arrays.get("unread_prompt_r", ())).tolist(),
            unpadded(tokens_rn),
        )
        return
    samples = (
        case.settings.pair_samples if kind == "grade" else case.study.effect_samples
    )
    prompts = len(case.prompts(SPLITS[kind]))
    tokens_rn = np.asarray(result.arrays["tokens_rn"])
    for r, label in enumerate(result.meta["labels"]):
        if label == MALFORMED:
            yield r // samples % prompts, next(unpadded(tokens_rn[r : r + 1]))


def grades_of(case: Case, stage: str) -> str | None:
    """Returns the kind of a stage of this case that grades answers (grade, strengths,
    judge); None for another stage.
    """
    owner, _, rest = stage.partition(".")
    kind = rest.split(".")[0]
    return kind if owner == case.settings.name and kind in SPLITS else None


def read_again(case: Case, results: Mapping[str, Result]) -> list[str]:
    """Asks the judge again for what it left unread, and returns the stages of which at
    least one reply can be read now.

    Where the judge cannot be asked, or every reply is as unreadable as before, nothing
    is returned and the stored results stand. What is read now is in the judge's cache,
    so that making a stage again asks nothing twice.

    Args:
      results: stage -> stored result.
    """
    mended = []
    for name, result in results.items():
        kind = grades_of(case, name)
        if kind is None:
            continue
        item = case.item(SPLITS[kind])
        items = [
            item(f"{name}/{i}", p, ids)
            for i, (p, ids) in enumerate(unread_answers(case, kind, result))
        ]
        if items and _any_readable(case, items):
            mended.append(name)
    return mended


def _any_readable(case: Case, items: list[Any]) -> bool:
    try:
        grades = judged(case.judge, items, bar=False)
    except JudgeStopped as error:
        logging.getLogger(__name__).warning(
            "what the judge left unread could not be asked for again: %s", error
        )
        return False
    return any(not grade.malformed for grade in grades)
