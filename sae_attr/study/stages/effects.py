"""The stage that computes what steering changed: effects of every latent in both
directions, counts and differences of methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sae_attr.comparison_records import Direction, MethodCount, MethodDifference
from sae_attr.steering.compare import (
    adjusted,
    adjusted_counts,
    differences,
    method_counts,
    panel_numbers,
)
from sae_attr.steering.effects import (
    LatentEffects,
    detectable_effect,
    false_discovery,
    latent_effects,
)
from sae_attr.steering.paired import (
    EffectSettings,
    paired,
)
from sae_attr.steering.plan import UNSTEERED, Condition
from sae_attr.steering.random_band import SteeredDirection, beyond_random_p
from sae_attr.store import Computed, Progress
from sae_attr.study.case import Case
from sae_attr.study.case_stage import CaseStage, StageInputs
from sae_attr.study.grading import GradedAnswers, mean_of_known
from sae_attr.study.selection import Selection
from sae_attr.study.settings import DIRECTIONS, StudySettings
from sae_attr.study.stages.rates import rates_of
from sae_attr.study.stages.steer import effect_sweep, strengths_of
from sae_attr.study.sweep_conditions import side_of

# 2: counts of methods have p- and q-values. 3: and the gap to random latents.
VERSION = 3


@dataclass(frozen=True, eq=False)
class DirectionEffects:
    """Holds what steering changed in one direction, with the fixed signs or with those
    of the gradients.

    Args:
      study: which latents were steered, and who chose them.
      effects: of the latents.
      base_rate: of the behaviour without steering.
      prompts: that were measured.
      strength_u: signed strength of every latent, where it was steered.
    """

    study: SteeredDirection
    effects: LatentEffects
    base_rate: float
    prompts: int
    strength_u: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every statistic `[u]` over the selection's latents, by name."""
        out = {}
        for name, values in vars(self.effects).items():
            out[f"{name.removesuffix('_k')}_u"] = values
        p_u = beyond_random_p(self.study)
        out["p_random_u"] = p_u
        out["q_random_u"] = false_discovery(p_u)
        if self.strength_u is not None:
            out["strength_u"] = self.strength_u
        return out

    def panel(self, settings: EffectSettings) -> dict[str, Any]:
        """Returns the numbers of the direction's panel in the effects figure."""
        numbers = panel_numbers(
            self.study,
            self.effects,
            base_rate=self.base_rate,
            settings=settings,
        )
        # The pairs may be those of groups of prompts.
        return numbers | {"prompts": self.prompts}


def effect_settings(study: StudySettings) -> EffectSettings:
    """Returns the settings of effects that a study's settings state."""
    return EffectSettings(resamples=study.resamples, seed=study.seed)


def effects(inputs: StageInputs, progress: Progress) -> Computed:
    """Computes changes of the behaviour's rate per latent in both directions, with
    counts and differences of methods.

    Arrays `<direction>.<statistic>_u` over the selection's latents, with the fixed
    sign, and `<direction>.signed.<statistic>_u` with that of the gradient; the rest is
    in `meta`.
    """
    settings = effect_settings(inputs.case.study)
    arrays: dict[str, Any] = {}
    meta: dict[str, Any] = {
        "settings": asdict(settings),
        "panels": {},
        "signed_panels": {},
        "detectable": {},
        "base_rates": {},
    }
    counts: dict[str, list[MethodCount]] = {"counts": [], "signed_counts": []}
    compared: list[MethodDifference] = []
    for direction in DIRECTIONS:
        fixed = direction_effects(inputs, direction, settings, signed=False)
        _add(arrays, direction, fixed)
        meta["panels"][direction] = fixed.panel(settings)
        counts["counts"] += method_counts(fixed.study, settings=settings)
        meta["detectable"][direction] = detectable_effect(fixed.study.pairs)
        meta["base_rates"][direction] = fixed.base_rate
        compared += differences(fixed.study, settings=settings)
        # With a band of its own: random latents are free to choose their sign too.
        if inputs.case.study.gradient_signed:
            signed = direction_effects(inputs, direction, settings, signed=True)
            _add(arrays, f"{direction}.signed", signed)
            meta["signed_panels"][direction] = signed.panel(settings)
            of_signed = method_counts(signed.study, settings=settings)
            counts["signed_counts"] += of_signed
    for name, rows in counts.items():
        meta[name] = [asdict(count) for count in adjusted_counts(rows)]
    if compared:
        # Both directions at once: q-values are over all tests that the report shows.
        compared = list(adjusted(compared))
    meta["differences"] = [asdict(difference) for difference in compared]
    return arrays, meta


def _add(arrays: dict[str, Any], name: str, change: DirectionEffects) -> None:
    for statistic, values in change.arrays().items():
        arrays[f"{name}.{statistic}"] = values


