"""Inputs of a first notebook: a pairs file as one batch with its weights, and the mean
activation over a text file.

Both are short forms of what the stages of an attribution do batch by batch; they hold
everything in memory, which suits a few hundred short completions.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from sae_attr.activations import CorpusBatch, mean_activation
from sae_attr.attribution.token_table import token_weights
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import make_mesh
from sae_attr.text.batching import RowBatch, batches, corpus_batches
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.encoding import encode_pairs
from sae_attr.text.pairs import read_pairs
from sae_attr.text.tokenizer import Tokenizer

SPECIAL = frozenset({"special"})


def pair_batch(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    context: int,
    scope: str = "prompt",
    exclude: frozenset[str] = SPECIAL,
) -> tuple[RowBatch, np.ndarray]:
    """Reads a pairs file as one batch, and the weight of every token in Δ.

    Args:
      context: the most tokens that a row may have, such as `cfg.max_len`.
      scope: tokens that count, prompt | completion | all.
      exclude: kinds of tokens that never count, of bos and special.

    Returns:
      (batch, weights float64 `[b, t]`): with these weights the scores of
      `sae_attr.attribute`, summed over rows, are Δ (docs/method.md, The score).

    Raises:
      ValueError: with file and line, a record that is no pair or does not fit.
    """
    pairs = read_pairs(path)
    rows = encode_pairs(pairs, tokenizer, context=context, path=path).rows
    # One batch holds all rows, so that it keeps their order.
    batch, _ = batches(rows, batch_size=len(rows))[0]
    weights_bt = np.zeros(batch.tokens_bt.shape)
    # Valid tokens of the batch, row by row, are the tokens of the rows one after another.
    weights_bt[np.asarray(batch.valid_bt)] = token_weights(rows, scope, exclude)
    return batch, weights_bt


def mean_over_texts(
    params: Params,
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    cfg: LMConfig,
    site: Site,
    context: int = 128,
    batch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """Computes ā, the mean activation `[d]` at a site over the texts of a corpus file,
    special tokens left out (docs/method.md, Mean activation and masks).

    Raises ValueError for a corpus that cannot be read or of which no token counts.
    """
    context = min(context, cfg.max_len)
    texts = corpus_batches(
        read_corpus(path), tokenizer, context=context, batch_size=batch_size
    )
    counted = (
        CorpusBatch(x.tokens_bt, x.valid_bt, x.valid_bt & ~x.special_bt) for x in texts
    )
    mesh = make_mesh() if mesh is None else mesh
    return mean_activation(params, counted, cfg=cfg, site=site, mesh=mesh).mean_d
