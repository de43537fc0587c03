"""Collectives in the text of a compiled program, with the trips of its loops."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf"^(.*?) ({'|'.join(KINDS)})(-start)?\(")


@dataclass(frozen=True)
class Collective:
    """A collective that a program executes, however often.

    Args:
      kind: of `KINDS`.
      times: how often, with the trips of the loops around it; a loop whose trips are
        not known counts once.
      bytes: of its result on one device, each time.
    """

    kind: str
    times: int
    bytes: int


def collectives(text: str, *, most: bool = True) -> list[Collective]:
    """Returns the collectives of a program, those of one kind and size together, the
    largest total first.

    Args:
      text: of the optimised program, `compiled.as_text()`.
      most: of a conditional's branches, that with the most bytes counts; else that
        with the fewest.
    """
    bodies, entry = _computations(text)
    counts = _counts(entry, bodies, max if most else min)
    found = [Collective(kind, times, size) for (kind, size), times in counts.items()]
    return sorted(found, key=lambda one: (-one.times * one.bytes, one.kind))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns computation -> its instructions, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction is not None:
            lines.append(instruction[2])
    if not entry:
        raise ValueError("the text is no compiled program: it has no ENTRY")
    return bodies, entry


Counts = Counter[tuple[str, int]]
"""(kind, bytes) -> times."""


def _counts(
    name: str, bodies: dict[str, list[str]], pick: Callable[..., Counts]
) -> Counts:
    """Returns what one run of a computation executes; `pick` takes a branch."""
    counts: Counts = Counter()
    for line in bodies.get(name, ()):
        match = _COLLECTIVE.match(line)
        if match is not None:
            counts[match[2], _bytes(match[1], bool(match[3]))] += 1
            continue  # what it applies adds two numbers
        called = [_counts(other, bodies, pick) for other in _CALLED.findall(line)]
        branches = _BRANCHES.search(line)
        if branches is not None:
            names = [branch.strip(" %") for branch in branches[1].split(",")]
            called += [_counts(other, bodies, pick) for other in names]
        if " conditional(" in line:
            called = [pick(called, key=_total_bytes)]
        trips = _TRIPS.search(line)
        times = int(trips[1]) if trips and " while(" in line else 1
        for inside in called:
            for kind, number in inside.items():
                counts[kind] += times * number
    return counts


def _total_bytes(counts: Counts) -> int:
    return sum(times * size for (_, size), times in counts.items())


def _bytes(shape: str, starts: bool) -> int:
    """Returns the bytes of a result; one that only starts names its operand too."""
    sizes = []
    for kind, dims in _ARRAY.findall(shape):
        width = _BYTES.get(kind) or int(kind[1:]) // 8
        sizes.append(width * math.prod(int(size) for size in dims.split(",") if size))
    return sum(sizes) // (2 if starts else 1)
