"""What a mitigation study measured, as rows with intervals: of the figure, the table and
result.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_attr.analyses.mitigation import perplexity_ratio, rate_estimate
from sae_attr.analyses.mitigation_case import EFFECTS, Mitigation
from sae_attr.analyses.mitigation_settings import CAUSE, LEVER, Suppression
from sae_attr.comparison_records import Estimate
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import EffectSettings
from sae_attr.steering.text_loss import TextLoss
from sae_attr.store import Result
from sae_attr.study.case_stage import plain
from sae_attr.study.probe_results import group_of

Row = dict[str, Any]


def mitigation_rows(m: Mitigation, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row per block, method and count, the model as it is first. Rates,
    accuracies and shares are 0 to 1; `low` and `high` are the ends of 95 % intervals;
    `coherent`: whether enough of the unedited coherence is left.

    Args:
      results: of the stages of `mitigation_stages`.
    """
    settings = EffectSettings(resamples=m.settings.resamples, seed=m.settings.seed)
    rows: list[Row] = []
    for block, conditions in m.blocks.items():
        result = results[m.stage_name(block)]
        if not rows:
            numbers = _numbers(m, result, np.array([0]), settings)
            rows.append({"block": "", "method": "unedited", "count": 0, **numbers})
        for condition in conditions:
            if condition.draw:
                continue
            places = _draws(conditions, condition)
            row = {
                "block": block,
                "method": condition.method,
                "count": condition.count,
                **_numbers(m, result, places, settings),
            }
            rows.append(row)
    return rows


def _draws(conditions: Sequence[Suppression], first: Suppression) -> np.ndarray:
    """Returns the places of all draws of a condition, in arrays that begin with the
    model as it is.
    """
    places = []
    for place, condition in enumerate(conditions):
        if replace(condition, draw=0) == first:
            places.append(1 + place)
    return np.array(places)


def _numbers(
    m: Mitigation, result: Result, places: np.ndarray, settings: EffectSettings
) -> Row:
    """Returns the numbers of one row."""
    mass_c = np.asarray(result.arrays[f"{EFFECTS}.coherence_cp"]).mean(1)
    coherent = bool(mass_c[places].mean() >= m.settings.least_coherence * mass_c[0])
    numbers: Row = {"draws": len(places), "coherent": coherent}
    for name in m.sets:
        rate_cp = np.asarray(result.arrays[f"{name}.behaviour_cp"])
        mass_cp = np.asarray(result.arrays[f"{name}.coherence_cp"])
        group_p = _groups(m, name, result.meta["prompts"][name])
        if name in m.settings.benign_absent:
            rate_cp = 1 - rate_cp
        title = "rate" if name == EFFECTS else f"accuracy_{name}"
        estimates = {
            title: rate_cp[places],
            f"change_{title}": rate_cp[places] - rate_cp[0],
        }
        if name == EFFECTS:
            estimates["coherence"] = mass_cp[places]
            of_draws = rate_cp[places].mean(1)
            numbers |= {"lowest": of_draws.min(), "highest": of_draws.max()}
        for key, values_dp in estimates.items():
            numbers |= _named(key, rate_estimate(values_dp, group_p, settings=settings))
    return numbers | _perplexity(result, places, settings)


def _groups(m: Mitigation, split: str, ids: Sequence[str]) -> np.ndarray:
    by_id = m.case.prompts_by_id(split)
    return group_numbers([group_of(by_id[name]) for name in ids])


def _perplexity(result: Result, places: np.ndarray, settings: EffectSettings) -> Row:
    if "nats_cr" not in result.arrays:
        return _named("perplexity", Estimate())
    nats_cr = np.asarray(result.arrays["nats_cr"])
    loss = TextLoss(nats_cr, nats_cr[0], np.asarray(result.arrays["tokens_r"]))
    ratio = perplexity_ratio(loss, places, settings=settings)
    return _named("perplexity", ratio)


def _named(name: str, estimate: Estimate) -> Row:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


def mitigation_numbers(m: Mitigation, results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns what the figure, the table and the sentences show of one case, plain
    values.

    Args:
      results: of the stages of `mitigation_stages`.
    """
    latents = {}
    for method in (CAUSE, LEVER):
        latents[method] = m.latents[method, 0].tolist()
    return {
        "title": m.case.settings.title,
        "behaviour": m.case.settings.behaviour,
        "benign": list(m.sets[1:]),
        "latents": latents,
        "strength": m.strength,
        "settings": plain(m.settings),
        "rows": mitigation_rows(m, results),
    }
