"""The plane of cause and lever of a case: coordinates, corners and measured effects of
every latent that was steered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sae_attr.attribution.plane import CORNERS, corner, z_scores
from sae_attr.attribution.ranking import agreement
from sae_attr.attribution.score_registry import key_of
from sae_attr.report.method_style import RANDOM
from sae_attr.study.case_results import CaseResults
from sae_attr.study.selection import OTHERS, preset_of
from sae_attr.study.stages.ablated_rates import NAME as ABLATED_RATES

NAN = float("nan")


def plane_columns(results: CaseResults) -> dict[int, dict[str, Any]]:
    """Returns latent -> its columns `cause_z`, `lever_z` and `corner`, of every latent
    that was steered.

    The cause is Δ of the studied method's preset, or of the primary one where the
    method is no preset; the lever is −Δg·d over the tokens of the preset `recommended`,
    or of the primary one where it was not computed. Both are in standard deviations over
    the case's SAE, also of latents of further dictionaries.
    """
    scores = results.of["attribute"].arrays
    summary = results.of["attribute"].meta["summary"]
    primary = summary["presets"][summary["primary"]]
    studied = summary["presets"][_studied_preset(results)]
    cause_key = key_of(studied["gating"], studied["tokens"])
    # Over more tokens, where the recommended preset counts more: harmful words come late,
    # and so does what makes them likelier.
    pushed = summary["presets"].get("recommended", primary)
    lever_key = key_of("gradient", pushed["tokens"])
    latents_u, coordinates = results.selection.latents_u, []
    for key in (cause_key, lever_key):
        values_u = results.scores.of(key, latents_u)
        coordinates.append(z_scores(values_u, scores[key]).tolist())
    columns = {}
    for latent, cause, lever in zip(latents_u.tolist(), *coordinates, strict=True):
        columns[latent] = {
            "cause_z": cause,
            "lever_z": lever,
            "corner": corner(cause, lever, results.case.study.plane),
        }
    return columns


def _studied_preset(results: CaseResults) -> str:
    summary = results.of["attribute"].meta["summary"]
    method = results.case.study.methods[0]
    return preset_of(summary, method) or summary["primary"]


def plane_numbers(results: CaseResults) -> dict[str, Any]:
    """Returns the numbers of `figures.plane_figure`.

    Effects are of the model with the behaviour: of steering away from it, and of
    ablation where that was measured.
    """
    effects = _measured_effects(results)
    points = []
    for latent, columns in plane_columns(results).items():
        group = _group(results, latent)
        if columns["corner"] is None or group is None:
            continue
        point = {"latent": results.label(latent), "group": group, **columns}
        for name, changes in effects.items():
            point[name] = changes[latent]
        points.append(point)
    return {
        "behaviour": results.case.settings.behaviour,
        "cause": _studied_preset(results),
        "thresholds": asdict(results.case.study.plane),
        "effects": list(effects),
        "points": points,
        "corners": [_corner_counts(name, points, effects) for name in CORNERS],
        "agreement": {name: _agreement(points, name) for name in effects},
    }


def _group(results: CaseResults, latent: int) -> str | None:
    """Returns whether a method of this study selected a latent, or chance did; None for
    one that another study alone selected.
    """
    methods = []
    for name, latents in results.selection.methods.items():
        if name != OTHERS and latent in latents:
            methods.append(name)
    if not methods:
        return None
    return "random" if methods == [RANDOM] else "selected"


def _measured_effects(results: CaseResults) -> dict[str, dict[int, float]]:
    """Returns effect -> latent -> change of the rate, of the effects that were
    measured.
    """
    latents = results.selection.latents_u.tolist()
    changes = {"steering": results.of["effects"].arrays["away.change_u"]}
    ablated = results.of.get(ABLATED_RATES)
    if ablated is not None and "change_u" in ablated.arrays:
        changes["ablation"] = ablated.arrays["change_u"]
    effects = {}
    for name, change_u in changes.items():
        effects[name] = dict(zip(latents, np.asarray(change_u).tolist(), strict=True))
    return effects


def _corner_counts(
    name: str, points: Sequence[Mapping[str, Any]], effects: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns how many latents lie in a corner, random ones apart, and the mean effects
    of those that methods selected.
    """
    here = [point for point in points if point["corner"] == name]
    selected = [point for point in here if point["group"] == "selected"]
    counts: dict[str, Any] = {
        "corner": name,
        "selected": len(selected),
        "random": len(here) - len(selected),
    }
    for effect in effects:
        changes = np.array([point[effect] for point in selected], np.float64)
        finite = changes[np.isfinite(changes)]
        counts[effect] = float(finite.mean()) if len(finite) else NAN
    return counts


def _agreement(points: Sequence[Mapping[str, Any]], effect: str) -> dict[str, float]:
    """Returns Spearman correlations of both coordinates with how far an effect lowers
    the rate, over all latents that were steered.
    """
    lowers = -np.array([point[effect] for point in points], np.float64)
    out = {}
    for name in ("cause_z", "lever_z"):
        values = np.array([point[name] for point in points], np.float64)
        out[name] = agreement(values, lowers)["spearman"]
    return out
