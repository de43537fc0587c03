"""The controls of the task even_number, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_attr.analyses.number_controls import CONDITIONS, NAME
from sae_attr.analyses.pool_results import VECTOR_NAME, mean_interval
from sae_attr.analyses.pool_settings import PoolCase
from sae_attr.analyses.pool_stages import pool_of
from sae_attr.analyses.selector_pool import PLANTED, RANDOM, SELECTORS
from sae_attr.organism.grader import EVEN_NUMBER
from sae_attr.organism.number_words import FORMAT_NAMES
from sae_attr.store import Result

Row = dict[str, Any]
HIGH = 0.95  # AUC of a latent that tells two sides apart without doubt


def control_numbers(
    cases: Sequence[PoolCase], results: Mapping[str, Result]
) -> dict[str, list[Row]]:
    """Returns the rows of all seeds: `number_rates`, a row per seed, model and
    condition; `number_controls`, a row per group of latents over all seeds.
    """
    rates, latents = [], []
    for case in cases:
        name = case.stage_name(NAME)
        if case.evaluation.behaviour == EVEN_NUMBER and name in results:
            rates += _rate_rows(case, results[name])
            pool = results[case.stage_name("pool")]
            latents += _latent_rows(results[name], pool)
    rows = []
    for group in (VECTOR_NAME, PLANTED, *SELECTORS, RANDOM):
        members = [row for row in latents if group in row["origins"]]
        if members:
            rows.append(_group_row(group, members))
    return {"number_rates": rates, "number_controls": rows}


def _rate_rows(case: PoolCase, controls: Result) -> list[Row]:
    rows = []
    for when, of_conditions in controls.meta["rates"].items():
        for condition, (mean, least, largest) in of_conditions.items():
            row: Row = {"seed": case.about["seed"], "model": when}
            row |= {"condition": condition, "rate": mean}
            rows.append(row | {"least": least, "largest": largest})
    return rows


def _latent_rows(controls: Result, pool: Result) -> list[Row]:
    """A row for the vector and every latent: `steering.<condition>`, and the lowest and
    the highest AUC of all formats of each kind of AUC.
    """
    arrays = {name: np.asarray(array) for name, array in controls.arrays.items()}
    origins = [(VECTOR_NAME,), *(latent.origins for latent in pool_of(pool))]
    rows: list[Row] = []
    for k, of_latent in enumerate(origins):
        row: Row = {"origins": of_latent}
        for condition in CONDITIONS:
            along, against = (
                arrays[f"{condition}.{n}"][k] for n in ("along", "against")
            )
            row[f"along.{condition}"] = float(along)
            row[f"steering.{condition}"] = float(along + against)
        for kind in ("field", "length", "short", "long"):
            names = [f"{kind}.{about}" for about in FORMAT_NAMES]
            aucs = [float(arrays[name][k]) for name in names if name in arrays]
            row[f"{kind}.low"] = min(aucs, default=float("nan"))
            row[f"{kind}.high"] = max(aucs, default=float("nan"))
        rows.append(row)
    return rows


def _group_row(group: str, members: Sequence[Row]) -> Row:
    """Means with bootstrap intervals over latents, and shares with exact ones:
    `field` tells fields apart (AUC of `HIGH` or more on all formats), `short` and `long`
    monitor parity at one length on all formats, `length` tells lengths apart (`HIGH` or
    more on all formats, or as far below).
    """
    row: Row = {"group": group, "latents": len(members)}
    for condition in CONDITIONS:
        for name in (f"steering.{condition}", f"along.{condition}"):
            values_k = np.array([member[name] for member in members])
            row[name], row[f"{name}_low"], row[f"{name}_high"] = mean_interval(values_k)
    tests = {
        "field": lambda m: m["field.low"] >= HIGH,
        "short": lambda m: m["short.low"] > 0.5,
        "long": lambda m: m["long.low"] > 0.5,
        "length": lambda m: m["length.low"] >= HIGH or m["length.high"] <= 1 - HIGH,
    }
    for name, passes in tests.items():
        count = sum(bool(passes(member)) for member in members)
        interval = stats.binomtest(count, len(members)).proportion_ci()
        row[name] = count / len(members)
        row[f"{name}_low"], row[f"{name}_high"] = interval.low, interval.high
    for kind in ("field", "short", "long", "length"):
        row[f"{kind}.lowest"] = float(np.mean([m[f"{kind}.low"] for m in members]))
        row[f"{kind}.highest"] = float(np.mean([m[f"{kind}.high"] for m in members]))
    return row
