"""Rows of a mapped file: their pages go back to the system once they were read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_attr.files.mapped import mapped_bytes
from sae_attr.files.row_source import RowSource


def file_bytes() -> int:
    """RssFile: what of mapped files lies in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux' table of memory"
)
def test_pages_of_rows_that_were_read_are_given_back(tmp_path: Path) -> None:
    rows_nd = np.arange(2**22, dtype=np.float32).reshape(4096, 1024)
    path = tmp_path / "rows"
    path.write_bytes(b"head" + rows_nd.tobytes())
    source = RowSource(mapped_bytes(path)[4:].view(np.float32).reshape(rows_nd.shape))
    before = file_bytes()
    np.testing.assert_array_equal(source.rows(0, 4096), rows_nd)
    assert file_bytes() - before > 15e6
    source.release(0, 4096)
    assert file_bytes() - before < 2e6
    np.testing.assert_array_equal(source.rows(7, 9), rows_nd[7:9])


def test_rows_in_memory_or_not_in_one_piece_stay() -> None:
    for matrix in (np.ones((4, 2)), np.asfortranarray(np.ones((4, 2)))):
        source = RowSource(matrix)
        source.release(1, 3)
        np.testing.assert_array_equal(source.rows(0, 4), np.ones((4, 2)))
