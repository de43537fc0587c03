"""Exact rates of a case's behaviour under many edits, batch by batch; goes on after a
kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Edit, Site
from sae_attr.lm.sites import edited_suffix, suffix_start
from sae_attr.parallel import shard_batch, to_host
from sae_attr.store import Progress
from sae_attr.study.case import Case, ExactPrompts, ExactState
from sae_attr.study.finished_parts import agreed
from sae_attr.text.pairs import Prompt

_ARRAYS: tuple[str, ...] = ("behaviour_kp", "coherence_kp")

Edits = Edit | Mapping[Site, Edit]
"""An edit at a case's site, or edits by site: of k conditions, the first axis of every
array."""


@dataclass(frozen=True, eq=False)
class ExactRates:
    """Rates of k conditions on prompts, by exact probabilities.

    Args:
      prompts: ids of those that were measured.
      behaviour_kp, coherence_kp: float64 in 0..1.
      facts: about the model without an edit; `left_out` has the ids of prompts that
        could not be measured, where some could not.
    """

    prompts: tuple[str, ...]
    behaviour_kp: np.ndarray
    coherence_kp: np.ndarray
    facts: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Conditions times prompts."""
        return self.behaviour_kp.size


def exact_rates(
    case: Case,
    direction: str,
    prompts: Sequence[Prompt],
    edits: Edits,
    progress: Progress,
    *,
    name: str,
) -> ExactRates:
    """Measures the rates of a behaviour and of coherence under every edit.

    Args:
      direction: `away` measures the model with the behaviour, `toward` the one without.
      prompts: any that the case has exact rates for.
      edits: one edit for all conditions, whose arrays have the k conditions as their
        first axis: `Add(vectors_kd, strengths_k)`, `SetProjection(units_kd, values_k)`;
        or one for each of several sites. It changes the tokens that the study steers.
      progress: of the stage; each batch is kept there.
      name: of the bar, and of the batches in `progress`.

    Raises:
      ValueError: prompts without texts, or whose texts have no probability; rates that
        are not finite.
    """
    opened = _opened(case, prompts)
    at_sites = edits if isinstance(edits, Mapping) else {case.setup.site: edits}
    start, _ = edited_suffix(at_sites, case.setup.cfg)
    state = _state(case, opened, direction, start)
    edits = jax.tree.map(np.asarray, at_sites)
    count = len(jax.tree.leaves(edits)[0])
    size = _batch_size(case, count)
    starts = range(0, count, size)
    names = [f"{name}-{count}x{size}-{start}" for start in starts]
    done = agreed(progress.done(), names)
    parts = []
    bar = tqdm(
        total=count, desc=name, unit="condition", disable=not case.runtime.progress
    )
    with bar:
        for shard, start in zip(names, starts, strict=True):
            if shard in done:
                arrays, _ = progress.get(shard)
            else:
                # The last batch repeats conditions: one compiled shape.
                part = np.arange(start, start + size) % count
                edit = shard_batch(_rows(edits, part), case.runtime.mesh)
                rates = opened.exact.rates(case.params(direction), state.arrays, edit)
                arrays: dict[str, Any] = dict(
                    zip(_ARRAYS, map(to_host, rates), strict=True)
                )
                progress.add(shard, arrays)
            parts.append(arrays)
            bar.update(min(size, count - start))
    return _joined(opened.exact, state, parts, count)


def _rows(edits: Any, part: np.ndarray) -> Any:
    """Returns the edits of some of the conditions."""
    return jax.tree.map(lambda x_k: x_k[part], edits)


def _batch_size(case: Case, count: int) -> int:
    data = case.runtime.mesh.shape["data"]
    return min(case.runtime.batch_size, -(-count // data) * data)


def _joined(
    exact: ExactPrompts,
    state: ExactState,
    parts: Sequence[Mapping[str, np.ndarray]],
    count: int,
) -> ExactRates:
    """Returns the rates of all batches, on the prompts that are measured."""
    measured_p = state.measured_p
    rates = {}
    for name in _ARRAYS:
        values_kp = np.concatenate([np.asarray(part[name]) for part in parts])
        rates[name] = values_kp[:count, measured_p].astype(np.float64)
        if not np.isfinite(rates[name]).all():
            k, p = np.argwhere(~np.isfinite(rates[name]))[0]
            raise ValueError(
                f"condition {k} on prompt {exact.ids[p]!r} gave probabilities that are "
                "not finite; lower the strengths, or use float32"
            )
    prompts = tuple(np.array(exact.ids)[measured_p].tolist())
    return ExactRates(prompts, **rates, facts=state.facts)


def unsteered_state(
    case: Case, direction: str, prompts: Sequence[Prompt]
) -> ExactState:
    """Returns what exact rates of a direction's model start from; run once.

    Raises ValueError as `exact_rates` does for the model without an edit.
    """
    start, _ = suffix_start(case.setup.site, case.setup.cfg)
    return _state(case, _opened(case, prompts), direction, start)


@dataclass(frozen=True, eq=False)
class _Opened:
    """Exact rates on some prompts, for both directions.

    Args:
      states: direction and first edited layer -> what the model's rates start from, as
        far as it is there.
    """

    exact: ExactPrompts
    states: dict[tuple[str, int], ExactState]


def _opened(case: Case, prompts: Sequence[Prompt]) -> _Opened:
    """Returns the exact rates on prompts; opened once."""
    key = repr(tuple(prompts))
    if key not in case.opened:
        case.opened[key] = _Opened(case.exact(case, prompts), {})
    return case.opened[key]


def _state(case: Case, opened: _Opened, direction: str, start: int) -> ExactState:
    """Returns what the rates of one direction's model start from; run once."""
    key = (direction, start)
    if key not in opened.states:
        opened.states[key] = opened.exact.begin(case.params(direction), start)
    return opened.states[key]