def direction_effects(
    inputs: StageInputs,
    direction: Direction,
    settings: EffectSettings,
    *,
    signed: bool,
) -> DirectionEffects:
    """Returns the effects of one direction.

    Args:
      signed: with the signs of the latents' gradients, else with the fixed ones.
    """
    case = inputs.case
    selection = Selection.load(inputs["select"].arrays)
    strengths = strengths_of(case, direction, inputs[f"strengths.{direction}"])
    measured = measured_effects(inputs, direction)
    sides = side_of(selection, direction, signed=signed)
    latents = selection.latents_u.tolist()
    conditions = [strengths.condition(sides[latent]) for latent in latents]
    behaviour, coherence = measured.behaviour, measured.coherence
    changes = MeasuredChanges(
        measured.prompts,
        np.stack([behaviour[condition] for condition in conditions]),
        behaviour[UNSTEERED],
        np.stack([coherence[condition] for condition in conditions]),
        coherence[UNSTEERED],
    )
    strength_u = np.array([condition.strength for condition in conditions])
    return compared_effects(case, selection, direction, changes, settings, strength_u)


@dataclass(frozen=True, eq=False)
class MeasuredChanges:
    """Behaviour and coherence with every latent of a selection changed, and without.

    Args:
      prompts: ids.
      behaviour_ups, coherent_ups: latents, prompts, samples.
      base_ps, base_coherent_ps: with nothing changed.
    """

    prompts: tuple[str, ...]
    behaviour_ups: np.ndarray
    base_ps: np.ndarray
    coherent_ups: np.ndarray
    base_coherent_ps: np.ndarray


def compared_effects(
    case: Case,
    selection: Selection,
    direction: Direction,
    changes: MeasuredChanges,
    settings: EffectSettings,
    strength_u: np.ndarray | None = None,
) -> DirectionEffects:
    """Returns the effects of what was measured, with the methods that selected the
    latents.

    Args:
      direction: whose side matters.
      strength_u: of steering, if that was done.
    """
    # Without what other studies selected: it was steered for convergence, and is no
    # ranking of this study.
    methods = {}
    for name, of_method in selection.compared().items():
        methods[name] = of_method.tolist()
    group_p = case.prompt_groups(changes.prompts, "effects")
    pairs = paired(
        changes.behaviour_ups, changes.base_ps, settings=settings, group_p=group_p
    )
    return DirectionEffects(
        SteeredDirection(direction, selection.latents_u, pairs, methods),
        latent_effects(
            changes.behaviour_ups,
            changes.base_ps,
            changes.coherent_ups,
            changes.base_coherent_ps,
            settings=settings,
            group_p=group_p,
        ),
        mean_of_known(changes.base_ps),
        len(changes.prompts),
        strength_u,
    )


@dataclass(frozen=True, eq=False)
class MeasuredEffects:
    """Holds what was measured in one direction.

    Args:
      prompts: ids.
      behaviour, coherence: condition -> values `[prompts, samples]`.
    """

    prompts: tuple[str, ...]
    behaviour: Mapping[Condition, np.ndarray]
    coherence: Mapping[Condition, np.ndarray]


def measured_effects(inputs: StageInputs, direction: Direction) -> MeasuredEffects:
    """Returns what a direction's answers were graded, or their exact rates."""
    strengths = inputs[f"strengths.{direction}"]
    sweep = effect_sweep(inputs.case, direction, strengths, inputs["attribute"])
    if inputs.case.study.effects_by == "exact":
        rates = rates_of(inputs[f"rates.{direction}"])
        # One exact rate counts as one sample.
        values = {}
        for name in ("behaviour_kp", "coherence_kp"):
            values_kps = np.asarray(getattr(rates, name))[..., None]
            values[name] = dict(zip(sweep.conditions, values_kps, strict=True))
        return MeasuredEffects(rates.prompts, *values.values())
    grades = inputs[f"judge.{direction}"]
    graded = GradedAnswers.load(sweep.plan, grades.arrays, grades.meta)
    return MeasuredEffects(sweep.plan.prompts, graded.behaviour(), graded.coherence())


def fields(case: Case) -> dict[str, Any]:
    """Returns the config fields that the effects depend on."""
    declared: dict[str, Any] = {"settings": asdict(effect_settings(case.study))}
    groups = {}
    for prompt in case.prompts("effects"):
        if prompt.group is not None:
            groups[prompt.id] = prompt.group
    return declared | {"groups": groups} if groups else declared


STAGE = CaseStage(
    "effects",
    effects,
    fields,
    needs=("select", "attribute", "strengths", "judge", "rates"),
    version=VERSION,
)
