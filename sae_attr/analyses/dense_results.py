"""What a study of dense latents found: counts by class, the dense among the best of every
ranking, and the effects of steering without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.analyses.dense_case import DenseCase
from sae_attr.analyses.dense_classes import first_class, latent_classes
from sae_attr.analyses.dense_settings import (
    ALPHABET,
    CLASSES,
    NO_CLASS,
    NULL_SPACE,
    POSITION,
    PRINCIPAL,
    WORD,
)
from sae_attr.analyses.dense_stages import DENSITY, MEASURES
from sae_attr.attribution.ranking import rank
from sae_attr.report.method_style import PRESET_METHODS
from sae_attr.store import Result
from sae_attr.study.case_stage import plain
from sae_attr.study.latent_table import outside
from sae_attr.study.selection import Selection, method_scores
from sae_attr.study.settings import DIRECTIONS

Row = dict[str, Any]


def dense_numbers(c: DenseCase, results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns what figure, tables and sentences show of one case, plain values.

    Args:
      results: of the stages of `dense_stages`.
    """
    density = results[c.stage_name(DENSITY)]
    measures = results[c.stage_name(MEASURES)]
    rate_n = np.asarray(density.arrays["rate_n"])
    rows = latent_rows(c, rate_n, measures)
    return {
        "title": c.case.settings.title,
        "behaviour": c.case.settings.behaviour,
        "site": str(c.case.setup.site),
        "tokens": density.meta["tokens"],
        "latents": len(rate_n),
        "dense": int((rate_n > c.settings.dense).sum()),
        "component_share": density.meta["component_share"],
        "null_chance": measures.meta.get("null_chance"),
        "left_out": measures.meta["left_out"],
        "classes": class_rows(rows),
        "rankings": ranking_rows(c, rate_n, rows),
        "effects": effect_rows(c, rate_n),
        "settings": plain(c.settings),
        "rows": rows,
    }


def latent_rows(c: DenseCase, rate_n: np.ndarray, measures: Result) -> list[Row]:
    """Returns a row per latent that was looked at, the densest first, under the names of
    latents.csv; `density_class` is empty of one that is not dense, and `fits` has every
    class whose test it meets.
    """
    arrays, meta = measures.arrays, measures.meta
    latents_k = np.asarray(arrays["latents_k"])
    sizes = {}
    for name in CLASSES:
        if name in arrays:
            # A latent may rise or fall with position, and point along either end of a
            # component.
            sizes[name] = np.abs(np.asarray(arrays[name]))
    classes = latent_classes(sizes, c.settings)
    columns = {
        "antipodality": "antipodality_k",
        "antipode_cosine": "antipode_cosine_k",
        "position_rho": POSITION,
        "null_energy": NULL_SPACE,
        "entropy_effect": "entropy_k",
        "entropy_effect_held": "entropy_held_k",
        "letter_share": ALPHABET,
        "component_cosine": PRINCIPAL,
        "word_auc": WORD,
    }
    texts = {"position_from": "from", "letter": "letters", "word_class": "word_classes"}
    rows = []
    for k, latent in enumerate(latents_k.tolist()):
        dense = bool(rate_n[latent] > c.settings.dense)
        row: Row = {
            "latent": latent,
            "firing_rate": float(rate_n[latent]),
            "dense": dense,
            "density_class": first_class(classes[k]) if dense else "",
            "fits": list(classes[k]),
            "antipode": int(arrays["antipode_k"][k]),
        }
        for name, array in columns.items():
            if array in arrays:
                row[name] = float(arrays[array][k])
        for name, key in texts.items():
            if key in meta:
                row[name] = meta[key][k]
        row["paired"] = _paired(row, c.settings.antipodal)
        rows.append(row)
    return rows


def _paired(row: Row, least: float) -> bool:
    """Returns whether a latent has an antipode: a duplicate has the same product."""
    return row["antipodality"] > least and row["antipode_cosine"] < 0


