"""How far a chain of stages is: a line a stage, with the time spent and what is
probably left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from absl import logging

from sae_attr.store import Result, Status


def duration(seconds: float) -> str:
    """Returns a time as people say it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def kind_of(stage: str) -> str:
    """Returns what stages of different cases and directions have in common: `steer` of
    misalignment.steer.away.
    """
    parts = stage.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


class Course:
    """Is told of every stage's start and end, and says where the whole is.

    What is left is estimated from stages of the same kind, of this run or of those that
    it goes on with.

    Args:
      states: of the stages that are to run, in order.
      clock: seconds.
    """

    def __init__(
        self, states: Sequence[Status], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.states, self.clock = list(states), clock
        self.began = clock()
        self.seconds: dict[str, list[float]] = {}
        self._at = {status.name: number for number, status in enumerate(self.states, 1)}

    def start(self, status: Status) -> None:
        """Logs that a stage begins; one that only loads is not worth a line."""
        if status.state != "done" and status.name in self._at:
            goes_on = " (goes on)" if status.state == "part" else ""
            number = f"stage {self._at[status.name]} of {len(self.states)}"
            logging.info(
                "%s: %s%s; %s", number, status.name, goes_on, self.times(status)
            )

    def end(self, status: Status, result: Result) -> None:
        """Remembers how long a stage took, when it was computed."""
        seconds = result.meta.get("seconds")
        if isinstance(seconds, int | float):
            self.seconds.setdefault(kind_of(status.name), []).append(float(seconds))

    def times(self, status: Status) -> str:
        """Returns the time spent, and what is probably left from a stage on."""
        spent = f"{duration(self.clock() - self.began)} spent"
        to_do = [
            other
            for other in self.states[self._at[status.name] - 1 :]
            if other.state != "done"
        ]
        known = [
            self.seconds[kind_of(other.name)]
            for other in to_do
            if kind_of(other.name) in self.seconds
        ]
        if not known:
            return spent
        left = duration(sum(sum(times) / len(times) for times in known))
        return f"{spent}, {'about' if len(known) == len(to_do) else 'more than'} {left} left"


def ending(
    states: Sequence[Status],
    results: Mapping[str, Result],
    files: Sequence[str],
    workdir: str,
    again: str,
) -> str:
    """Returns what the end of a run says: how far it came, what came out on the way,
    where it lies, how it goes on.

    Args:
      states: of all stages, after the run.
      results: of the stages that ran.
      files: that were written.
      again: the command that goes on.
    """
    lines = []
    for name, result in results.items():
        counts = result.meta.get("counts")
        if isinstance(counts, Mapping):
            lines.append(
                f"{name}: "
                + ", ".join(f"{key} {value}" for key, value in counts.items())
            )
    done = sum(status.state == "done" for status in states)
    if done < len(states):
        missing = next(status.name for status in states if status.state != "done")
        lines.append(
            f"{done} of {len(states)} stages are done; next is {missing}: {again}"
        )
    lines.append(
        f"wrote to {workdir}: {', '.join(files) if files else 'the stages, in store/'}"
    )
    if "report.html" in files:
        lines.append(f"open {workdir}/report.html in a browser")
    return "\n".join(lines)
