"""Arms of a model on the prompts of one split: their completions, and what a judge says
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sae_attr.steering.coherence import OwnAnswers, coherent, own_answers, repetition
from sae_attr.store import Progress
from sae_attr.study.case import Case
from sae_attr.study.grading import Graded, graded
from sae_attr.study.samples import (
    Answer,
    Arms,
    Rows,
    every_row,
    padded,
    sampled,
    unpadded,
)


@dataclass(frozen=True, eq=False)
class Trial:
    """What is asked, of which model, under which arms.

    Args:
      direction: `away` asks the model with the behaviour, `toward` the one without.
      split: whose prompts are asked.
      arms: what is done to the model.
      norm: the unit of strengths, the site's mean norm.
      samples: completions of every arm and prompt.
      own: measures coherence against these answers of the unsteered model; None leaves
        it to the judge.
    """

    case: Case
    direction: str
    split: str
    arms: Arms
    norm: float
    samples: int
    own: OwnAnswers | None = None

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

    def sample(
        self, progress: Progress, name: str
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Completions int32 `[r, n]`, −1 after the end of each, and how many they are:
        samples, tokens.
        """
        ids = sampled(self._answer, self.rows, progress, name=name, **self._speed)
        counts = {"samples": len(ids), "tokens": sum(map(len, ids))}
        return padded(ids, self.case.study.sampling.max_new), counts

    def grade(
        self, tokens_rn: np.ndarray, progress: Progress, *, attempts: int | None = None
    ) -> tuple[Graded, dict[str, Any]]:
        """What the judge says of completions, and the counts; excluded ones are sampled
        again.

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
            coherence=None if self.own is None else self._coherence,
            **self._speed,
        )

    def own_answers(self, tokens_rn: np.ndarray, *, tail: float) -> OwnAnswers:
        """Returns the limits of coherence that completions of the unsteered model set;
        see `steering.coherence`.
        """
        ids = list(unpadded(tokens_rn))
        return own_answers(*self._measured(self.rows, ids), tail=tail)

    def _coherence(self, rows: Rows, ids: Sequence[Sequence[int]]) -> np.ndarray:
        assert self.own is not None  # grade
        return coherent(*self._measured(rows, ids), self.own)

    def _measured(
        self, rows: Rows, ids: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability per token under the unsteered model and repetition, `[r]`
        each.
        """
        prompts = rows.prompt_r.tolist()
        logp_r = self.case.logp_per_token(self.direction, self.split, prompts, ids)
        return logp_r, np.array([repetition(row) for row in ids])
