"""Completions of arms: what is steered by how much, on which prompts, sampled row by
row and continued after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from sae_attr.parallel import from_main
from sae_attr.store import Progress

UNSTEERED = -1


@dataclass(frozen=True, eq=False)
class Arms:
    """What is done to a model, one arm after another.

    Args:
      latents_k: int64, `UNSTEERED` for the model as it is.
      strengths_k: float64, signed, in units of the site's mean norm; 0 leaves the model
        as it is.
    """

    latents_k: np.ndarray
    strengths_k: np.ndarray

    def __len__(self) -> int:
        return len(self.latents_k)


@dataclass(frozen=True, eq=False)
class Rows:
    """Completions to make, one a row: `arm_r`, `prompt_r`, `sample_r`, `attempt_r`, all
    int64.
    """

    arm_r: np.ndarray
    prompt_r: np.ndarray
    sample_r: np.ndarray
    attempt_r: np.ndarray

    def __len__(self) -> int:
        return len(self.arm_r)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(
            self.arm_r[index],
            self.prompt_r[index],
            self.sample_r[index],
            self.attempt_r[index],
        )

    def tuples(self) -> list[tuple[int, int, int, int]]:
        """(arm, prompt, sample, attempt) of every row."""
        return list(
            zip(
                *(
                    x.tolist()
                    for x in (self.arm_r, self.prompt_r, self.sample_r, self.attempt_r)
                )
            )
        )

    def again(self, attempt: int) -> Rows:
        """The same rows at another attempt."""
        return Rows(
            self.arm_r, self.prompt_r, self.sample_r, np.full(len(self), attempt)
        )


def every_row(arms: int, prompts: int, samples: int) -> Rows:
    """All rows of first attempts, arm by arm, in each prompt by prompt."""
    k, p, s = (x.ravel() for x in np.indices((arms, prompts, samples)))
    return Rows(k, p, s, np.zeros(len(k), int))


Answer = Callable[[Rows], list[list[int]]]
"""Token ids of the completions of at most `batch_size` rows, without the token that
ended them.
"""


def sampled(
    answer: Answer,
    rows: Rows,
    progress: Progress,
    *,
    batch_size: int,
    name: str,
    bar: bool = True,
) -> list[list[int]]:
    """Token ids of every row, in order; batches that were finished before a kill are
    not made again.

    Which rows share a batch depends on their numbers alone, so a continued run computes
    what an uninterrupted one does.

    Args:
      name: tells apart the several lists of rows that one stage samples.
    """
    finished = {
        row["batch"]: row["ids"]
        for row in progress.rows(("name", "batch", "size", "rows", "ids"))
        if row["name"] == name
        and row["size"] == batch_size
        and row["rows"] == len(rows)
    }
    out: list[list[int]] = []
    spans = [slice(i, i + batch_size) for i in range(0, len(rows), batch_size)]
    for number, span in enumerate(
        tqdm(spans, desc=name, unit="batch", disable=not bar)
    ):
        ids = finished.get(number)
        if not from_main(ids is not None):
            ids = answer(rows[span])
            progress.append(
                [
                    {
                        "name": name,
                        "batch": number,
                        "size": batch_size,
                        "rows": len(rows),
                        "ids": ids,
                    }
                ]
            )
        assert ids is not None
        out += ids
    return out


def padded(ids: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Token ids as int32 `[rows, width]`, −1 after the end of each."""
    out = np.full((len(ids), width), -1, np.int32)
    for row, values in zip(out, ids, strict=True):
        row[: len(values)] = values
    return out


def unpadded(tokens_rn: np.ndarray) -> Iterator[list[int]]:
    """The inverse of `padded`."""
    for row in tokens_rn:
        yield [int(i) for i in row[row >= 0]]