def class_rows(rows: list[Row]) -> list[Row]:
    """Returns a row per class: the dense latents that are counted in it, those that meet
    its test, and how many of the others that were looked at meet it.
    """
    dense = [row for row in rows if row["dense"]]
    others = [row for row in rows if not row["dense"]]
    out = []
    for name in (*CLASSES, NO_CLASS):
        counted = [row for row in dense if row["density_class"] == name]
        out.append(
            {
                "class": name,
                "dense": len(counted),
                "paired": sum(row["paired"] for row in counted),
                "share": len(counted) / len(dense) if dense else np.nan,
                "meet": _meeting(dense, name),
                "others": _meeting(others, name),
                "of_others": len(others),
            }
        )
    return out


def _meeting(rows: list[Row], name: str) -> int:
    if name == NO_CLASS:
        return sum(not row["fits"] for row in rows)
    return sum(name in row["fits"] for row in rows)


def ranking_rows(c: DenseCase, rate_n: np.ndarray, rows: list[Row]) -> list[Row]:
    """Returns a row per ranking of the study: how many of its best latents are dense,
    how many would be at random, and their classes.
    """
    attribution = c.result("attribute")
    selection = Selection.load(c.result("select").arrays)
    classes = {row["latent"]: row["density_class"] for row in rows}
    expected = float((rate_n > c.settings.dense).mean())
    names = []
    for preset in attribution.meta["summary"]["presets"]:
        names.append(PRESET_METHODS.get(preset, preset))
    out = []
    for name in dict.fromkeys([*names, *selection.compared()]):
        try:
            scores_n = method_scores(attribution, name)
        except ValueError:  # random latents have no score, nor have screened ones
            continue
        best = rank(name, scores_n, c.settings.top).latents_k
        dense = best[rate_n[best] > c.settings.dense]
        of_class = dict.fromkeys((*CLASSES, NO_CLASS), 0)
        for latent in dense.tolist():
            of_class[classes.get(latent, NO_CLASS) or NO_CLASS] += 1
        out.append(
            {
                "ranking": name,
                "ranked": len(best),
                "dense": len(dense),
                "expected": expected * len(best),
                "first_dense": _first_place(best, dense),
                "latents": dense.tolist(),
                "classes": of_class,
            }
        )
    return out


def _first_place(best: np.ndarray, dense: np.ndarray) -> int | None:
    """Returns the place of the first dense latent, from 1; None where there is none."""
    places = np.flatnonzero(np.isin(best, dense))
    return int(places[0]) + 1 if len(places) else None


def effect_rows(c: DenseCase, rate_n: np.ndarray) -> list[Row]:
    """Returns a row per direction and method: the mean change of the rate over the
    method's steered latents and how many leave the random band, with the dense and
    without them.
    """
    effects = c.result("effects")
    selection = Selection.load(c.result("select").arrays)
    dense = np.flatnonzero(rate_n > c.settings.dense)
    out = []
    for direction in DIRECTIONS:
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"], np.float64)
        band = effects.meta["panels"][direction]["band"]
        for method, latents in selection.compared().items():
            if (latents >= len(rate_n)).any():
                continue  # of a further dictionary, whose rates are not known
            of_method_u = np.isin(selection.latents_u, latents) & np.isfinite(change_u)
            dense_u = np.isin(selection.latents_u, dense)
            row: Row = {"direction": direction, "method": method}
            row["dense"] = int((of_method_u & dense_u).sum())
            for suffix, where_u in (
                ("", of_method_u),
                ("_without", of_method_u & ~dense_u),
            ):
                values = change_u[where_u]
                beyond = [outside(float(x), band, direction) for x in values]
                row[f"latents{suffix}"] = len(values)
                row[f"mean{suffix}"] = float(values.mean()) if len(values) else np.nan
                row[f"outside{suffix}"] = sum(beyond)
            out.append(row)
    return out
