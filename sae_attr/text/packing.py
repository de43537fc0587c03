"""Examples packed into rows of one width."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from sae_attr.text.example_records import Example


def pack(lengths: Sequence[int], context: int, *, seed: int = 0) -> list[list[int]]:
    """Joins rows to packs of at most `context` tokens: best fit, in an order drawn by
    `seed`.

    Every row is in exactly one pack, whole. A drawn order rather than the longest
    first keeps packs of mixed kinds.

    Raises:
      ValueError: a row longer than the context.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), in order
    for index in order:
        length = int(lengths[index])
        if length > context:
            raise ValueError(
                f"row {index} has {length} tokens and cannot be packed into {context}"
            )
        # The fullest pack that still has room; -1 sorts before every pack of that room.
        at = bisect_left(room, (length, -1))
        left, number = room.pop(at) if at < len(room) else (context, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(int(index))
        if left > length:
            insort(room, (left - length, number))
    return packs


def packed_arrays(
    rows: Sequence[Example], packs: Sequence[Sequence[int]], *, width: int, targets: int
) -> dict[str, np.ndarray]:
    """Returns token arrays of packs, one a row: tokens_bt, pos_bt, segment_bt (-1 on padding),
    target_bc, target_valid_bc.

    Args:
      rows: all examples.
      packs: which examples are in each row; an empty pack is a row of padding.
      width: columns t.
      targets: columns c, at least the targets of any pack.
    """
    b = len(packs)
    out = {
        "tokens_bt": np.zeros((b, width), np.int32),
        "pos_bt": np.zeros((b, width), np.int32),
        "segment_bt": np.full((b, width), -1, np.int32),
        "target_bc": np.zeros((b, targets), np.int32),
        "target_valid_bc": np.zeros((b, targets), bool),
    }
    for k, members in enumerate(packs):
        start, target_places = 0, [np.zeros(0, int)]
        for segment, index in enumerate(members):
            row = rows[index]
            stop = start + len(row.ids)
            out["tokens_bt"][k, start:stop] = row.ids
            out["pos_bt"][k, start:stop] = np.arange(stop - start)
            out["segment_bt"][k, start:stop] = segment
            target_places.append(start + np.flatnonzero(row.loss_mask))
            start = stop
        places = np.concatenate(target_places)
        out["target_bc"][k, : len(places)] = places
        out["target_valid_bc"][k, : len(places)] = True
    return out
