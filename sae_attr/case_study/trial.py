"""Arms of a model on the prompts of one split: their completions, and what a judge says of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sae_attr.case_study.case import Case
from sae_attr.case_study.grading import Graded, graded
from sae_attr.case_study.samples import Answer, Arms, Rows, every_row, padded, sampled
from sae_attr.store import Progress


@dataclass(frozen=True, eq=False)
class Trial:
    """What is asked, of which model, under which arms.

    Args:
      direction: `away` asks the model with the behaviour, `toward` the one without.
      split: whose prompts are asked.
      arms: what is done to the model.
      norm: the unit of strengths, the site's mean norm.
      samples: completions of every arm and prompt.
    """

    case: Case
    direction: str
    split: str
    arms: Arms
    norm: float
    samples: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Arms, prompts, samples."""
        return len(self.arms), len(self.case.prompts(self.split)), self.samples

    @cached_property
    def rows(self) -> Rows:
        """The completions of first attempts, arm by arm."""
        return every_row(*self.shape)

    @cached_property
    def _answer(self) -> Answer:
        return self.case.answer(self.direction, self.split, self.arms, self.norm)

    @property
    def _speed(self) -> dict[str, Any]:
        runtime = self.case.runtime
        return {"batch_size": runtime.batch_size, "bar": runtime.progress}

    def sample(self, progress: Progress, name: str) -> tuple[np.ndarray, dict[str, int]]:
        """Completions int32 `[r, n]`, −1 after the end of each, and how many they are: samples, tokens."""
        ids = sampled(self._answer, self.rows, progress, name=name, **self._speed)
        counts = {"samples": len(ids), "tokens": sum(map(len, ids))}
        return padded(ids, self.case.study.sampling.max_new), counts

    def grade(
        self, tokens_rn: np.ndarray, progress: Progress, *, attempts: int | None = None
    ) -> tuple[Graded, dict[str, Any]]:
        """What the judge says of completions, and the counts; excluded ones are sampled again.

        Args:
          attempts: how often; None as the settings say.
        """
        attempts = self.case.study.sampling.attempts if attempts is None else attempts
        item = self.case.item(self.split)
        return graded(
            self.rows,
            np.asarray(tokens_rn),
            self.case.judge,
            item,
            self._answer,
            progress,
            attempts=attempts,
            **self._speed,
        )
