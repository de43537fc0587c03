"""Δ of a case's latents by the roles of tokens, for its table, page and figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.attribution.ranking import rank
from sae_attr.attribution.roles import COUNTED_ROLES, role_shares
from sae_attr.study.case_results import CaseResults
from sae_attr.study.selection import preset_of
from sae_attr.study.stages.roles import parts_of
from sae_attr.text.rows import ROLES, USER

FIRST = 10  # latents of every method in the figure


def role_columns(results: CaseResults) -> dict[int, dict[str, Any]]:
    """Returns latent -> its columns, of the primary preset's Δ: `from_ROLE`, the role
    with the largest part and that part's share, and its rank where only the user's
    tokens count.
    """
    roles, selection = results.of["roles"], results.selection
    summary = results.of["attribute"].meta["summary"]
    parts_ru = parts_of(roles.arrays)[summary["primary"]]
    shares_ru = role_shares(parts_ru)
    ranks_n = _user_ranks(roles.arrays)
    columns = {}
    for place, latent in enumerate(selection.latents_u.tolist()):
        row: dict[str, Any] = {}
        for role in COUNTED_ROLES:
            row[f"from_{ROLES[role]}"] = float(parts_ru[role, place])
        main = _main_role(shares_ru[:, place])
        if main is not None:
            row["main_role"] = ROLES[main]
            row["main_share"] = float(shares_ru[main, place])
        row["rank_user_only"] = None
        if ranks_n is not None and latent < len(ranks_n):
            row["rank_user_only"] = int(ranks_n[latent])
        columns[latent] = row
    return columns


def _user_ranks(arrays: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the rank of every latent `[n]` where only the user's tokens count."""
    if "user_only_n" not in arrays:
        return None
    scores_n = np.asarray(arrays["user_only_n"])
    ranks_n = np.empty(len(scores_n), int)
    ranks_n[np.argsort(-scores_n, kind="stable")] = 1 + np.arange(len(scores_n))
    return ranks_n


def role_numbers(results: CaseResults) -> dict[str, Any]:
    """Returns the numbers of `figures.roles_figure`, and what remains where only the
    user's tokens count.
    """
    summary = results.of["attribute"].meta["summary"]
    parts = parts_of(results.of["roles"].arrays)
    latents_u = results.selection.latents_u
    methods = []
    for name, latents in results.selection.compared().items():
        first = latents[:FIRST]
        preset = preset_of(summary, name) or summary["primary"]
        places = np.searchsorted(latents_u, first)
        shares_rk = role_shares(parts[preset][:, places])
        shares = {ROLES[role]: shares_rk[role].tolist() for role in COUNTED_ROLES}
        labels = results.case.latents.labels(first.tolist())
        methods.append({"method": name, "latents": labels, "shares": shares})
    return {"methods": methods, "user_only": _user_only(results)}


def _user_only(results: CaseResults) -> dict[str, Any]:
    """Returns the ranks of the studied method's first latents where only the user's
    tokens count, and how much of its top stays; or why that is not known.
    """
    roles, study = results.of["roles"], results.case.study
    ranks_n = _user_ranks(roles.arrays)
    if ranks_n is None:
        return {"skipped": roles.meta["user_only_skipped"]}
    method = study.methods[0]
    summary = results.of["attribute"].meta["summary"]
    preset = preset_of(summary, method)
    assert preset is not None  # else the stage has no ranks
    top = results.selection.methods[method]
    scores_n = np.asarray(roles.arrays["user_only_n"])
    stay = np.isin(top, rank("user only", scores_n, len(top)).latents_k)
    shares_ru = role_shares(parts_of(roles.arrays)[preset])
    rows = []
    for place, latent in enumerate(top[:FIRST].tolist(), start=1):
        shares_r = shares_ru[:, np.searchsorted(results.selection.latents_u, latent)]
        main = _main_role(shares_r)
        row = {
            "rank": place,
            "latent": latent,
            "main_role": None if main is None else ROLES[main],
            "main_share": float("nan") if main is None else float(shares_r[main]),
            "user_share": float(shares_r[USER]),
            "rank_user_only": int(ranks_n[latent]),
        }
        rows.append(row)
    return {
        "method": method,
        "top": len(top),
        "stay": int(stay.sum()),
        "dictionary": len(ranks_n),
        "rows": rows,
    }


def _main_role(shares_r: np.ndarray) -> int | None:
    """Returns the role with the largest part of a latent's Δ; None where it has none."""
    if np.isnan(shares_r).all():
        return None
    return int(np.abs(np.nan_to_num(shares_r)).argmax())
