"""A stream of activations in random order, addressed by step, through a buffer of
bounded size.

Two levels: rows (or shards of rows) are permuted over the whole corpus anew in each
epoch; what falls into one block, which is all that memory holds, is permuted token by
token. Every order is a function of (seed, epoch or block, place), so a run that was
killed goes on at any step with the same batches, and every token comes exactly once an
epoch.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.hooks import Site
from sae_attr.store import Progress, Store

_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class ActivationBlock:
    """Tokens that memory holds at one time.

    Args:
      acts: site -> [k, d] in the stored dtype.
      ids_k2: int64 (row of the token file, position in the row).
    """

    acts: dict[Site, np.ndarray]
    ids_k2: np.ndarray


@dataclass(frozen=True, eq=False)
class BlockStream:
    """An endless stream of blocks, epoch after epoch, each a function of its number.

    Args:
      name: a digest of what decides the sizes of the blocks.
      per_epoch: blocks of one epoch; block g is block g % per_epoch of epoch g //
        per_epoch.
      read: the tokens of block g, in any order.
      count: the number of tokens of block g, where that is known without reading it.
    """

    name: str
    per_epoch: int
    read: Callable[[int], ActivationBlock]
    count: Callable[[int], int] | None = None


BatchFunction = Callable[[int], ActivationBlock]
"""step -> `batch_size` tokens: `acts[site]` is [b, d], and row j is the same token at
every site.
"""


def permute(places: np.ndarray, n: int, *key: int | str) -> np.ndarray:
    """Where the permutation of 0..n-1 that is named by `key` sends each place; int64,
    no table of n numbers is made.

    A Feistel network of 6 rounds over the next power of four, walked until it falls
    below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"); the round
    function is the finaliser of splitmix64. It is exact integer arithmetic, so the
    order is the same on every machine and with every version of numpy.

    Args:
      places: integers in 0..n-1, [k].
      key: what names the permutation.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    words = np.frombuffer(hashlib.sha256(repr(key).encode()).digest() * 2, np.uint64)[
        :_ROUNDS
    ]

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for word in words:
            left, right = right, left ^ (_mix(right ^ word) & low)
        return left << half | right

    out = network(np.asarray(places, np.uint64))
    while (beyond := out >= n).any():
        out[beyond] = network(out[beyond])
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def batch_function(
    blocks: BlockStream, *, batch_size: int, seed: int = 0, ledger: Store | None = None
) -> BatchFunction:
    """The batch of every step: step s holds the tokens s·b to (s+1)·b of the shuffled
    stream.

    One block is kept in memory, so steps in their order read each block once; any other
    order is right, too, but reads blocks again. A batch may lie across two blocks, and
    across two epochs.

    Args:
      blocks: `live_blocks` or `cached_blocks`.
      ledger: a store where the sizes of blocks are noted as they become known, so that
        a later run need not read all earlier blocks to find its step; used where
        `blocks.count` is None. It belongs to one model. Several processes need it on a
        disk that all of them see.
    """
    notes = (
        None
        if blocks.count or ledger is None
        else ledger.progress(f"stream-{blocks.name}")
    )
    ends = _known_ends(notes)
    held: dict[int, ActivationBlock] = {}

    def load(g: int) -> ActivationBlock:
        if g not in held:
            held.clear()  # before the next one is read: memory holds one
            held[g] = blocks.read(g)
        return held[g]

    def end(g: int) -> int:
        """Place in the stream where block g ends."""
        while len(ends) <= g:
            k = len(ends)
            ends.append(
                (ends[-1] if ends else 0)
                + (blocks.count(k) if blocks.count else len(load(k).ids_k2))
            )
            if notes is not None:
                notes.append([{"block": k, "end": ends[k]}])
            if k + 1 == blocks.per_epoch and not ends[k]:
                raise ValueError(
                    "no token of the corpus counts; exclude fewer tokens or give more "
                    "text"
                )
        return ends[g]

    def part(g: int, start: int, stop: int) -> ActivationBlock:
        block = load(g)
        index = permute(np.arange(start, stop), len(block.ids_k2), seed, "token", g)
        # `take` copies whole rows, and is half again as fast as an index here.
        return ActivationBlock(
            {site: acts.take(index, axis=0) for site, acts in block.acts.items()},
            block.ids_k2[index],
        )

    def batch(step: int) -> ActivationBlock:
        place, stop = step * batch_size, (step + 1) * batch_size
        g, parts = bisect.bisect_right(ends, place), []
        while place < stop:
            begin = end(g - 1) if g else 0
            if (last := min(stop, end(g))) > place:
                parts.append(part(g, place - begin, last - begin))
                place = last
            g += 1
        return _joined(parts)

    return batch


def _known_ends(notes: Progress | None) -> list[int]:
    """Ends of the first blocks, as far as they were noted without a gap."""
    noted = (
        {}
        if notes is None
        else {row["block"]: row["end"] for row in notes.rows(("block", "end"))}
    )
    ends: list[int] = []
    while len(ends) in noted:
        ends.append(noted[len(ends)])
    return ends


def _joined(parts: list[ActivationBlock]) -> ActivationBlock:
    if len(parts) == 1:
        return parts[0]
    acts = {
        site: np.concatenate([part.acts[site] for part in parts])
        for site in parts[0].acts
    }
    return ActivationBlock(acts, np.concatenate([part.ids_k2 for part in parts]))


def inputs(
    batches: BatchFunction, site: Site, target: Site | None = None
) -> Callable[[int], Any]:
    """What a trainer asks for: step -> x [b, d], or (x, y) for a transcoder from `site`
    to `target`.
    """

    def batch(step: int) -> Any:
        acts = batches(step).acts
        return acts[site] if target is None else (acts[site], acts[target])

    return batch
