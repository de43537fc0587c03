"""Blocks of activations from the running model."""

from __future__ import annotations

import jax
import numpy as np

from sae_attr.activations.blocks import (
    ActivationSource,
    Collect,
    collector,
    count_tokens,
    describe,
)
from sae_attr.activations.shuffle import ActivationBlock, BlockStream, permute
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.store import digest

VERSION = 1  # raise it when the same source gives other blocks


def live_blocks(
    params: Params,
    source: ActivationSource,
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    buffer_tokens: int,
    batch_rows: int = 16,
    seed: int = 0,
    collect: Collect | None = None,
) -> BlockStream:
    """Returns blocks that the model computes when they are read: a random set of rows
    each, other sets in other epochs.

    Args:
      buffer_tokens: positions of one block. Memory holds that many × the widths of the
        sites, beside one forward pass. More mix better: of two tokens of one batch,
        about context / buffer_tokens come from the same row.
      batch_rows: rows of one forward pass.
      collect: in the place of the model's own `collector`, such as that of two models.
    """
    if collect is None:
        collect = collector(params, source, cfg=cfg, mesh=mesh, batch_rows=batch_rows)
    per_epoch, rows = blocks_of_rows(source, buffer_tokens)

    def read(g: int) -> ActivationBlock:
        tokens = collect(rows_of_block(source, g, rows, seed))
        return ActivationBlock(tokens.acts, tokens.ids_k2)

    def count(g: int) -> int:
        return count_tokens(source, rows_of_block(source, g, rows, seed))

    # Which tokens are outliers is known from activations alone.
    counts = count if source.masks.outlier is None else None
    name = digest([VERSION, describe(source), rows, seed])
    return BlockStream(name, per_epoch, read, counts)


def blocks_of_rows(source: ActivationSource, tokens: int) -> tuple[int, int]:
    """Returns blocks of an epoch, and rows of a block of at most `tokens` positions.

    Raises:
      ValueError: `tokens` is less than a row has.
    """
    if tokens < source.packing.context:
        raise ValueError(
            f"blocks of {tokens} tokens hold no row of {source.packing.context}; give "
            "more tokens or a shorter context"
        )
    rows = tokens // source.packing.context
    return -(-len(source.rows) // rows), rows


def rows_of_block(source: ActivationSource, g: int, rows: int, seed: int) -> np.ndarray:
    """Returns the rows of block g, int64: a piece of the permutation of all rows that
    belongs to its epoch.
    """
    n = len(source.rows)
    epoch, k = divmod(g, -(-n // rows))
    # The last block of an epoch is shorter: every row comes exactly once.
    return source.rows.start + permute(
        np.arange(k * rows, min((k + 1) * rows, n)), n, seed, "row", epoch
    )
