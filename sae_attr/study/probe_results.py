"""Rates without steering, specificity, and the check by sampled answers, as the page
shows them: statistics over what the stages measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.comparison_records import (
    Direction,
    DirectionsControl,
    Estimate,
    SetMean,
)
from sae_attr.report.method_style import RANDOM
from sae_attr.report.page.probe_records import Specificity, UnsteeredRates
from sae_attr.report.specificity_sentences import (
    EFFECTS,
    LatentChanges,
    control_sentence,
    generalisation_sentence,
    latent_sentence,
    means_sentence,
    rates_sentence,
)
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import EffectSettings
from sae_attr.steering.plan import UNSTEERED
from sae_attr.steering.specificity import (
    SetChanges,
    directions_control,
    set_changes,
    set_means,
    text_means,
)
from sae_attr.steering.topic_rates import SetRates, generalisation, topic_rates
from sae_attr.study.case import Case
from sae_attr.study.case_results import CaseResults
from sae_attr.study.prompts import SPLITS
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages.effects import effect_settings
from sae_attr.study.stages.specificity import best_and_random
from sae_attr.study.stages.unsteered import models_of, rates_by_id
from sae_attr.text.pairs import Prompt


def group_of(prompt: Prompt) -> str:
    """Returns the name of a prompt's group; a prompt without one is its own."""
    return f"group {prompt.group}" if prompt.group else f"prompt {prompt.id}"


# ---- without steering ----------------------------------------------------------------


def unsteered_rates(results: CaseResults) -> UnsteeredRates | None:
    """Returns the rates without steering; None where they were not measured."""
    if "unsteered" not in results.of:
        return None
    case, settings = results.case, effect_settings(results.case.study)
    sets = [_set_rates(results, name) for name in _sets_shown(case)]
    sets = [of_set for of_set in sets if len(of_set.rate_p)]
    trained = case.settings.trained_topics
    rates = topic_rates(sets, trained, settings=settings)
    behaviour = case.settings.behaviour
    sentences = [rates_sentence(rates, behaviour)]
    about_behaviour = [of_set for of_set in sets if _shows_behaviour(case, of_set)]
    pair = generalisation(about_behaviour, trained, settings=settings)
    if pair is not None:
        sentences.append(generalisation_sentence(*pair, behaviour))
    return UnsteeredRates(
        rates, two_models=len(models_of(case)) > 1, sentences=tuple(sentences)
    )


def _sets_shown(case: Case) -> list[str]:
    """Returns the sets of prompts in the order to show: the effects' first."""
    return [
        EFFECTS,
        *(name for name in SPLITS if name != EFFECTS),
        *case.settings.probes,
    ]


def _shows_behaviour(case: Case, of_set: SetRates) -> bool:
    """Returns whether a set asks for the studied behaviour: one that the study itself
    uses, or a probe of trained topics alone. True beliefs of a trained topic do not.
    """
    trained = case.settings.trained_topics
    return of_set.name in SPLITS or set(of_set.topics) <= set(trained)


def _set_rates(results: CaseResults, name: str) -> SetRates:
    """Returns the rates of one set's prompts, those that both models have one of."""
    case, result = results.case, results.of["unsteered"]
    by_model = [rates_by_id(result, direction) for direction in models_of(case)]
    prompts = []
    for prompt in case.prompts(name):
        if all(prompt.id in rates for rates in by_model):
            prompts.append(prompt)
    values = []
    for rates in by_model:
        values.append(np.array([rates[prompt.id] for prompt in prompts], np.float64))
    return SetRates(
        name,
        [prompt.topic or "" for prompt in prompts],
        [group_of(prompt) for prompt in prompts],
        values[0],
        values[1] if len(values) > 1 else None,
    )


