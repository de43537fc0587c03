"""What a screen found, for a case's page, tables and figure, beside the measured effects
of the latents that were steered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.comparison_records import Direction, Estimate
from sae_attr.report.method_style import RANDOM, method_name
from sae_attr.report.numbers import signed, span
from sae_attr.report.page.probe_records import Screen, ScreenAgreement
from sae_attr.report.tables import csv_text
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import interval
from sae_attr.steering.sampled_agreement import spearman
from sae_attr.steering.screening import ScreenedLatents, screened_latents
from sae_attr.study.case_results import CaseResults
from sae_attr.study.probe_results import group_of
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.stages.effects import effect_settings
from sae_attr.study.stages.screen import score_of_all
from sae_attr.study.sweep_conditions import FIXED_SIGN

_CLEAR = 0.05  # false discovery rate below which a latent counts as clear


def direction_screen(results: CaseResults, direction: Direction) -> ScreenedLatents:
    """Returns every screened latent of a direction with its uncertainty."""
    result = results.of[f"screen.{direction}"]
    by_id = results.case.prompts_by_id("pairs")
    groups = [group_of(by_id[name]) for name in result.meta["pairs"]]
    random = results.selection.methods.get(RANDOM, np.zeros(0, int))
    return screened_latents(
        direction,
        np.asarray(result.arrays["latents_k"]),
        np.asarray(result.arrays["change_kp"]),
        random=random.tolist(),
        group_p=group_numbers(groups),
    )


def screen_columns(results: CaseResults) -> dict[int, dict[str, float]]:
    """Returns latent -> its columns `screen_away` and `screen_toward`; {} where nothing
    was screened.
    """
    columns: dict[int, dict[str, float]] = {}
    if not results.has("screen"):
        return columns
    for direction in DIRECTIONS:
        tried = direction_screen(results, direction)
        pairs = zip(tried.latents_k.tolist(), tried.change_k.tolist(), strict=True)
        for latent, change in pairs:
            columns.setdefault(latent, {})[f"screen_{direction}"] = change
    return columns


def screen_table(results: CaseResults) -> str:
    """Returns screen.csv: every screened latent with its change in either direction, its
    standard error, and its p- and q-values against random latents.
    """
    columns: dict[str, list[Any]] = {}
    random = results.selection.methods.get(RANDOM, np.zeros(0, int))
    for direction in DIRECTIONS:
        tried = direction_screen(results, direction)
        columns["latent"] = tried.latents_k.tolist()
        columns["random"] = np.isin(tried.latents_k, random).tolist()
        columns[direction] = tried.change_k.tolist()
        columns[f"{direction}_se"] = tried.se_k.tolist()
        columns[f"{direction}_p"] = tried.p_k.tolist()
        columns[f"{direction}_q"] = tried.q_k.tolist()
    return csv_text(columns)


def screen_section(results: CaseResults) -> Screen | None:
    """Returns the section of the page; None where nothing was screened."""
    if not results.has("screen"):
        return None
    panels, agreements = [], []
    sentences = [_tried_sentence(results)]
    for direction in DIRECTIONS:
        tried = direction_screen(results, direction)
        rows = _steered_rows(results, direction, tried)
        of_direction = _agreement(results, direction, tried, rows)
        agreements.append(of_direction)
        spearman = of_direction.screen.value
        panels.append({"direction": direction, "spearman": spearman, "points": rows})
        sentences.append(_direction_sentence(results, of_direction))
    return Screen({"panels": panels}, tuple(agreements), tuple(sentences))


def _steered_rows(
    results: CaseResults, direction: Direction, tried: ScreenedLatents
) -> list[dict[str, Any]]:
    """Returns a row per latent that was screened, and steered at some strength."""
    effects, selection = results.of["effects"].arrays, results.selection
    change_of = dict(
        zip(tried.latents_k.tolist(), tried.change_k.tolist(), strict=True)
    )
    change_u = np.asarray(effects[f"{direction}.change_u"])
    strength_u = np.asarray(effects[f"{direction}.strength_u"])
    rows = []
    for place, latent in enumerate(selection.latents_u.tolist()):
        # Without a coherent strength it was not steered: its 0 says nothing. Latents of
        # further dictionaries are not screened.
        if strength_u[place] and latent in change_of:
            row = {
                "latent": latent,
                "method": selection.methods_of(latent)[0],
                "screen": change_of[latent],
                "change": float(change_u[place]),
            }
            rows.append(row)
    return rows


def _agreement(
    results: CaseResults,
    direction: Direction,
    tried: ScreenedLatents,
    rows: list[dict[str, Any]],
) -> ScreenAgreement:
    """Compares the screen, and the score that proposed, with the measured effects."""
    case = results.case
    score_n = score_of_all(results.of["attribute"], case.study.screen_by)
    latents_k = np.array([row["latent"] for row in rows], int)
    change_k = np.array([row["change"] for row in rows])
    screen_k = np.array([row["screen"] for row in rows])
    tested = tried.q_k[~np.isnan(tried.q_k)]
    side_k = FIXED_SIGN[direction] * tried.change_k > 0
    clear_k = (tried.q_k < _CLEAR) & side_k
    return ScreenAgreement(
        direction,
        tried=len(tested),
        clear=int(clear_k.sum()),
        compared=len(rows),
        screen=_spearman(results, screen_k, change_k),
        proposer=_spearman(
            results, FIXED_SIGN[direction] * score_n[latents_k], change_k
        ),
    )


def _spearman(
    results: CaseResults, values_k: np.ndarray, change_k: np.ndarray
) -> Estimate:
    """Returns Spearman's correlation with the measured changes; latents are drawn again
    for the interval.
    """
    settings = effect_settings(results.case.study)
    rng = np.random.default_rng([settings.seed, 3])
    count = len(values_k)
    picks_bk = rng.integers(0, max(count, 1), (settings.resamples, count))
    draws_b = spearman(values_k[picks_bk], change_k[picks_bk])
    low, high = interval(draws_b, settings.level)
    return Estimate(float(spearman(values_k, change_k)), float(low), float(high))


# ---- sentences -----------------------------------------------------------------------


def _tried_sentence(results: CaseResults) -> str:
    study, meta = results.case.study, results.of["screen.away"].meta
    unit = "per token" if study.screen_per_token else "summed over its tokens"
    return (
        f"The {study.screen:,} best latents by {method_name(study.screen_by)}, and those "
        f"that are steered anyway, were tried on {len(meta['pairs'])} held-out pairs at "
        f"{study.screen_strength:g} mean norms: what steering does to log p(C) − "
        f"log p(C′), {unit}. The best of them are the method "
        f"“{method_name('screened')}”."
    )


def _direction_sentence(results: CaseResults, agreed: ScreenAgreement) -> str:
    proposer = method_name(results.case.study.screen_by)
    return (
        f"Steering {agreed.direction}, {agreed.clear:,} of {agreed.tried:,} latents move "
        "the held-out pairs further than random latents do (FDR below "
        f"{_CLEAR:g}). Over the {agreed.compared} latents that were steered, the screen "
        f"agrees with the measured effects by Spearman {_written(agreed.screen)}, "
        f"{proposer} by {_written(agreed.proposer)}."
    )


def _written(estimate: Estimate) -> str:
    text = f"{signed(estimate.value, 2)} {span(estimate.low, estimate.high, 2, 1.0)}"
    return text.rstrip()
