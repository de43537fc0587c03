"""Mitigation: latents suppressed together, directions projected out at many sites, and
what either costs.

A set of latents is suppressed as one subspace. Correlated decoder rows share what they
have in common, so that nothing is subtracted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.analyses.directions import unit_rows
from sae_attr.comparison_records import Estimate
from sae_attr.hooks import Add, Below, Edit, SetProjection, Site
from sae_attr.steering.groups import group_draws, group_interval
from sae_attr.steering.interventions import intervention
from sae_attr.steering.paired import DEFAULT, EffectSettings, interval, prompt_draws
from sae_attr.steering.text_loss import TextLoss

SUPPRESS_BY = ("mean", "zero", "steer")
PROJECT_TO = ("zero", "mean")

# ---- edits ---------------------------------------------------------------------------


def suppression(
    rows_kmd: np.ndarray, by: str, *, mean_d: np.ndarray, length: float = 0.0
) -> Edit:
    """Returns the edit that suppresses m rows together, in each of k conditions.

    Args:
      rows_kmd: unit decoder rows; a row of zeros stands for none, so that conditions may
        differ in how many they suppress.
      by: `mean`: the projections on all m rows are set to those of `mean_d`, by the
        smallest change that does it; `zero`: they are set to 0; `steer`: a vector of
        `length` against the sum of the rows is added, of the same length whatever m.
      mean_d: mean activation over ordinary text.

    Raises:
      ValueError: another word for `by`.
    """
    if by not in SUPPRESS_BY:
        raise ValueError(
            f"suppress by {by!r} is unknown; choose one of {', '.join(SUPPRESS_BY)}"
        )
    rows_kmd = np.asarray(rows_kmd, np.float32)
    if by == "steer":
        along_kd = unit_rows(rows_kmd.sum(1))
        return Add(jnp.asarray(along_kd), jnp.full(len(along_kd), -length, jnp.float32))
    values_km = np.zeros(rows_kmd.shape[:2], np.float32)
    if by == "mean":
        values_km = rows_kmd @ np.asarray(mean_d, np.float32)
    return intervention(jnp.asarray(rows_kmd), jnp.asarray(values_km), mode="set")


def projections(
    directions: Mapping[Site, np.ndarray],
    to: str = "zero",
    *,
    means: Mapping[Site, np.ndarray],
) -> dict[Site, Edit]:
    """Returns the edits that take one direction a site out of the residual stream.

    Args:
      directions: site -> `[k, d]`, of any length; a row of zeros changes nothing.
      to: the projection becomes `zero`, or that of the `mean` activation of the site.
      means: site -> mean activation `[d]`.

    Raises:
      ValueError: another word for `to`.
    """
    if to not in PROJECT_TO:
        raise ValueError(
            f"project to {to!r} is unknown; choose one of {', '.join(PROJECT_TO)}"
        )
    edits: dict[Site, Edit] = {}
    for site, rows_kd in directions.items():
        units_kd = unit_rows(rows_kd)
        values_k = np.zeros(len(units_kd), np.float32)
        if to == "mean":
            values_k = units_kd @ np.asarray(means[site], np.float32)
        edits[site] = SetProjection(jnp.asarray(units_kd), jnp.asarray(values_k))
    return edits


def sparing_outliers(
    edits: Mapping[Site, Edit], limits: Mapping[Site, float]
) -> dict[Site, Edit]:
    """Returns edits that leave tokens beyond their site's largest norm as they are.

    Args:
      edits: every array has the conditions as its first axis.
      limits: site -> norm; a site without one spares no token.
    """
    spared: dict[Site, Edit] = {}
    for site, edit in edits.items():
        spared[site] = edit
        if site in limits:
            count = len(jax.tree.leaves(edit)[0])
            spared[site] = Below(edit, jnp.full(count, limits[site], jnp.float32))
    return spared


# ---- what it does, and what it costs -------------------------------------------------


def rate_estimate(
    rate_dp: np.ndarray, group_p: np.ndarray, *, settings: EffectSettings = DEFAULT
) -> Estimate:
    """Returns the mean rate over draws and prompts; the interval draws groups of
    prompts.

    Args:
      rate_dp: a row per draw of the same condition; one row where nothing was drawn.
      group_p: `groups.group_numbers` of the prompts.
    """
    rate_p = np.asarray(rate_dp, np.float64).mean(0)
    counts_bp = group_draws(group_p, settings=settings)
    drawn_b = counts_bp @ rate_p / counts_bp.sum(1)
    low, high = group_interval(drawn_b, group_p, settings=settings)
    return Estimate(float(rate_p.mean()), float(low), float(high))


def perplexity_ratio(
    loss: TextLoss, conditions: np.ndarray, *, settings: EffectSettings = DEFAULT
) -> Estimate:
    """Returns perplexity with an edit over perplexity without; the interval draws rows
    of text.

    Args:
      conditions: rows of `loss.nats_kr` that are draws of one condition; their mean
        loss counts.
    """
    cost_r = loss.nats_kr[conditions].mean(0) - loss.plain_r
    counts_br = prompt_draws(len(cost_r), settings=settings)
    tokens_b = counts_br @ loss.tokens_r
    drawn_b = np.full(len(tokens_b), np.nan)
    np.divide(counts_br @ cost_r, tokens_b, out=drawn_b, where=tokens_b > 0)
    low, high = interval(np.exp(drawn_b), settings.level)
    value = np.exp(cost_r.sum() / loss.tokens)
    return Estimate(float(value), float(low), float(high))