# ---- specificity ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DirectionSpecificity:
    """Holds what the latents of one direction change, set by set.

    Args:
      latents_k: that were steered, with their strengths.
      sets: changes of these latents on each set, the effects' first.
      rows: method -> rows of its latents.
      nats_k: cost on ordinary text.
      directions: changes by Gaussian directions on the effects' prompts.
    """

    direction: Direction
    latents_k: np.ndarray
    strengths_k: np.ndarray
    sets: tuple[SetChanges, ...]
    rows: Mapping[str, np.ndarray]
    nats_k: np.ndarray
    directions: SetChanges
    directions_strength: float

    def means(self, settings: EffectSettings) -> tuple[SetMean, ...]:
        """Returns the mean change of every method on every set."""
        return set_means(self.direction, self.sets, self.rows, settings=settings)

    def nats(self, settings: EffectSettings) -> dict[str, Estimate]:
        """Returns the mean cost of every method on ordinary text; {} where it was not
        measured.
        """
        if not np.isfinite(self.nats_k).any():
            return {}
        return text_means(self.nats_k, self.rows, settings=settings)

    def control(self, settings: EffectSettings) -> DirectionsControl:
        """Returns Gaussian directions beside the random latents."""
        random_k = self.sets[0].change_k[self.rows.get(RANDOM, np.zeros(0, np.int64))]
        return directions_control(
            self.direction,
            self.directions_strength,
            self.directions,
            random_k,
            settings=settings,
        )

    def changes_of(self, row: int) -> dict[str, Estimate]:
        """Returns set -> the change of one latent."""
        changes = {}
        for of_set in self.sets:
            numbers = (of_set.change_k[row], of_set.low_k[row], of_set.high_k[row])
            changes[of_set.name] = Estimate(*map(float, numbers))
        return changes

    def first(self, method: str) -> int | None:
        """Returns the row of a method's latent of largest effect on the side that
        matters; None where none was measured.
        """
        rows_m = self.rows[method]
        sign = -1 if self.direction == "away" else 1
        gain_m = sign * self.sets[0].change_k[rows_m]
        if not np.isfinite(gain_m).any():
            return None
        return int(rows_m[np.nanargmax(gain_m)])


def direction_specificity(
    results: CaseResults, direction: Direction
) -> DirectionSpecificity:
    """Returns what the stages of one direction measured, as changes."""
    study, result = results.case.study, results.of[f"specificity.{direction}"]
    latents_k = np.asarray(result.arrays["latents_k"])
    row_of = {latent: row for row, latent in enumerate(latents_k.tolist())}
    selected = best_and_random(
        results.selection, study.specific_latents, study.specific_random
    )
    rows = {}
    for method, latents in selected.items():
        steered_rows = [row_of[latent] for latent in latents if latent in row_of]
        rows[method] = np.array(steered_rows, np.int64)
    of_latents, of_directions = _on_effects(results, direction, latents_k.tolist())
    return DirectionSpecificity(
        direction,
        latents_k,
        np.asarray(result.arrays["strengths_k"]),
        (of_latents, *_on_probes(results, direction)),
        rows,
        np.asarray(result.arrays["nats_k"]),
        of_directions,
        float(result.meta["directions_strength"]),
    )


def _on_effects(
    results: CaseResults, direction: Direction, latents: Sequence[int]
) -> tuple[SetChanges, SetChanges]:
    """Returns the changes by latents, and by Gaussian directions, on the effects'
    prompts.
    """
    case, result = results.case, results.of[f"specificity.{direction}"]
    prompts, exact = results.exact(direction)
    base_p = exact[UNSTEERED]
    latent_kp = np.zeros((len(latents), len(prompts)))
    for k, latent in enumerate(latents):
        latent_kp[k] = exact[results.condition(direction, latent)]
    direction_rp = np.zeros((0, len(prompts)))
    if "directions_rp" in result.arrays:
        direction_rp = np.asarray(result.arrays["directions_rp"])
    by_id = case.prompts_by_id(EFFECTS)
    group_p = group_numbers([group_of(by_id[name]) for name in prompts])
    settings = effect_settings(case.study)
    changes = []
    for rate_kp in (latent_kp, direction_rp):
        changes.append(
            set_changes(EFFECTS, rate_kp, base_p, group_p, settings=settings)
        )
    return changes[0], changes[1]


