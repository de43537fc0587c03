"""Rows of a matrix that may be larger than memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae_attr.files.mapped import release_pages


@dataclass(frozen=True)
class RowSource:
    """Rows of a matrix `[n, m]` that may be larger than memory, as float32 in C order,
    whatever the layout on disk.

    Args:
      matrix: `[n, m]` array, or a (possibly transposed) view of a memory map; any real
        dtype.
      scale_n: `[n]` factor of every row, or None.
      unit: rows are divided by their norm, after the scale; a row of zeros stays zero.

    Raises:
      ValueError: the matrix is not 2-D, or the scale is not one number per row.
    """

    matrix: np.ndarray
    scale_n: np.ndarray | None = None
    unit: bool = False

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise ValueError(
                "a RowSource needs a matrix [n, m]; this array has shape "
                f"{self.matrix.shape}"
            )
        if self.scale_n is not None and np.shape(self.scale_n) != self.matrix.shape[:1]:
            raise ValueError(
                f"scale_n has shape {np.shape(self.scale_n)} but the matrix has "
                f"{len(self)} rows"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Returns `(n, m)`."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of the numbers as stored; `rows` always gives float32."""
        return self.matrix.dtype

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, i: int, j: int) -> np.ndarray:
        """Returns rows i..j as a float32 copy `[j - i, m]` in C order.

        Raises:
          IndexError: not `0 <= i <= j <= n`.
        """
        if not 0 <= i <= j <= len(self):
            raise IndexError(
                f"rows({i}, {j}) of a matrix with {len(self)} rows; give 0 <= i <= j "
                f"<= {len(self)}"
            )
        # NaN and infinity pass through; callers that need none look for them.
        with np.errstate(invalid="ignore", over="ignore"):
            rows = np.array(self.matrix[i:j], dtype=np.float32, order="C", subok=False)
            if self.scale_n is not None:
                rows *= np.asarray(self.scale_n[i:j], np.float32)[:, None]
            return rows / _nonzero(row_norms(rows))[:, None] if self.unit else rows

    def release(self, i: int, j: int) -> None:
        """Lets the system take back the memory of rows i..j of a mapped file, which are
        not needed again soon.
        """
        release_pages(self.matrix[i:j])


def row_norms(rows_nm: np.ndarray) -> np.ndarray:
    """Returns the Euclidean norm of each row, `[n]` float32, summed in float64."""
    return np.sqrt(np.einsum("nm,nm->n", rows_nm, rows_nm, dtype=np.float64)).astype(
        np.float32
    )


def _nonzero(norms_n: np.ndarray) -> np.ndarray:
    return np.where(norms_n > 0, norms_n, np.float32(1.0))
