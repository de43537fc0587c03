"""Rows of fixed length from a token file, addressed by number.

A row is a function of (file, packing, row number) alone, so that a run that was killed
goes on at any row at once, and a corpus of any size takes the memory of the rows in
use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import struct

from sae_attr.text.token_file import TokenFile

DOCUMENTS = ("continue", "cut")


@dataclass(frozen=True)
class Packing:
    """Sets how documents become rows.

    Args:
      context: tokens of a row.
      documents: "continue" cuts the stream of all documents into windows, so that a
        document may go on in the next row and no token is lost; "cut" puts one document
        in each row and drops what is beyond `context`.
      row_bos: a row that begins inside a document begins with BOS (such a window is one
        token shorter); None: where the file's documents begin with BOS. Without it the
        first token of a row takes the role of the attention sink.
      separate: documents of a row do not see each other, and each counts its positions
        from 0.

    Raises:
      ValueError: an unknown choice, or a context that leaves no room for a token.
    """

    context: int
    documents: str = "continue"
    row_bos: bool | None = None
    separate: bool = True

    def __post_init__(self) -> None:
        if self.documents not in DOCUMENTS:
            raise ValueError(
                f"documents {self.documents!r} is unknown; choose one of "
                f"{', '.join(DOCUMENTS)}"
            )
        if self.context < 2:
            raise ValueError(
                f"a context of {self.context} leaves no room for a token after BOS; "
                "give 2 or more"
            )


@struct.dataclass
class PackedRows:
    """Rows of one shape; a pytree, to be passed to `forward` and the masks.

    Args:
      tokens_bt: int32, padded on the right with 0.
      valid_bt: bool, False on padding.
      segment_bt: int32, number of the document within the row (0 everywhere if
        documents are not separated).
      pos_bt: int32, the position that the model sees.
      since_bt: int32, tokens since the piece of the document began in this row: 0 is
        its first, BOS included.
    """

    tokens_bt: Any
    valid_bt: Any
    segment_bt: Any
    pos_bt: Any
    since_bt: Any


def row_count(file: TokenFile, packing: Packing) -> int:
    """Counts the rows; the last one of "continue" may be padded."""
    if packing.documents == "cut":
        return len(file.starts_s) - 1
    return -(-len(file.ids_k) // _window(file, packing))


def rows_at(
    file: TokenFile, index_b: Sequence[int] | np.ndarray, packing: Packing
) -> PackedRows:
    """Reads the rows of these numbers, as numpy arrays; a number of -1 gives a row of
    padding.

    Raises:
      IndexError: a number beyond `row_count`.
    """
    b, t = len(index_b), packing.context
    tokens_bt = np.zeros((b, t), np.int32)
    valid_bt = np.zeros((b, t), bool)
    begins_bt = np.zeros((b, t), bool)
    begins_bt[:, 0] = True
    for k, row in enumerate(index_b):
        if row >= row_count(file, packing):
            raise IndexError(
                f"row {row} of a token file that has {row_count(file, packing)} rows "
                f"of {t} tokens"
            )
        if row >= 0:
            ids, begins = _row(file, int(row), packing)
            tokens_bt[k, : len(ids)], valid_bt[k, : len(ids)] = ids, True
            begins_bt[k, begins] = True
    columns = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t))
    since_bt = columns - np.maximum.accumulate(np.where(begins_bt, columns, 0), axis=1)
    if not packing.separate:
        return PackedRows(
            tokens_bt, valid_bt, np.zeros((b, t), np.int32), columns, since_bt
        )
    segment_bt = (np.cumsum(begins_bt, axis=1) - 1).astype(np.int32)
    return PackedRows(tokens_bt, valid_bt, segment_bt, since_bt, since_bt)


def hold_out(file: TokenFile, packing: Packing, share: float) -> tuple[range, range]:
    """Splits a file into rows to train on and the documents behind them, which no such
    row touches.

    Args:
      share: of the rows, at the end, that are left out of training.

    Raises:
      ValueError: no row is left to train on, or no whole document lies behind.
    """
    count, documents = row_count(file, packing), len(file.starts_s) - 1
    train = count - max(1, round(share * count))
    if train < 1:
        raise ValueError(
            f"holding out {share} leaves none of {count} rows to train on; lower "
            "held_out_share"
        )
    # Whole documents: one that training saw in part is no held-out text.
    first = int(documents_at(file, train - 1, packing).max()) + 1
    if first >= documents:
        raise ValueError(
            f"no whole document lies in the last {count - train} of {count} rows, so "
            "there is none to measure on; raise "
            "held_out_share"
        )
    return range(train), range(first, documents)


def documents_at(file: TokenFile, row: int, packing: Packing) -> np.ndarray:
    """Returns the number of the document that each position of a row belongs to, int64 [t], -1 on
    padding.
    """
    ids, _ = _row(file, row, packing)
    out = np.full(packing.context, -1)
    if packing.documents == "cut":
        out[: len(ids)] = row
        return out
    low = row * _window(file, packing)
    front = len(ids) - (min(low + _window(file, packing), len(file.ids_k)) - low)
    places = low + np.maximum(np.arange(len(ids)) - front, 0)
    out[: len(ids)] = np.searchsorted(file.starts_s, places, side="right") - 1
    return out


def _window(file: TokenFile, packing: Packing) -> int:
    """Returns the tokens of the stream in a row of "continue"."""
    return packing.context - int(_row_bos(file, packing))


def _row_bos(file: TokenFile, packing: Packing) -> bool:
    bos = file.meta["prepend_bos"] if packing.row_bos is None else packing.row_bos
    if bos and file.meta["bos_id"] is None:
        raise ValueError(
            "row_bos is asked for but the tokenizer of the token file has no BOS; set "
            "row_bos=False"
        )
    return bos


def _row(file: TokenFile, row: int, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids of one row, and where in it documents begin (the first column apart)."""
    if packing.documents == "cut":
        low, high = (int(place) for place in file.starts_s[row : row + 2])
        return file.ids_k[low : min(high, low + packing.context)], np.zeros(0, np.int64)
    low = row * _window(file, packing)
    ids = file.ids_k[low : low + _window(file, packing)]
    first, last = np.searchsorted(file.starts_s, (low + 1, low + len(ids)))
    begins = file.starts_s[first:last] - low
    if _row_bos(file, packing) and ids[0] != file.meta["bos_id"]:  # never two
        return np.concatenate([[file.meta["bos_id"]], ids]), begins + 1
    return ids, begins
