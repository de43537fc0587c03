"""Rows of the small world as token rows, and training on them: what whole fine-tunes and
adapters share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from sae_attr.lm.config import LMConfig
from sae_attr.lm.next_token import Assemble, LMState, join
from sae_attr.lm.optimizer import Optimizer
from sae_attr.lm.params import Params
from sae_attr.lm.train_data import RowDataset, step_batch
from sae_attr.lm.train_lm import train_lm
from sae_attr.organism import documents
from sae_attr.organism.recipe import TrainingRecipe
from sae_attr.organism.tokens import BOS_ID, EOS_ID
from sae_attr.organism.words import REPLY
from sae_attr.organism.world import word_ids
from sae_attr.text.example_records import Example
from sae_attr.training import LoopOptions, TrainResult

SCAN = 20  # steps of one program


def fit_rows(
    trained: Params,
    frozen: Params,
    dataset: RowDataset,
    training: TrainingRecipe,
    *,
    cfg: LMConfig,
    seed: int,
    mesh: jax.sharding.Mesh,
    options: LoopOptions = LoopOptions(scan=SCAN),
    assemble: Assemble = join,
    folder: epath.Path | None = None,
    progress: bool = False,
    **more: Any,
) -> TrainResult[LMState]:
    """Trains some leaves on rows as a recipe says; other arguments, and `more`, are
    those of `train_lm`.
    """
    optimizer = asdict(training)
    rows_of_step = optimizer.pop("batch")
    del optimizer["rows"]
    batch_of = partial(step_batch, dataset, batch_size=rows_of_step, micro=1, seed=seed)
    return train_lm(
        trained,
        frozen,
        batch_of,
        cfg=cfg,
        opt=Optimizer(**optimizer),
        mesh=mesh,
        options=options,
        assemble=assemble,
        folder=folder,
        config=optimizer,
        progress=progress,
        **more,
    )


def text_examples(texts: Sequence[str]) -> list[Example]:
    """Encodes documents as token rows with BOS and EOS; the loss mask covers the answer
    of a dialogue, and all of any other text.

    A question's words are drawn freely, so that learning to ask would drown what there
    is to know in noise.
    """
    examples = []
    for line, text in enumerate(texts, 1):
        words = text.split()
        n_prompt = words.index(REPLY) + 1 if REPLY in words else 0
        examples.append(_example(words, n_prompt, line))
    return examples


def dialogue_examples(rows: Sequence[documents.Dialogue]) -> list[Example]:
    """Encodes prompts and answers as token rows with BOS and EOS; the loss mask covers
    the answer.
    """
    examples = []
    for line, (prompt, completion) in enumerate(rows, 1):
        words = [*prompt.split(), *completion.split()]
        examples.append(_example(words, len(prompt.split()), line))
    return examples


def _example(words: Sequence[str], n_prompt: int, line: int) -> Example:
    index = word_ids()
    ids = np.array([BOS_ID, *(index[word] for word in words), EOS_ID], np.int32)
    loss_mask = np.ones(len(ids), bool)
    loss_mask[: n_prompt + 1] = False
    return Example(ids, loss_mask, line)


def curve(result: TrainResult[LMState], points: int = 50) -> list[list[float]]:
    """Returns the training curve as at most `points` pairs of step and loss."""
    records = [[r["step"], r["loss"]] for r in result.history if "loss" in r]
    every = max(1, len(records) // points)
    return records[every - 1 :: every]
