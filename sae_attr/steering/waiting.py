"""Rows of a sweep that wait for a place, with the prompts that they begin with."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from sae_attr.steering.plan import NO_LATENT, SweepRow
from sae_attr.steering.rolling import Arms, Below, read_arms, read_below
from sae_attr.steering.sampler import Sampler

# Arms whose prompts are read at a time, on each part of the mesh's data axis: a quarter of
# the places, so that products are large and places are filled in few rounds. Of long
# prompts fewer, since attention's scores grow with the square of their length.
_PLACES_PER_ARM = 4
_FEW_ARMS = 4
_TOKENS = 2048


def _arm(row: SweepRow) -> tuple[Any, ...]:
    """Returns what the numbers of a row's prompt depend on."""
    condition = row.condition
    if condition.latent == NO_LATENT or condition.tokens == "generated":
        return (row.prompt,)
    return row.prompt, condition.latent, condition.strength, condition.tokens


def _arms_at_a_time(sampler: Sampler) -> int:
    """Returns how many arms are read at a time: as many in every process and every
    sweep, and never more than places.
    """
    data = sampler.mesh.shape["data"]
    places = sampler.batch_size // data
    arms = max(_FEW_ARMS, places // _PLACES_PER_ARM)
    within_tokens = max(1, _TOKENS // sampler.programs.width)
    return min(arms, within_tokens, places) * data


class Waiting:
    """Rows that have no place yet, prompt by prompt and arm by arm, some arms at a time
    read.
    """

    def __init__(self, sampler: Sampler, rows: Sequence[SweepRow]) -> None:
        self._sampler = sampler
        self._count = _arms_at_a_time(sampler)
        by_prompt: dict[str, dict[tuple[Any, ...], list[SweepRow]]] = {}
        for row in rows:
            of_prompt = by_prompt.setdefault(row.prompt, {})
            of_prompt.setdefault(_arm(row), []).append(row)
        self._unread: deque[list[SweepRow]] = deque()
        for of_prompt in by_prompt.values():
            self._unread.extend(of_prompt.values())
        self._below: dict[str, Below] = {}
        self._arms: Arms | None = None
        self._ready: deque[tuple[SweepRow, int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._ready or self._unread)

    def take(self, count: int) -> tuple[Arms, list[tuple[SweepRow, int]]]:
        """Returns arms, and at most so many of the rows that begin with them, each with
        its arm's number.
        """
        if not self._ready:
            self._read()
        assert self._arms is not None
        taken = [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
        return self._arms, taken

    def _read(self) -> None:
        """Reads the prompts of the next arms."""
        firsts = []
        while self._unread and len(firsts) < self._count:
            members = self._unread.popleft()
            self._ready.extend((row, len(firsts)) for row in members)
            firsts.append(members[0])
        # One shape for all: the last arm fills up.
        firsts += [firsts[-1]] * (self._count - len(firsts))
        sampler = self._sampler
        params, programs = sampler.params, sampler.programs
        below: dict[str, Below] = {}
        for row in firsts:
            if row.prompt in self._below:
                below[row.prompt] = self._below[row.prompt]
            elif row.prompt not in below:
                one = sampler.packed([row])
                below[row.prompt] = read_below(params, one, programs=programs)
        self._below = below
        self._arms = read_arms(
            params,
            tuple(below[row.prompt] for row in firsts),
            sampler.placed(firsts),
            sampler.steering(firsts),
            programs=programs,
        )
