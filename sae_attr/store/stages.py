"""A stage: loaded if its artefact is stored, else computed and published."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sae_attr.store.entries import Store
from sae_attr.store.files import Arrays, Meta
from sae_attr.store.manifest import Damaged
from sae_attr.store.names import digest
from sae_attr.store.progress import Progress


class Result(NamedTuple):
    """A stage's arrays and meta, the key they are stored under, the seconds it took
    now, and if it only had to load.
    """

    arrays: Arrays
    meta: Meta
    key: str
    seconds: float
    cached: bool


def stage_key(
    name: str, version: int, fields: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """The key of a stage's artefact; it starts with the stage's name."""
    return f"{name}-{digest([name, version, dict(fields), dict(inputs)])}"


def run_stage(
    store: Store,
    name: str,
    version: int,
    fields: Mapping[str, Any],
    inputs: Mapping[str, str],
    fn: Callable[[Progress], tuple[Mapping[str, Any], Mapping[str, Any]]],
    agree: Callable[[bool], bool] = bool,
) -> Result:
    """Loads a stage's artefact if it is stored, else computes and publishes it.

    Args:
      store: where artefacts lie.
      name: of the stage; the key starts with it.
      version: to be raised when the stage's code gives other numbers than before.
      fields: the config fields that the result depends on, and no others.
      inputs: name -> key (or fingerprint) of what the stage reads.
      fn: `progress -> (arrays, meta)`; a long stage asks `progress` what was finished
        before a kill.
      agree: with several processes, process 0's answer for all (`parallel.from_main`):
        all must compute, or none.
    """
    key = stage_key(name, version, fields, inputs)
    start = time.perf_counter()
    found = _load_or_warn(store, key)
    if agree(found is not None):
        arrays, meta = found or store.load(key)
        return Result(arrays, meta, key, time.perf_counter() - start, True)
    progress = store.progress(key)
    computed, meta = fn(progress)
    store.publish(key, computed, meta)
    # The writer reads back what it wrote, so that a first run goes on with exactly what
    # a second one would see.
    arrays, meta = (
        store.load(key)
        if store.writer
        else ({k: np.asarray(v) for k, v in computed.items()}, dict(meta))
    )
    progress.clear()
    return Result(arrays, meta, key, time.perf_counter() - start, False)


def _load_or_warn(store: Store, key: str) -> tuple[Arrays, Meta] | None:
    """The entry; None if it is absent, or damaged, which is said and the remains
    removed.
    """
    try:
        return store.load(key)
    except KeyError:
        return None
    except Damaged as error:
        warnings.warn(f"{error}; it is computed again", RuntimeWarning, stacklevel=3)
        store.discard(key)
        return None
