"""A function of edits, batch by batch; goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Edit, Site
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Progress
from sae_attr.study.case import Case
from sae_attr.study.finished_parts import agreed


def in_batches(
    case: Case,
    measure: Callable[[Mapping[Site, Edit]], Sequence[jax.Array]],
    edits: Mapping[Site, Edit],
    progress: Progress,
    *,
    name: str,
    arrays: Sequence[str],
) -> dict[str, np.ndarray]:
    """Returns what a function measures of k conditions, each array `[k, ...]`.

    Args:
      measure: of the edits of a batch; it returns an array for each of `arrays` whose
        first axis are the conditions.
      edits: site -> edit; every array in them has the conditions as its first axis.
      progress: of the stage; each batch is kept there.
      name: of the bar, and of the batches in `progress`.
    """
    edits = jax.tree.map(np.asarray, edits)
    count = len(jax.tree.leaves(edits)[0])
    size = _batch_size(case, count)
    starts = range(0, count, size)
    names = [f"{name}-{count}x{size}-{start}" for start in starts]
    done = agreed(progress.done(), names)
    parts: list[dict[str, Any]] = []
    bar = tqdm(
        total=count, desc=name, unit="condition", disable=not case.runtime.progress
    )
    with bar:
        for shard, start in zip(names, starts, strict=True):
            if shard in done:
                part, _ = progress.get(shard)
            else:
                # The last batch repeats conditions: one compiled shape.
                rows = np.arange(start, start + size) % count
                edit = shard_batch(_rows(edits, rows), case.runtime.mesh)
                part = dict(zip(arrays, to_host(measure(edit)), strict=True))
                progress.add(shard, part)
            parts.append(dict(part))
            bar.update(min(size, count - start))
    values = {}
    for array in arrays:
        values[array] = np.concatenate([np.asarray(part[array]) for part in parts])
        values[array] = values[array][:count].astype(np.float64)
    return values


def _rows(edits: Any, rows: np.ndarray) -> Any:
    """Returns the edits of some of the conditions."""
    return jax.tree.map(lambda x_k: x_k[rows], edits)


def _batch_size(case: Case, count: int) -> int:
    data = case.runtime.mesh.shape["data"]
    return min(case.runtime.batch_size, -(-count // data) * data)
