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
    """Returns where the permutation of 0..n-1 that `key` names sends each place, int64;
    no table of n numbers is made.

    A Feistel network of 6 rounds over the next power of four, walked until it falls
    below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"); the round
    function is the finaliser of splitmix64. It is exact integer arithmetic, so the
    order is the same on every machine and with every version of numpy.

    Args:
      places: integers in 0..n-1, [k].
      key: what names the permutation.
    """
    # Bits of either half of a place: the network permutes 0..4^half - 1.
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    # A digest has four words; the last two rounds take the first two again.
    digest = hashlib.sha256(repr(key).encode()).digest()
    words = np.frombuffer(digest * 2, np.uint64)[:_ROUNDS]

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for word in words:
            left, right = right, left ^ (_mix(right ^ word) & low)
        return left << half | right

    out = network(np.asarray(places, np.uint64))
    # Walking a cycle that began below n comes back below n: the result is a permutation.
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
    """Returns the batch of every step: step s holds the tokens s·b to (s+1)·b of the
    shuffled stream.

    One block is in memory at a time, so steps in their order read each block once; any
    other order is right, too, but reads blocks again. A batch may lie across two
    blocks, and across two epochs.

    Args:
      blocks: `live_blocks` or `cached_blocks`.
      ledger: a store where the sizes of blocks are noted as they become known, so that
        a later run need not read all earlier blocks to find its step; used where
        `blocks.count` is None. It belongs to one model. Several processes need it on a
        disk that all of them see.
    """
    notes = None
    if blocks.count is None and ledger is not None:
        notes = ledger.progress(f"stream-{blocks.name}")
    stream = _Stream(blocks, seed, notes)
    return lambda step: stream.tokens(step * batch_size, (step + 1) * batch_size)


class _Stream:
    """Tokens of shuffled blocks by their place in the stream."""

    def __init__(self, blocks: BlockStream, seed: int, notes: Progress | None) -> None:
        self._blocks, self._seed, self._notes = blocks, seed, notes
        self._ends = _noted_ends(notes)  # the place where each block ends
        self._loaded: dict[int, ActivationBlock] = {}

    def tokens(self, start: int, stop: int) -> ActivationBlock:
        """Returns the tokens at places start..stop."""
        # The first block that ends behind `start`: blocks without tokens are skipped.
        g, parts = bisect.bisect_right(self._ends, start), []
        while start < stop:
            begin = self._end(g - 1) if g else 0
            last = min(stop, self._end(g))
            if last > start:
                parts.append(self._part(g, start - begin, last - begin))
                start = last
            g += 1
        return _joined(parts)

    def _load(self, g: int) -> ActivationBlock:
        if g not in self._loaded:
            self._loaded.clear()  # before the next one is read: memory holds one
            self._loaded[g] = self._blocks.read(g)
        return self._loaded[g]

    def _end(self, g: int) -> int:
        """Returns the place where block g ends; blocks of unknown size are read to find it."""
        while len(self._ends) <= g:
            k = len(self._ends)
            before = self._ends[-1] if k else 0
            self._ends.append(before + self._size(k))
            if self._notes is not None:
                self._notes.append([{"block": k, "end": self._ends[k]}])
            # A whole epoch without a token: the search would never end.
            if k + 1 == self._blocks.per_epoch and not self._ends[k]:
                raise ValueError(
                    "no token of the corpus counts; exclude fewer tokens or give more "
                    "text"
                )
        return self._ends[g]

    def _size(self, g: int) -> int:
        if self._blocks.count is not None:
            return self._blocks.count(g)
        return len(self._load(g).ids_k2)

    def _part(self, g: int, start: int, stop: int) -> ActivationBlock:
        block = self._load(g)
        places = np.arange(start, stop)
        index = permute(places, len(block.ids_k2), self._seed, "token", g)
        # `take` copies whole rows, and is half again as fast as an index here.
        acts = {site: x_kd.take(index, axis=0) for site, x_kd in block.acts.items()}
        return ActivationBlock(acts, block.ids_k2[index])


def _noted_ends(notes: Progress | None) -> list[int]:
    """Ends of the first blocks, as far as they were noted without a gap."""
    if notes is None:
        return []
    by_block = {row["block"]: row["end"] for row in notes.rows(("block", "end"))}
    ends: list[int] = []
    while len(ends) in by_block:
        ends.append(by_block[len(ends)])
    return ends


def _joined(parts: list[ActivationBlock]) -> ActivationBlock:
    if len(parts) == 1:
        return parts[0]
    acts = {}
    for site in parts[0].acts:
        acts[site] = np.concatenate([part.acts[site] for part in parts])
    return ActivationBlock(acts, np.concatenate([part.ids_k2 for part in parts]))


def inputs(
    batches: BatchFunction, site: Site, target: Site | None = None
) -> Callable[[int], Any]:
    """Returns a trainer's batches: step -> x [b, d], or (x, y) for a transcoder from
    `site` to `target`.
    """

    def batch(step: int) -> Any:
        acts = batches(step).acts
        return acts[site] if target is None else (acts[site], acts[target])

    return batch
