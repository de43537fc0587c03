"""Metrics of a run while they are measured: lines of JSON, and events for TensorBoard
where its writer is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sae_attr.store.fence import check_held
from sae_attr.store.files import PathLike, is_local, json_row, write_atomic

FILE = "metrics.jsonl"
EVENTS = "tensorboard"  # folder beside it
WRITER = "tensorboardX"  # package; its events need nothing of TensorBoard itself


@dataclass(frozen=True)
class MetricsOptions:
    """Sets where metrics go beside metrics.jsonl.

    Args:
      tensorboard: also write events to `tensorboard/`; None: where tensorboardX is
        installed and the folder is no bucket.
    """

    tensorboard: bool | None = None


class MetricsLog:
    """Follows a list of records that grows: each becomes a line of `metrics.jsonl`.

    The list is the truth and the file its copy: `start` writes it anew, so that a run
    that was killed neither repeats nor lacks a line once it goes on. In a bucket, whose
    objects cannot grow, lines appear at `flush`.

    Args:
      folder: of the file; None writes nothing.
      options: whether TensorBoard's events are written too.

    Raises:
      ValueError: `tensorboard` is True, and its package is missing or the folder is a
        bucket.
    """

    def __init__(
        self, folder: PathLike | None, options: MetricsOptions = MetricsOptions()
    ) -> None:
        self.path = None if folder is None else epath.Path(folder) / FILE
        self._records: list[Mapping[str, Any]] = []
        self._with_events = self.path is not None and _with_events(self.path, options)
        self._first_step = 0
        self._events: Any = None

    def start(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
        """Makes the file hold these records: none, or those that a checkpoint has."""
        self._records = list(records)
        if self.path is None:
            return
        write_metrics(self.path.parent, self._records)
        # Events of later steps, written before a kill, are to be made again.
        self._first_step = int(records[-1]["step"]) + 1 if records else 0

    def follow(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds the records by which a list has grown since the last call."""
        new = records[len(self._records) :]
        self._records += new
        if self.path is None or not new:
            return
        if is_local(self.path):
            check_held(self.path)
            with self.path.open("a") as file:
                file.write(_lines(new))
        if self._with_events:
            self._add_events(new)

    def flush(self) -> None:
        """Writes what is still in memory; called before each checkpoint, which must not
        be ahead of the metrics.
        """
        if self.path is not None and not is_local(self.path):
            write_metrics(self.path.parent, self._records)
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes, and closes TensorBoard's file."""
        self.flush()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _add_events(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._events is None:
            assert self.path is not None
            writer = importlib.import_module(WRITER).SummaryWriter
            folder = str(self.path.parent / EVENTS)
            # From purge_step on, TensorBoard forgets what earlier files say. Names of
            # files hold the second alone, in which a quick run may begin twice.
            self._events = writer(
                folder,
                purge_step=self._first_step,
                filename_suffix=f".{uuid.uuid4().hex[:8]}",
            )
        for record in records:
            for name, value in record.items():
                if name != "step" and math.isfinite(value):
                    self._events.add_scalar(name, value, int(record["step"]))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def write_metrics(folder: PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a folder's metrics.jsonl anew, whole or not at all."""
    write_atomic(epath.Path(folder) / FILE, _lines(records))


def read_metrics(folder: PathLike) -> list[dict[str, Any]]:
    """Returns the records of a folder's metrics.jsonl, without a line cut short by a
    kill; none where there is no file.
    """
    path = epath.Path(folder) / FILE
    if not path.exists():
        return []
    rows = [json_row(line) for line in path.read_bytes().splitlines()]
    return [row for row in rows if row is not None]


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for record in records:
        plain = {name: _finite(value) for name, value in record.items()}
        lines.append(json.dumps(plain, ensure_ascii=False) + "\n")
    return "".join(lines)


def _finite(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_events(path: epath.Path, options: MetricsOptions) -> bool:
    if options.tensorboard is False:
        return False
    installed = importlib.util.find_spec(WRITER) is not None
    if options.tensorboard and not installed:
        raise ValueError(
            f"tensorboard=True needs {WRITER}, which is not installed: pip install "
            "'sae_attr[tensorboard]'"
        )
    if options.tensorboard and not is_local(path):
        raise ValueError(
            f"tensorboard=True cannot write to {path.parent}, which is a bucket; its "
            f"{FILE} holds the same numbers"
        )
    return installed and is_local(path)
