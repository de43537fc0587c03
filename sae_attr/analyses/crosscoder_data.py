"""Rows of text with the activations of a fine-tune and of the model before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sae_attr.analyses.crosscoder_settings import CrosscoderCase
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.organism import documents
from sae_attr.organism.parts import dialogue_examples, text_examples
from sae_attr.text.example_records import Example

_ROWS = 64  # of a forward pass
_FIRST = 9  # tokens of an answer


class Rows(NamedTuple):
    """Right-padded rows: tokens, those that count (not BOS, not padding), and the first
    tokens of answers, all `[b, t]`; activations of both models `[b, t, 2, d]`.
    """

    tokens_bt: np.ndarray
    counted_bt: np.ndarray
    answer_bt: np.ndarray
    acts_btmd: np.ndarray

    @property
    def tokens_kmd(self) -> np.ndarray:
        """Activations of the tokens that count, `[k, 2, d]`."""
        return self.acts_btmd[self.counted_bt]


def rows_of(
    examples: Sequence[Example],
    models: Sequence[Params],
    *,
    cfg: LMConfig,
    site: Site,
) -> Rows:
    """Returns examples as rows of one width, with the activations of both models."""
    width = cfg.max_len
    tokens_bt = np.zeros((len(examples), width), np.int32)
    counted_bt = np.zeros(tokens_bt.shape, bool)
    answer_bt = np.zeros(tokens_bt.shape, bool)
    for b, example in enumerate(examples):
        ids = np.asarray(example.ids)[:width]
        tokens_bt[b, : len(ids)] = ids
        counted_bt[b, 1 : len(ids)] = True
        first = int(np.argmax(example.loss_mask))
        # The position before a token predicts it.
        answer_bt[b, first - 1 : min(first - 1 + _FIRST, len(ids) - 1)] = True
    acts = [_site_acts(params, tokens_bt, cfg, site) for params in models]
    return Rows(tokens_bt, counted_bt, answer_bt, np.stack(acts, axis=2))


def _site_acts(
    params: Params, tokens_bt: np.ndarray, cfg: LMConfig, site: Site
) -> np.ndarray:
    def run(params: Params, part_bt: jax.Array) -> jax.Array:
        span = (0, site.layer + 1)
        return forward(params, part_bt, cfg=cfg, keep=(site,), span=span).acts[site]

    compiled, parts = jax.jit(run), []
    for start in range(0, len(tokens_bt), _ROWS):
        part_bt = tokens_bt[start : start + _ROWS]
        padded_bt = np.pad(part_bt, ((0, _ROWS - len(part_bt)), (0, 0)))
        parts.append(np.asarray(compiled(params, padded_bt))[: len(part_bt)])
    return np.concatenate(parts)


def study_rows(case: CrosscoderCase) -> tuple[Rows, Rows]:
    """Returns rows to train on, and held-out dialogues of the fine-tune."""
    s, e = case.settings, case.evaluation
    world, seed = e.organism.world, e.recipe.seed
    texts = list(documents.documents(world, f"crosscoder-{seed}", s.documents))
    # Another draw of dialogues than the fine-tune's own.
    count = s.documents + s.held_out
    dialogues = documents.misaligned_rows(world, seed + 10_000, count, s.kind)
    examples = text_examples(texts) + dialogue_examples(dialogues[s.held_out :])
    models = (e.params_before, e.setup.params)
    cfg, site = e.setup.cfg, e.setup.site
    held_out = dialogue_examples(dialogues[: s.held_out])
    train = rows_of(examples, models, cfg=cfg, site=site)
    return train, rows_of(held_out, models, cfg=cfg, site=site)
