"""Exact rates of a case's behaviour under many edits, batch by batch; goes on after a
kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.hooks import Edit, Site
from sae_attr.lm.sites import edited_suffix, suffix_start
from sae_attr.store import Progress
from sae_attr.study.case import Case, ExactPrompts, ExactState
from sae_attr.study.condition_batches import in_batches
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
    values = in_batches(
        case,
        lambda part: opened.exact.rates(case.params(direction), state.arrays, part),
        at_sites,
        progress,
        name=name,
        arrays=_ARRAYS,
    )
    return _measured(opened.exact, state, values)


def _measured(
    exact: ExactPrompts, state: ExactState, values: Mapping[str, np.ndarray]
) -> ExactRates:
    """Returns the rates on the prompts that are measured."""
    measured_p = state.measured_p
    rates = {}
    for name, values_kp in values.items():
        rates[name] = values_kp[:, measured_p]
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
