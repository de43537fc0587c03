"""Completions that another engine sampled for an exported sweep, checked against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from sae_attr.files.text import json_lines, printable
from sae_attr.steering.answer_tokens import Answer, answer_ids
from sae_attr.steering.plan import SweepRow
from sae_attr.steering.sweep import SampledRow
from sae_attr.steering.sweep_export import MANIFEST, ROWS, SweepExport

PATTERN = "completions*.jsonl"
_SHOWN = 120  # characters of a name or value in a message


def completion_files(folder: epath.Path) -> list[Path]:
    """Returns the files of completions beside an export, in the order of their names, and
    whatever else has such a name.
    """
    if not folder.is_dir():
        return []
    return sorted(Path(str(path)) for path in folder.glob(PATTERN))


def read_completions(export: SweepExport, files: Sequence[Path]) -> list[SampledRow]:
    """Reads the completions of every row of an export.

    Each file begins with a record of the sweep that it answers, {"sweep": digest,
    "sampling": of the manifest}; every other line is {"id": of the row, "text" or
    "ids", "finish_reason": stop or length}.

    Raises:
      ValueError: what does not fit the sweep, all of it in one message with counts.
    """
    reading = _Reading(export)
    for path in files:
        reading.read(path)
    reading.check()
    return [reading.sampled[row.id] for row in export.rows]


@dataclass
class _Faults:
    """Counts faults of one kind, and keeps the first of them."""

    count: int = 0
    first: str = ""

    def add(self, example: str) -> None:
        """Counts a fault."""
        self.first = self.first or example
        self.count += 1


@dataclass
class _Reading:
    """Collects completions of an export, and what is wrong with them."""

    export: SweepExport
    sampled: dict[str, SampledRow] = field(default_factory=dict)
    faults: dict[str, _Faults] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Reads one file; one of another sweep is not read beyond its first line."""
        # Whoever wrote the file named it.
        name = printable(path.name, _SHOWN)
        if not path.is_file():
            self._fault("names of completions are no files", name)
            return
        lines = iter(json_lines(path))
        _, header = next(lines, (0, None))
        if self._belongs(name, header):
            rows = {row.id: row for row in self.export.rows}
            for number, record in lines:
                self._add(rows, record, f"{name}:{number}")

    def _belongs(self, name: str, header: Any) -> bool:
        """Returns whether a file answers this sweep, as its first line says."""
        if not isinstance(header, Mapping) or "sweep" not in header:
            self._fault("files do not begin with the record of their sweep", name)
            return False
        if header["sweep"] != self.export.digest:
            self._fault(
                "files answer another sweep",
                f"{name} that of {_short(header['sweep'])}",
            )
            return False
        sampling = header.get("sampling")
        for key, value in self.export.sampling_record.items():
            other = sampling.get(key) if isinstance(sampling, Mapping) else None
            if other != value:
                example = f"{name}: {key} {_short(other)}, not {value!r}"
                self._fault("files were sampled with other settings", example)
                return False
        return True

    def _add(self, rows: Mapping[str, SweepRow], record: Any, where: str) -> None:
        name = record.get("id") if isinstance(record, Mapping) else None
        row = rows.get(name) if isinstance(name, str) else None
        if row is None:
            self._fault("lines have no id of the sweep", f"{where}: {_short(name)}")
        elif row.id in self.sampled:
            self._fault("rows have two completions", f"{where}: {row.id!r}")
        else:
            try:
                self.sampled[row.id] = self._completion(row, record)
            except ValueError as error:
                self._fault(
                    "completions cannot be used", f"{where}: {row.id!r}: {error}"
                )
                # Counted as unusable, not as absent too.
                self.sampled[row.id] = SampledRow(row, (), False, math.nan)

    def _completion(self, row: SweepRow, record: Mapping[str, Any]) -> SampledRow:
        export = self.export
        answer = _answer_of(record)
        ids, stopped = answer_ids(
            answer,
            export.prompts[row.prompt],
            export.tokenizer,
            stop_ids=export.sampling.stop_ids,
            max_new=export.sampling.max_new,
        )
        return SampledRow(row, ids, stopped, math.nan)

    def _fault(self, kind: str, example: str) -> None:
        self.faults.setdefault(kind, _Faults()).add(example)

    def check(self) -> None:
        """Raises ValueError where anything does not fit, or is absent."""
        for row in self.export.rows:
            if row.id not in self.sampled:
                self._fault("rows have no completion", repr(row.id))
        if not self.faults:
            return
        parts = []
        for kind, faults in self.faults.items():
            parts.append(f"{faults.count:,} {kind} (first {faults.first})")
        raise ValueError(
            f"the completions do not fit the sweep of {len(self.export.rows):,} rows: "
            f"{'; '.join(parts)}. Each file must begin with sweep and sampling of "
            f"{MANIFEST}, and hold one line for each row of {ROWS}; nothing was taken "
            "over. Correct the files and run again, or remove them to wait on"
        )


def _answer_of(record: Mapping[str, Any]) -> Answer:
    """Returns a line's completion; raises ValueError where it holds none."""
    text, ids = record.get("text"), record.get("ids")
    if ids is not None:
        is_list = isinstance(ids, list)
        if not is_list or not all(type(token) is int for token in ids):
            raise ValueError("ids is no list of token ids")
    elif not isinstance(text, str):
        raise ValueError("it has neither text nor ids")
    return Answer(text or "", ids, str(record.get("finish_reason")))


def _short(value: Any) -> str:
    """Returns a value of a file for a message, without control characters."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
