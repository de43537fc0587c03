"""One pass of a model over a corpus, for any number of statistics.

A statistic says what to measure on a batch and how the measurements add up. The pass
does the rest once for all of them: it runs the model, lays batches out on the mesh,
applies the masks and norm limits, and shows one progress bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.text.masks import beyond_limits

NO_LIMITS: Mapping[Site, float] = MappingProxyType({})


class CorpusBatch(NamedTuple):
    """Ordinary text with the positions that count.

    Args:
      tokens_bt: int32, padded on the right.
      valid_bt: bool, False on padding.
      counted_bt: bool, positions that the masks of the run leave.
      pos_bt: positions that the model sees; None where each row is one document.
      segment_bt: documents of a row, which do not see each other; None: one a row.
    """

    tokens_bt: np.ndarray
    valid_bt: np.ndarray
    counted_bt: np.ndarray
    pos_bt: np.ndarray | None = None
    segment_bt: np.ndarray | None = None


Measure = Callable[[Any, Mapping[Site, jax.Array], jax.Array], Any]


@dataclass(frozen=True, eq=False)
class Statistic:
    """Measures every batch, and adds measurements up; pure functions.

    Args:
      sites: the sites whose activations `measure` takes.
      measure: (inputs, acts, counted_bt) -> a pytree of arrays; traced into one program
        with the forward pass. `acts` is site -> [b, t, d].
      initial: makes the state before the first batch.
      add: (state, measured, batch, counted_bt) -> the next state, on the host, where
        sums are float64; `counted_bt` is without positions beyond the norm limits.
      finish: state -> the result.
      inputs: pytree for `measure`, such as an SAE: arguments of the compiled program,
        since arrays that a function closes over would become constants of it.
    """

    sites: tuple[Site, ...]
    measure: Measure
    initial: Callable[[], Any]
    add: Callable[[Any, Any, CorpusBatch, np.ndarray], Any]
    finish: Callable[[Any], Any]
    inputs: Any = ()


def measure_corpus(
    params: Params,
    batches: Iterable[CorpusBatch],
    statistics: Mapping[str, Statistic],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    description: str = "corpus",
    progress: bool = False,
) -> dict[str, Any]:
    """Measures all statistics in one pass over the batches; layers above the last site
    are not run.

    Args:
      batches: ordinary text, read once.
      limits: site -> largest norm; a position beyond one of them does not count
        (attention sinks).
      description: of the progress bar, which counts positions that count.

    Returns:
      The result of each statistic, by name.
    """
    sites = [site for statistic in statistics.values() for site in statistic.sites]
    measures = {name: statistic.measure for name, statistic in statistics.items()}
    step = measured_step(measures, sites, cfg=cfg, limits=limits)
    inputs = {name: statistic.inputs for name, statistic in statistics.items()}
    states = {name: statistic.initial() for name, statistic in statistics.items()}
    with tqdm(
        desc=description, unit="tok", unit_scale=True, disable=not progress
    ) as bar:
        for batch in batches:
            batch = CorpusBatch(*batch)
            arrays = step(params, inputs, shard_batch(batch, mesh))
            measured, counted_bt = jax.tree.map(to_host, arrays)
            for name, statistic in statistics.items():
                states[name] = statistic.add(
                    states[name], measured[name], batch, counted_bt
                )
            bar.update(int(counted_bt.sum()))
    results = {}
    for name, statistic in statistics.items():
        results[name] = statistic.finish(states[name])
    return results


def measured_step(
    measures: Mapping[str, Measure],
    sites: Sequence[Site],
    *,
    cfg: LMConfig,
    limits: Mapping[Site, float] = NO_LIMITS,
) -> Callable[..., tuple[dict[str, Any], jax.Array]]:
    """Returns the compiled function of one batch: (params, inputs, batch) -> (name ->
    measured, counted_bt without positions beyond the limits).
    """
    keep = tuple(dict.fromkeys([*sites, *limits]))
    span = (0, max(site.layer for site in keep) + 1)

    @jax.jit
    def step(
        params: Params, inputs: Mapping[str, Any], batch: Any
    ) -> tuple[dict[str, Any], jax.Array]:
        acts = forward(
            params,
            batch.tokens_bt,
            cfg=cfg,
            valid_bt=batch.valid_bt,
            pos_bt=batch.pos_bt,
            segment_bt=batch.segment_bt,
            keep=keep,
            span=span,
        ).acts
        counted_bt: Any = batch.counted_bt
        if limits:
            counted_bt = counted_bt & ~beyond_limits(acts, limits)
        # In the same program as the pass: only what was measured comes to the host.
        measured = {}
        for name, measure in measures.items():
            measured[name] = measure(inputs[name], acts, counted_bt)
        return measured, counted_bt

    return step
