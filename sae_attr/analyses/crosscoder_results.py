"""What the crosscoders of an organism show: latents by class, how well they do, and what
steering with them does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.crosscoder_settings import (
    CROSSCODER,
    CROSSCODER_L1,
    DICTIONARIES,
    DIFFERENCE,
    CrosscoderCase,
)
from sae_attr.analyses.crosscoder_stages import PLANTED, RANDOM, STEERING, TRAINING
from sae_attr.analyses.latent_scaling import FT_ONLY, latent_classes
from sae_attr.analyses.pool_results import mean_interval
from sae_attr.store import Result

Row = dict[str, Any]
Results = Mapping[str, Result]
LEVEL = 0.95  # of random latents that a latent has to exceed to count as steering


def crosscoder_numbers(
    cases: Sequence[CrosscoderCase], results: Results
) -> dict[str, Any]:
    """Returns the rows of the cases that are complete: `latents` that fired,
    `dictionaries`, `steering`, and `planted`, those of the test on planted data.
    """
    numbers: dict[str, Any] = {"latents": [], "dictionaries": [], "steering": []}
    for case in cases:
        names = [case.stage_name(stage) for stage in (TRAINING, STEERING)]
        if all(name in results for name in names):
            trained, steered = (results[name] for name in names)
            numbers["latents"] += _latents(case, trained)
            numbers["dictionaries"] += _dictionaries(case, trained)
            numbers["steering"] += _steering(case, steered)
    planted = results[PLANTED].meta["rows"] if PLANTED in results else []
    return numbers | {"planted": planted}


def _latents(case: CrosscoderCase, trained: Result) -> list[Row]:
    seed, rows = case.evaluation.recipe.seed, []
    for name in (CROSSCODER, CROSSCODER_L1):
        columns = _columns(trained, name)
        for latent in np.flatnonzero(columns["active_n"] > 0):
            row: Row = {"seed": seed, "dictionary": name, "latent": int(latent)}
            for key in ("norm_n", "nu_error_n", "nu_reconstruction_n"):
                row[key.removesuffix("_n")] = float(columns[key][latent])
            rows.append(row)
    return rows


def _columns(trained: Result, name: str) -> dict[str, np.ndarray]:
    keys = ("norm_n", "nu_error_n", "nu_reconstruction_n", "active_n")
    return {key: np.asarray(trained.arrays[f"{name}.{key}"]) for key in keys}


def _dictionaries(case: CrosscoderCase, trained: Result) -> list[Row]:
    """A row per dictionary: counts of latents that fired, by class; explained variance,
    L0 and KL.
    """
    rows, specificity = [], case.settings.specificity
    for name in DICTIONARIES:
        row: Row = {"seed": case.evaluation.recipe.seed, "dictionary": name}
        row |= trained.meta[name]
        if name != DIFFERENCE:
            columns = _columns(trained, name)
            fired_n = columns["active_n"] > 0
            classes = latent_classes(columns["norm_n"], specificity)
            row["fired"] = int(fired_n.sum())
            row |= {kind: int((is_n & fired_n).sum()) for kind, is_n in classes.items()}
            own_n = columns["nu_error_n"] < specificity.error
            own_n &= columns["nu_reconstruction_n"] < specificity.reconstruction
            row["specific"] = int((own_n & fired_n & classes[FT_ONLY]).sum())
        rows.append(row)
    return rows


def _steering(case: CrosscoderCase, steered: Result) -> list[Row]:
    """A row per method and direction: mean effect with its bootstrap interval, the
    largest, and how many exceed all but 5 % of random latents.
    """
    rows = []
    for way in ("away", "toward"):
        random_k = np.asarray(steered.arrays[f"{RANDOM}.{way}_k"])
        limit = float(np.quantile(random_k, LEVEL))
        for name in (*DICTIONARIES, RANDOM):
            effect_k = np.asarray(steered.arrays[f"{name}.{way}_k"])
            mean, low, high = mean_interval(effect_k)
            row: Row = {"seed": case.evaluation.recipe.seed, "method": name, "way": way}
            row |= {"base": steered.meta[f"base_{way}"], "limit": limit}
            row |= {"latents": len(effect_k), "mean": mean, "low": low, "high": high}
            row |= {"largest": float(effect_k.max())}
            rows.append(row | {"outside": int((effect_k > limit).sum())})
    return rows
