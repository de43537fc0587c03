"""Progress of a chain of stages: a line per stage with the time spent and left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from sae_attr.store import PathLike, Result, Status
from sae_attr.store.metrics_log import read_metrics, write_metrics


def rounded_time(seconds: float) -> str:
    """Returns a time with few digits: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def kind_of(stage: str) -> str:
    """Returns the part of a name that stages of different cases and directions share:
    `steer` of misalignment.steer.away.
    """
    parts = stage.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


class StageProgress:
    """Logs the start of every stage, with the time spent and an estimate of the rest.

    The estimate takes the mean time of stages of the same kind, of this run or of the
    one that it continues.

    Args:
      states: of the stages that are to run, in order.
      clock: returns seconds.
    """

    def __init__(
        self, states: Sequence[Status], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.states, self.clock = list(states), clock
        self.began = clock()
        self.seconds: dict[str, list[float]] = {}
        self._numbers = {status.name: i for i, status in enumerate(self.states, 1)}

    def start(self, status: Status) -> None:
        """Logs that a stage begins; one that is only loaded gets no line."""
        if status.state == "done" or status.name not in self._numbers:
            return
        continued = " (continued)" if status.state == "part" else ""
        number = f"stage {self._numbers[status.name]} of {len(self.states)}"
        logging.info("%s: %s%s; %s", number, status.name, continued, self.times(status))

    def end(self, status: Status, result: Result) -> None:
        """Remembers how long a stage took when it was computed."""
        seconds = result.meta.get("seconds")
        if isinstance(seconds, int | float):
            self.seconds.setdefault(kind_of(status.name), []).append(float(seconds))

    def times(self, status: Status) -> str:
        """Returns the time spent, and an estimate of what is left from a stage on."""
        spent = f"{rounded_time(self.clock() - self.began)} spent"
        left, unknown = 0.0, 0
        following = self.states[self._numbers[status.name] - 1 :]
        to_do = [other for other in following if other.state != "done"]
        for other in to_do:
            times = self.seconds.get(kind_of(other.name), [])
            if times:
                left += sum(times) / len(times)
            else:
                unknown += 1
        if unknown == len(to_do) or (unknown and left < 0.5):
            return spent
        relation = "more than" if unknown else "about"
        return f"{spent}, {relation} {rounded_time(left)} left"


class StageMetrics:
    """Keeps one line of metrics.jsonl for every stage that is done: the seconds that it
    took, its counts and its other numbers.

    A line belongs to the entry that it names, so that a stage computed anew replaces
    its line, and one that was stored before a kill gets the line that it lacks.

    Args:
      folder: of the file.
      keys: stage -> key of its entry.
    """

    def __init__(self, folder: PathLike, keys: Mapping[str, str]) -> None:
        self.folder = folder
        self.lines: dict[str, Mapping[str, Any]] = {}
        for line in read_metrics(folder):
            name = str(line.get("stage"))
            if name in keys and keys[name] == line.get("key"):
                self.lines[name] = line

    def end(self, status: Status, result: Result) -> None:
        """Writes the line of a stage that was computed, or has none yet."""
        line = {"stage": status.name, "key": result.key, **numbers_of(result.meta)}
        if self.lines.get(status.name) != line:
            self.lines[status.name] = line
            write_metrics(self.folder, list(self.lines.values()))


def numbers_of(meta: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a stage's meta by name, those of `counts` as
    `counts.NAME`.
    """
    numbers: dict[str, float] = {}
    for name, value in meta.items():
        if isinstance(value, int | float) and math.isfinite(value):
            numbers[f"{prefix}{name}"] = value
        elif name == "counts" and isinstance(value, Mapping):
            numbers |= numbers_of(value, "counts.")
    return numbers


def _counts_text(counts: Mapping[str, Any]) -> str:
    """Returns counts as text, those within one of them in brackets."""
    parts = []
    for name, value in counts.items():
        text = f"({_counts_text(value)})" if isinstance(value, Mapping) else str(value)
        parts.append(f"{name} {text}")
    return ", ".join(parts)


def ending(
    states: Sequence[Status],
    results: Mapping[str, Result],
    files: Sequence[str],
    workdir: str,
    again: str,
) -> str:
    """Returns the last lines of a run: counts of its stages, the next stage if one is
    left, and where the files are.

    Args:
      states: of all stages, after the run.
      results: of the stages that ran.
      files: that were written.
      again: the command that continues the run.
    """
    lines = []
    for name, result in results.items():
        counts = result.meta.get("counts")
        if isinstance(counts, Mapping):
            lines.append(f"{name}: {_counts_text(counts)}")
    missing = [status.name for status in states if status.state != "done"]
    if missing:
        done = len(states) - len(missing)
        lines.append(
            f"{done} of {len(states)} stages are done; next is {missing[0]}: {again}"
        )
    lines.append(f"wrote to {workdir}: {', '.join(files) or 'the stages, in store/'}")
    if "report.html" in files:
        lines.append(f"open {workdir}/report.html in a browser")
    return "\n".join(lines)
