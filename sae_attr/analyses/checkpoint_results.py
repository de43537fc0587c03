"""A pool of latents over the checkpoints of its fine-tune, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.analyses.checkpoint_agreement import mean_with_error, series_agreement
from sae_attr.analyses.checkpoint_stages import checkpoint_steps, measured_stage
from sae_attr.analyses.pool_settings import PoolCase
from sae_attr.analyses.pool_stages import pool_of
from sae_attr.analyses.selector_pool import ATTRIBUTION, PLANTED, RANDOM, SELECTORS
from sae_attr.store import Result

Row = dict[str, Any]


def checkpoint_rows(case: PoolCase, results: Mapping[str, Result]) -> list[Row]:
    """Returns a row for every checkpoint that is measured: the behaviour's rate; of the
    pool's attribution latents Δ and its standard error over prompts; `split_half`, and
    its agreement with the last checkpoint on the same prompts (`same`), on other ones
    (`halves`), and without what the sample costs (`model`); by selector the mean
    `steering.<name>` and `cosine.<name>`. `skipped` says why one is not measured.
    """
    steps = checkpoint_steps(case)
    if not steps or any(measured_stage(case, step) not in results for step in steps):
        return []
    measured, rows = {}, []
    for step in steps:
        result = results[measured_stage(case, step)]
        if "skipped" in result.meta:
            rows.append({**case.about, "step": step, "skipped": result.meta["skipped"]})
        else:
            measured[step] = result
    pool = pool_of(results[case.stage_name("pool")])
    return rows + _measured_rows(case, measured, pool)


def _measured_rows(
    case: PoolCase, measured: Mapping[int, Result], pool: Sequence[Any]
) -> list[Row]:
    series = [np.asarray(result.arrays["delta_pn"]) for result in measured.values()]
    if not series:
        return []
    agreement = series_agreement(series, splits=case.settings.splits)
    by_attribution = [x.latent for x in pool if ATTRIBUTION in x.origins]
    by_attribution = by_attribution or [x.latent for x in pool]
    rows = []
    for c, (step, result) in enumerate(measured.items()):
        delta, error = mean_with_error(series[c][:, by_attribution])
        row: Row = {**case.about, "step": step, "skipped": ""}
        row |= {"rate": result.meta["base"], "delta": delta, "se": error}
        row["split_half"] = float(agreement.halves_cc[c, c])
        row["same"] = float(agreement.same_cc[c, -1])
        row["halves"] = float(agreement.halves_cc[c, -1])
        row["model"] = float(agreement.model_cc[c, -1])
        rows.append(row | _by_selector(result, pool))
    return rows


def _by_selector(result: Result, pool: Sequence[Any]) -> Row:
    """Means over each selector's latents, and standard errors over latents; none of the
    planted latent, which is one.
    """
    arrays = result.arrays
    steering_k = np.asarray(arrays["along_k"]) + np.asarray(arrays["against_k"])
    values = {"steering": steering_k, "cosine": np.asarray(arrays["cosine_k"])}
    row: Row = {}
    for selector in (*SELECTORS, PLANTED, RANDOM):
        # The first direction is the contrastive gradient vector.
        members = [k for k, x in enumerate(pool, 1) if selector in x.origins]
        for name, values_k in values.items():
            if members:
                row[f"{name}.{selector}"] = float(values_k[members].mean())
            if len(members) > 1:
                error = values_k[members].std(ddof=1) / np.sqrt(len(members))
                row[f"{name}_se.{selector}"] = float(error)
    return row
