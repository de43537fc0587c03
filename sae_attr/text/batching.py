"""Batches of few fixed shapes: of token rows, and of ordinary text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from sae_attr.text.rows import TokenRow
from sae_attr.text.tokenizer import Tokenizer, adds_bos, encode_many

_MAX_SHAPES = 4  # compiled programs per data set


@struct.dataclass
class RowBatch:
    """Rows of one fixed shape; a pytree, to be passed to jitted functions.

    Args:
      tokens_bt: int32, padded on the right with 0.
      valid_bt: bool, False on padding; a whole row of padding is possible.
      completion_bt: bool, the completion's own tokens.
      target_bc: int32, positions in the row of the completion's tokens, padded with 0.
      target_valid_bc: bool, False on the padding of `target_bc`.
    """

    tokens_bt: Any
    valid_bt: Any
    completion_bt: Any
    target_bc: Any
    target_valid_bc: Any


class TextBatch(NamedTuple):
    """Ordinary text, one document a row.

    Args:
      tokens_bt: int32, padded on the right with 0.
      valid_bt: bool, False on padding.
      special_bt: bool, special ids, BOS among them.
    """

    tokens_bt: np.ndarray
    valid_bt: np.ndarray
    special_bt: np.ndarray


# ---- rows ----------------------------------------------------------------------------


def batches(
    rows: Sequence[TokenRow],
    *,
    batch_size: int,
    multiple: int = 32,
    context: int | None = None,
) -> list[tuple[RowBatch, np.ndarray]]:
    """Packs rows of similar length into at most four fixed shapes.

    Every row is in exactly one batch. Lengths are rounded up to `multiple` (but not
    beyond `context`), completion lengths to 8. Only the last batch has empty rows: a
    group that does not fill its last batch hands the rest to the next longer group.
    Within a group rows keep their order, so that the completions of a pair stay close.

    Returns:
      (batch, row index int64 [b], -1 for an empty row) for every batch, short rows
      first.
    """
    if not rows:
        return []
    lengths = np.array([len(row.ids) for row in rows])
    widths = _widths(lengths, multiple, context)
    groups = np.searchsorted(widths, lengths)
    out: list[tuple[RowBatch, np.ndarray]] = []
    waiting = np.array([], np.int64)
    for k, width in enumerate(widths):
        waiting = np.sort(np.concatenate([waiting, np.flatnonzero(groups == k)]))
        count = len(waiting)
        if k < len(widths) - 1:
            count = count // batch_size * batch_size
        used, waiting = waiting[:count], waiting[count:]
        longest = max((len(rows[i].ids) - rows[i].n_prompt for i in used), default=0)
        shape = batch_size, int(width), _round_up(longest, 8)
        for start in range(0, count, batch_size):
            members = used[start : start + batch_size]
            index = np.full(batch_size, -1)
            index[: len(members)] = members
            out.append((_row_batch([rows[i] for i in members], *shape), index))
    return out


def _widths(lengths: np.ndarray, multiple: int, context: int | None) -> np.ndarray:
    """Returns row lengths of the shapes: quartiles of the lengths, rounded up."""
    # A few shapes: one would pad every row to the longest, and each costs a compilation.
    ordered, quarter = np.sort(lengths), np.arange(1, _MAX_SHAPES + 1)
    last = _round_up(len(ordered) * quarter, _MAX_SHAPES) // _MAX_SHAPES - 1
    rounded = np.unique(_round_up(ordered[last], multiple))
    if context is None:
        return rounded
    return np.unique(np.minimum(rounded, max(context, ordered[-1])))


def _round_up(number: Any, multiple: int) -> Any:
    return -(-number // multiple) * multiple


def _row_batch(rows: Sequence[TokenRow], b: int, t: int, c: int) -> RowBatch:
    tokens_bt, target_bc = np.zeros((b, t), np.int32), np.zeros((b, c), np.int32)
    valid_bt = np.zeros((b, t), bool)
    completion_bt = np.zeros((b, t), bool)
    target_valid_bc = np.zeros((b, c), bool)
    for k, row in enumerate(rows):
        n = len(row.ids)
        tokens_bt[k, :n] = row.ids
        valid_bt[k, :n] = True
        completion_bt[k, row.n_prompt : n] = True
        target_bc[k, : n - row.n_prompt] = np.arange(row.n_prompt, n)
        target_valid_bc[k, : n - row.n_prompt] = True
    return RowBatch(tokens_bt, valid_bt, completion_bt, target_bc, target_valid_bc)


# ---- ordinary text -------------------------------------------------------------------


def corpus_batches(
    texts: Iterable[str],
    tok: Tokenizer,
    *,
    context: int,
    batch_size: int,
    prepend_bos: bool | None = None,
    max_tokens: int | None = None,
) -> Iterator[TextBatch]:
    """Yields texts in their order, one a row, each with its own BOS and cut at `context`
    tokens (the rest is dropped).

    The number of columns is `context` or, where all rows of a batch are short enough, a
    half, a quarter or an eighth of it: four shapes at most. The last batch is filled up
    with empty rows.

    Args:
      prepend_bos: None leaves BOS to the tokenizer.
      max_tokens: stop after exactly this many positions.

    Raises:
      ValueError: `prepend_bos` with a tokenizer that has no BOS.
    """
    add_bos = adds_bos(tok) if prepend_bos is None else prepend_bos
    documents = _encoded_texts(texts, tok, add_bos, at_once=batch_size)
    return document_batches(
        documents, tok, context=context, batch_size=batch_size, max_tokens=max_tokens
    )


def _encoded_texts(
    texts: Iterable[str], tok: Tokenizer, add_bos: bool, *, at_once: int
) -> Iterator[list[int]]:
    iterator, encoded = iter(texts), 0
    while chunk := list(islice(iterator, at_once)):
        yield from encode_many(tok, chunk, add_bos=add_bos, first=encoded)
        encoded += len(chunk)


def document_batches(
    documents: Iterable[Sequence[int] | np.ndarray],
    tok: Tokenizer,
    *,
    context: int,
    batch_size: int,
    max_tokens: int | None = None,
) -> Iterator[TextBatch]:
    """Yields `corpus_batches` of documents that are token ids already, BOS included."""
    special = np.array(sorted(tok.special_ids), int)
    left = np.inf if max_tokens is None else max_tokens
    iterator = iter(documents)
    while left > 0 and (chunk := list(islice(iterator, batch_size))):
        rows = []
        for ids in chunk:
            rows.append(ids[: int(min(context, left))])
            left -= len(rows[-1])
        tokens_bt, valid_bt = _padded(rows, batch_size, context)
        special_bt = np.isin(tokens_bt, special) & valid_bt
        yield TextBatch(tokens_bt, valid_bt, special_bt)


def _padded(
    rows: Sequence[Sequence[int] | np.ndarray], b: int, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the narrowest of the shapes that holds them all."""
    longest = max(map(len, rows))
    widths = [-(-context // 2**k) for k in range(_MAX_SHAPES)]
    width = min(w for w in widths if w >= longest)
    tokens_bt, valid_bt = np.zeros((b, width), np.int32), np.zeros((b, width), bool)
    for k, ids in enumerate(rows):
        tokens_bt[k, : len(ids)] = ids
        valid_bt[k, : len(ids)] = True
    return tokens_bt, valid_bt
