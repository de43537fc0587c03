"""Finished parts of a stage: their names, and which of them all processes count."""

from __future__ import annotations

from collections.abc import Sequence

from sae_attr.parallel import from_main


def shard_name(shape: tuple[int, ...], index: int) -> str:
    """Names a finished batch; with its shape, so that a run with another batch size
    never takes it for one of its own.
    """
    return f"{shape[0]}x{shape[1]}-{index}"


def agreed(done: set[str], names: Sequence[str]) -> set[str]:
    """Returns the names that process 0 finds done: processes that see a file at
    different times must not part ways.
    """
    return {name for name in names if from_main(name in done)}
