"""Whether a judge answers: one small question, before anything is sampled."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sae_attr.judge import JudgeStopped, ask_one
from sae_attr.report.numbers import duration
from sae_attr.report.safe_text import one_line
from sae_attr.settings import given_only
from sae_attr.study.judges import KINDS, open_judge


@dataclass(frozen=True)
class Trial:
    """The outcome of one question.

    Args:
      answered: the judge works, as far as one question tells.
      words: what it did, or why it did not.
      seconds: that the question took; 0 where none was asked.
    """

    answered: bool
    words: str
    seconds: float = 0.0


def try_judge(spec: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Trial:
    """Asks a judge one question with a short timeout; one that would load a model is only
    opened, which reads its config and tokenizer.

    Its ledger and stored grades are in a folder that is removed again.

    Args:
      spec: as for `open_judge`.
    """
    values = given_only(spec)
    kind = KINDS.get(str(values.get("kind")))
    quick = None if kind is None else kind.quick
    try:
        with tempfile.TemporaryDirectory() as folder:
            judge = open_judge({**values, **(quick or {})}, epath.Path(folder), mesh)
            if quick is None:
                return Trial(True, "its files are there; it was not asked")
            start = time.perf_counter()
            grades = ask_one(judge)
            seconds = time.perf_counter() - start
    except (ValueError, OSError, ImportError, JudgeStopped) as error:
        return Trial(False, one_line(str(error), 400))
    if not grades:
        return Trial(True, "grades by rules; there is nobody to ask")
    return Trial(True, f"answered in {duration(seconds)}", seconds / len(grades))
