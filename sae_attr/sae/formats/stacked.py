"""Matrices that lie on disk in several pieces, read as one without a copy of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np


class StackedRows:
    """Rows of several `[n_i, m]` arrays one after another; sliced like an array, and
    only what is asked for is read.

    Raises:
      ValueError: no pieces, or pieces of different width or type.
    """

    ndim = 2

    def __init__(self, pieces: list[np.ndarray]) -> None:
        if not pieces or any(
            p.ndim != 2 or p.shape[1] != pieces[0].shape[1] for p in pieces
        ):
            raise ValueError(
                f"pieces of shapes {[p.shape for p in pieces]} make no matrix; they "
                "need one width"
            )
        self._pieces = pieces
        self._starts = np.cumsum([0, *(len(p) for p in pieces)])
        self.shape = (int(self._starts[-1]), pieces[0].shape[1])
        self.dtype = pieces[0].dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        i, j, _ = rows.indices(self.shape[0])
        parts: list[Any] = [
            piece[max(i - start, 0) : max(j - start, 0)]
            for piece, start in zip(self._pieces, self._starts.tolist())
            if start < j and i < start + len(piece)
        ]
        return np.concatenate(parts) if parts else self._pieces[0][:0]