def _on_probes(results: CaseResults, direction: Direction) -> list[SetChanges]:
    """Returns the changes by latents on each probe of which a prompt was measured."""
    case, result = results.case, results.of[f"specificity.{direction}"]
    column = {}
    for place, name in enumerate(result.meta.get("prompts", ())):
        column[name] = place
    changes = []
    for name in case.settings.probes:
        prompts = [prompt for prompt in case.prompts(name) if prompt.id in column]
        if not prompts:
            continue
        columns = [column[prompt.id] for prompt in prompts]
        rate_cp = np.asarray(result.arrays["rate_cp"])[:, columns]
        group_p = group_numbers(list(map(group_of, prompts)))
        settings = effect_settings(case.study)
        changes.append(
            set_changes(name, rate_cp[1:], rate_cp[0], group_p, settings=settings)
        )
    return changes


def specificity(results: CaseResults) -> Specificity | None:
    """Returns the section on other prompts; None where it was not measured."""
    if not results.has("specificity"):
        return None
    case, settings = results.case, effect_settings(results.case.study)
    sides = [direction_specificity(results, direction) for direction in DIRECTIONS]
    means: list[SetMean] = []
    nats: dict[str, dict[str, Estimate]] = {}
    controls, sentences = [], []
    for side in sides:
        of_side = side.means(settings)
        means += of_side
        nats[side.direction] = side.nats(settings)
        control = side.control(settings)
        if control.directions and control.latents:
            controls.append(control)
        sentences += _sentences(case, side, of_side, nats[side.direction])
    sentences += map(control_sentence, controls)
    text = results.of[f"specificity.{DIRECTIONS[0]}"].meta["text"]
    names = dict.fromkeys(of_set.name for side in sides for of_set in side.sets)
    return Specificity(
        tuple(names),
        tuple(figure_numbers(case, side) for side in sides),
        tuple(means),
        nats,
        tuple(controls),
        tuple(filter(None, sentences)),
        int(text["tokens"]),
    )


def _sentences(
    case: Case,
    side: DirectionSpecificity,
    means: Sequence[SetMean],
    nats: Mapping[str, Estimate],
) -> list[str]:
    """Returns what the studied method's strongest latent does, and what its latents and
    random ones do on average.
    """
    method = case.study.methods[0]
    sentences, row = [], side.first(method)
    if row is not None:
        latent = LatentChanges(
            case.latents.label(int(side.latents_k[row])),
            method,
            side.direction,
            side.changes_of(row),
            float(side.nats_k[row]),
        )
        sentences.append(latent_sentence(latent, case.settings.behaviour))
    for name in (method, RANDOM):
        sentences.append(means_sentence(name, side.direction, means, nats.get(name)))
    return sentences


def specificity_rows(case: Case, side: DirectionSpecificity) -> list[dict[str, Any]]:
    """Returns a row per method and latent: numbers of the figure, and of the table."""
    rows = []
    for method, rows_m in side.rows.items():
        for row in rows_m.tolist():
            changes = list(side.changes_of(row).values())
            numbers = {
                "method": method,
                "latent": case.latents.label(int(side.latents_k[row])),
                "strength": float(side.strengths_k[row]),
                "change": [change.value for change in changes],
                "low": [change.low for change in changes],
                "high": [change.high for change in changes],
                "nats": float(side.nats_k[row]),
            }
            rows.append(numbers)
    return rows


def figure_numbers(case: Case, side: DirectionSpecificity) -> dict[str, Any]:
    """Returns the numbers of `figures.specificity_figure`."""
    return {
        "behaviour": case.settings.behaviour,
        "direction": side.direction,
        "model": case.steered_model(side.direction),
        "sets": [of_set.name for of_set in side.sets],
        "base": [of_set.base.value for of_set in side.sets],
        "rows": specificity_rows(case, side),
        "directions": side.directions.change_k.tolist(),
        "directions_strength": side.directions_strength,
    }
