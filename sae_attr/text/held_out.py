"""Pairs that are held out: prompts that judge a ranking and took no part in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def hold_out(
    records: Sequence[Record], groups: Mapping[str, str], count: int
) -> tuple[list[Record], list[Record]]:
    """Returns the records that may rank, and those that are held out: `count` of them,
    or a few more, since prompts of a group are held out together.

    They are drawn by a hash of the group, or of the id where there is none, so that the
    order of the file decides nothing.

    Args:
      records: of a pairs file, each with its `id`.
      groups: id -> group, of the records that have one.

    Raises:
      ValueError: none would be left to rank by.
    """
    by_group: dict[str, list[Record]] = {}
    for record in records:
        name = record["id"]
        # A group may bear the name of another record.
        group = f"group {groups[name]}" if name in groups else f"prompt {name}"
        by_group.setdefault(group, []).append(record)
    held: set[str] = set()
    for group in sorted(by_group, key=_draw):
        if len(held) >= count:
            break
        held |= {record["id"] for record in by_group[group]}
    ranking = [record for record in records if record["id"] not in held]
    if not ranking:
        raise ValueError(
            f"screen_pairs={count} holds out all {len(records)} prompts that gave a "
            "pair, so that none is left to rank latents by; set it lower, or take more "
            "prompts (pair_prompts)"
        )
    return ranking, [record for record in records if record["id"] in held]


def _draw(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()
