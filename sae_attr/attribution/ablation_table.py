"""Exact ablation beside the first order: per latent, and how well they agree
(docs/method.md, Ablation and approximations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.attribution.ablation import taylor_fails
from sae_attr.attribution.ranking import agreement
from sae_attr.attribution.token_table import side_weights
from sae_attr.text.rows import TokenRow

FIELDS = ("dloss", "first_order", "end_slope", "push", "end_push")  # of `Ablation`


def first_prompts(rows: Sequence[TokenRow], limit: int | None) -> list[TokenRow]:
    """Returns the first prompts' rows, whole prompts at a time: at most `limit` rows
    but at least one prompt.
    """
    out: list[TokenRow] = []
    for pair in dict.fromkeys(row.pair for row in rows):
        members = [row for row in rows if row.pair == pair]
        if out and limit is not None and len(out) + len(members) > limit:
            break
        out += members
    return out


def ablation_columns(
    rows: Sequence[TokenRow], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns per latent the paired mean of ΔL and of the first order; and their
    correlations, of joint ablation and of single positions apart.

    Both are sums over the ablated positions, in nats, with sides and prompts weighted
    as in Δ.

    Args:
      arrays: `joint_*` `[rows, latents]` and `single_*` `[positions]` of every field of
        `Ablation`.
    """
    weights_r = side_weights(rows)
    paired = {}
    for field in FIELDS:
        joint_rk = np.asarray(arrays[f"joint_{field}"], np.float64)
        paired[field] = weights_r @ joint_rk
    dloss_rk = np.asarray(arrays["joint_dloss"])
    first_rk = np.asarray(arrays["joint_first_order"])
    columns = {
        "exact": paired["dloss"],
        "first_order": paired["first_order"],
        "end_slope": paired["end_slope"],
        "push_start": paired["push"],
        "push_end": paired["end_push"],
        "taylor_fails": taylor_fails(paired["dloss"], paired["first_order"]),
        "taylor_fail_share": taylor_fails(dloss_rk, first_rk).mean(0),
    }
    about = {
        "joint_per_latent": agreement(paired["dloss"], paired["first_order"]),
        "joint_per_completion": agreement(dloss_rk, first_rk),
        "single_position": agreement(
            arrays["single_dloss"], arrays["single_first_order"]
        ),
        "latents_where_taylor_fails": int(columns["taylor_fails"].sum()),
    }
    return columns, about


def figure_numbers(
    latents: Sequence[int] | np.ndarray,
    candidates: int,
    columns: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Returns the numbers of `figures.ablation_figure`.

    Args:
      latents: candidates first, then random ones.
      candidates: how many of them are candidates.
      columns, about: from `ablation_columns`.
    """
    points = [
        {
            "latent": int(latent),
            "group": "candidate" if j < candidates else "random",
            "first_order": float(columns["first_order"][j]),
            "exact": float(columns["exact"][j]),
        }
        for j, latent in enumerate(latents)
    ]
    single = {
        "first_order": np.asarray(arrays["single_first_order"]).tolist(),
        "exact": np.asarray(arrays["single_dloss"]).tolist(),
    }
    correlations = {
        "joint": about["joint_per_latent"],
        "single": about["single_position"],
    }
    return {"latents": points, "single": single, "correlations": correlations}


def with_exact(
    columns: Mapping[str, np.ndarray],
    latents: Sequence[int] | np.ndarray,
    exact: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Adds the exact ablation of those candidates that were ablated; NaN, or False, for
    the others.

    Args:
      latents: of `exact`, whose columns hold one value for each of them.
    """
    place = {int(latent): j for j, latent in enumerate(latents)}
    out = dict(columns)
    for name, values_k in exact.items():
        unknown = False if name == "taylor_fails" else np.nan
        cells = []
        for latent in columns["latent"]:
            j = place.get(int(latent))
            cells.append(unknown if j is None else values_k[j])
        out[name] = np.array(cells)
    return out
