"""Replies of a judge that an earlier run could not read: they are asked for again,
since the judge may have been fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sae_attr.judge import Item, JudgeStopped
from sae_attr.store import Result
from sae_attr.study.case import Case
from sae_attr.study.grading import judged

# Stage that grades answers -> whose prompts they answer. Such a stage keeps what it
# could not read in `meta["unread"]`.
GRADED_SPLITS = {
    "grade": "pairs",
    "strengths": "strengths",
    "judge": "effects",
    "sampled_check": "effects",
}


def graded_split(case: Case, stage: str) -> str | None:
    """Returns whose prompts a stage of this case grades answers to; None for another
    stage.
    """
    owner, _, rest = stage.partition(".")
    if owner != case.name:
        return None
    return GRADED_SPLITS.get(rest.split(".")[0])


def read_again(case: Case, results: Mapping[str, Result]) -> list[str]:
    """Asks the judge again for what it left unread, and returns the stages of which at
    least one reply can be read now.

    Where the judge cannot be asked, or every reply is as unreadable as before, nothing
    is returned and the stored results stay. What is read now is in the judge's cache,
    so that computing a stage again asks nothing twice.

    Args:
      results: stage -> stored result.
    """
    mended = []
    for name, result in results.items():
        split = graded_split(case, name)
        if split is None:
            continue
        prompts = case.prompts_by_id(split)
        items = []
        for i, answer in enumerate(result.meta.get("unread", ())):
            prompt = prompts[answer["prompt"]]
            items.append(case.item(f"{name}/{i}", prompt, answer["ids"]))
        if items and _any_readable(case, items):
            mended.append(name)
    return mended


def _any_readable(case: Case, items: list[Item]) -> bool:
    try:
        grades = judged(case.judge, items, bar=False)
    except JudgeStopped as error:
        logging.getLogger(__name__).warning(
            "what the judge left unread could not be asked for again: %s", error
        )
        return False
    malformed = [grade.malformed for grade in grades]
    return not all(malformed)
