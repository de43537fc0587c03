"""A ranking in the terminal: its table, where Δ comes from, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sae_attr.report.tables import text_table


def latent_table(columns: Mapping[str, np.ndarray], count: int = 20) -> str:
    """Returns the first candidates as a table: rank, Δ and its error, signs, projection,
    gradient, firing rate, exact ablation if there was one, nearest tokens.

    Args:
      columns: of latents.csv.
      count: rows of the table.
    """
    top = {name: values[:count] for name, values in columns.items()}
    shown: dict[str, Any] = {
        "rank": top["rank"],
        "latent": top["latent"],
        "Δ": top["delta"],
        "± se": top["se"],
        "signs": top["consistency"],
        "(a-ā)·d": top["projection"],
        "-g·d": top["gradient"],
        "fires": top["firing_rate"],
    }
    if "exact" in top:
        # Few latents are ablated: an empty cell says that this one was not.
        shown["exact ΔL"] = _cells(top["exact"], ~np.isnan(top["exact"]))
        fails = top.get("taylor_fails", np.zeros(len(top["rank"]), bool))
        shown["!"] = np.where(fails, "!", "")
    shown["nearest tokens"] = top["tokens"]
    is_copy = top["duplicate_of"] >= 0
    if is_copy.any():
        shown["copy of"] = _cells(top["duplicate_of"], is_copy)
    formats = {
        "Δ": ".3g",
        "± se": ".2g",
        "signs": ".0%",
        "(a-ā)·d": ".3f",
        "-g·d": ".3g",
        "fires": ".2%",
        "exact ΔL": ".4f",
    }
    return text_table(shown, formats)


def _cells(values: np.ndarray, shown: np.ndarray) -> list[Any]:
    """Returns values, and None, an empty cell, where there is nothing to show."""
    cells: list[Any] = list(values)
    for row in np.flatnonzero(~shown):
        cells[row] = None
    return cells


def origin_table(columns: Mapping[str, np.ndarray], count: int = 10) -> str:
    """Returns how much of each top Δ comes from the tokens of which role, in percent."""
    roles = []
    for name in columns:
        if name.startswith("from_"):
            roles.append(name.removeprefix("from_"))
    parts = np.array([columns[f"from_{role}"][:count] for role in roles], np.float64)
    total = parts.sum(0)
    shares = np.full_like(parts, np.nan)
    # Contributions of both signs may cancel: a Δ of exactly 0 has no shares.
    np.divide(parts, total, out=shares, where=total != 0)
    shown = {"latent": columns["latent"][:count], **dict(zip(roles, shares))}
    return text_table(shown, dict.fromkeys(roles, ".0%"))


def legend(exact_scope: str | None) -> str:
    """Returns what the columns of `latent_table` mean.

    Args:
      exact_scope: the token scope of the exact ablation, None where there was none.
    """
    lines = [
        "Δ ± se: nats per token, mean over prompts · signs: share of prompts with Δ's "
        "sign · (a-ā)·d: mean over the",
        "scope's tokens · -g·d: the same, positive − negative (above 0: more of the "
        "latent makes the positives likelier)",
        "fires: share of corpus tokens on which the latent is active · copy of: an "
        "earlier latent with nearly the same decoder row",
    ]
    if exact_scope is not None:
        lines += [
            "exact ΔL: nats by which ablating the latent at all tokens of the scope "
            f"{exact_scope!r} at once hurts the",
            "positives more than the negatives (in every table) · !: the first order "
            "is off by more than half of it",
        ]
    return "\n".join(lines)


def ranked_text(ranked: Mapping[str, Any]) -> str:
    """Returns which latents a ranking compared, for a table's caption.

    Args:
      ranked: `latents`, how many were compared; `of`, how many there are; `by`, how
        those of a pool were selected.
    """
    if ranked["latents"] == ranked["of"]:
        return f"of all {ranked['of']:,} latents"
    return f"of a pool of {ranked['latents']:,} of {ranked['of']:,} latents: {ranked['by']}"


def silent_text(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns how many candidates of each preset never fire on the pairs; "" where that
    was not computed.
    """
    counts = []
    for name, preset in presets.items():
        if "never_firing" in preset:
            counts.append(f"{preset['never_firing']} ({name})")
    return ", ".join(counts)


def masked_text(summary: Mapping[str, Any]) -> str:
    """Returns what the masks of a run left out, in one line."""
    masks, masked = summary["choices"]["masks"], summary["masked"]
    rules = list(masks["exclude"])
    if masks["first_k"]:
        rules.append(f"first {masks['first_k']}")
    if masks["outlier"]:
        rules.append(f"norms beyond {masks['outlier']:g} medians")
    return (
        f"masked: {', '.join(rules) or 'padding only'}; {masked['left_out']:,} of "
        f"{masked['tokens']:,} tokens of the pairs, "
        f"and {masked['corpus_outliers']:,} of the corpus for their norm"
    )


def summary_text(summary: Mapping[str, Any]) -> str:
    """Returns the few numbers that show how far a ranking can be trusted, a line each.

    Args:
      summary: result.json of an attribution.
    """
    lines = [
        *_data_lines(summary),
        *_stability_lines(summary),
        *_ablation_lines(summary["exact_ablation"]),
    ]
    for score, why in summary["skipped"].items():
        lines.append(f"not computed: {score} ({why})")
    return "\n".join(lines)


def _data_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the SAE check said, the pairs, and the mean activation."""
    check = summary.get("sae_check", {})
    if "verdict" in check:
        yield f"SAE: {check['verdict']}"
    pairs = summary["pairs"]
    yield f"{pairs['prompts']} prompts"
    for side in ("positive", "negative"):
        if side not in pairs:
            continue
        part = pairs[side]
        yield (
            f"{side}: {part['completions']} completions of {part['mean_tokens']:.1f} "
            f"tokens, {part['nats_per_token']:.3f} nats/token"
        )
    mean = summary["mean"]
    yield f"mean activation over {mean['tokens']:,} tokens, mean norm {mean['norm']:.3f}"
    if "masked" in summary:
        yield masked_text(summary)


def _stability_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields how much of the ranking stays when data, scores or means change."""
    best = 100 * summary["bound"]["best_over_bound"]
    yield f"best latent reaches {best:.0f} % of what any direction could score"
    stability = summary["stability"]
    yield (
        f"halves of the prompts: top overlap {stability['half_overlap']:.2f}, Spearman "
        f"over the dictionary {stability['half_spearman']:.2f}"
    )
    primary = summary["presets"][summary["primary"]]
    overlaps = []
    for score, overlap in primary["overlap"].items():
        if score != "random":
            overlaps.append(f"{score} {overlap:.2f}")
    yield f"overlap of the top with: {', '.join(overlaps)}"
    silent = silent_text(summary["presets"])
    if silent:
        yield f"candidates that fire on no token of the pairs in their scope: {silent}"
    around_prompts = summary["prompt_mean_overlap"]
    yield f"overlap with the same ranking around the prompts' own mean: {around_prompts:.2f}"


def _ablation_lines(exact: Mapping[str, Any]) -> Iterator[str]:
    """Yields how well the first order agrees with exact ablation; nothing without one."""
    if "joint_per_latent" not in exact:
        return
    for name in ("joint_per_latent", "joint_per_completion", "single_position"):
        agreement = exact[name]
        yield (
            f"exact ablation, {name.replace('_', ' ')}: Pearson "
            f"{agreement['pearson']:.3f}, Spearman {agreement['spearman']:.3f}"
        )
    failing = exact["latents_where_taylor_fails"]
    yield f"the first-order step fails for {failing} ablated latents (marked !)"
