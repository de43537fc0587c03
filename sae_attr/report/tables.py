"""Results as people read them: a table for the terminal, CSV for a spreadsheet, JSON
with the versions that made it.
"""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from sae_attr import __version__
from sae_attr.report.safe_text import one_line

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "tokenizers",
    "safetensors",
)

_TOKENS = 120  # characters of a row's tokens in a terminal
_FORMULA = ("=", "+", "-", "@")


def _cell(value: object) -> str:
    """A number at full precision that float() reads back; text with its controls named,
    as a table can show it.
    """
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    return (
        repr(float(value))
        if isinstance(value, (float, np.floating))
        else one_line(str(value))
    )


def csv_text(columns: Mapping[str, Sequence[object] | np.ndarray]) -> str:
    """Columns of equal length as CSV, one line per entry.

    Text that a spreadsheet would run as a formula (it begins with =, +, - or @) gets a
    leading quote; characters that act instead of being seen, tabs and line ends among
    them, are named (⟨U+000A⟩).
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths: {lengths}")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_no_formula(value, _cell(value)) for value in row])
    return out.getvalue()


def _no_formula(value: object, cell: str) -> str:
    """Text with a leading quote where a spreadsheet would run it; numbers as they are."""
    return f"'{cell}" if isinstance(value, str) and cell.startswith(_FORMULA) else cell


def latent_table(columns: Mapping[str, np.ndarray], count: int = 20) -> str:
    """The first candidates as a table: rank, latent, Δ ± error, sign consistency,
    projection, gradient, firing, tokens.
    """
    head = (
        f"{'rank':>4} {'latent':>8} {'Δ':>10} {'± se':>9} {'signs':>6} {'(a-ā)·d':>9} "
        f"{'-g·d':>10} {'fires':>7} "
        f"{'exact ΔL':>9}  nearest tokens"
    )
    lines = [head, "-" * (len(head) + 12)]
    for i in range(min(count, len(columns["rank"]))):
        c = {name: values[i] for name, values in columns.items()}
        exact = (
            f"{c['exact']:9.4f}"
            if "exact" in c and np.isfinite(c["exact"])
            else f"{'':>9}"
        )
        flag = "!" if c.get("taylor_fails") else " "
        copy = f"  = {c['duplicate_of']}" if c["duplicate_of"] >= 0 else ""
        fires = (
            f"{100 * c['firing_rate']:6.2f}%"
            if np.isfinite(c["firing_rate"])
            else f"{'?':>7}"
        )
        lines.append(
            f"{c['rank']:>4} {c['latent']:>8} {c['delta']:>10.3g} {c['se']:>9.2g} "
            f"{100 * c['consistency']:>5.0f}% "
            f"{c['projection']:>9.3f} {c['gradient']:>10.3g} {fires} {exact}{flag} "
            f"{one_line(str(c['tokens']), _TOKENS)}{copy}"
        )
    return "\n".join(lines)


def ranked_text(ranked: Mapping[str, Any]) -> str:
    """Returns which latents a ranking looked at, as a table's caption says it.

    Args:
      ranked: `latents` that were looked at, `of` how many, and `by` what they were
        taken.
    """
    if ranked["latents"] == ranked["of"]:
        return f"of all {ranked['of']:,} latents"
    return f"of a pool of {ranked['latents']:,} of {ranked['of']:,} latents: {ranked['by']}"


def legend(exact_scope: str | None) -> str:
    """What the columns of `latent_table` are.

    Args:
      exact_scope: the token scope of the exact ablation, None where there was none.
    """
    lines = [
        "Δ ± se: nats per token, mean over prompts · signs: share of prompts with Δ's "
        "sign · (a-ā)·d: mean over the",
        "scope's tokens · -g·d: the same, positive − negative (above 0: more of the "
        "latent makes the positives likelier)",
        "fires: share of corpus tokens on which the code is not zero · = n: decoder "
        "row nearly that of latent n",
    ]
    if exact_scope is not None:
        lines += [
            "exact ΔL: nats by which ablating the latent at all tokens of the scope "
            f"{exact_scope!r} at once hurts the",
            "positives more than the negatives (in every table) · !: the first order "
            "is off by more than half of it",
        ]
    return "\n".join(lines)


def origin_table(columns: Mapping[str, np.ndarray], count: int = 10) -> str:
    """How much of the top Δ comes from which tokens, in percent of Δ."""
    roles = [name.removeprefix("from_") for name in columns if name.startswith("from_")]
    lines = [f"{'latent':>8} " + " ".join(f"{role:>10}" for role in roles)]
    for i in range(min(count, len(columns["rank"]))):
        total = sum(columns[f"from_{role}"][i] for role in roles)
        shares = [
            100 * columns[f"from_{role}"][i] / total if total else float("nan")
            for role in roles
        ]
        lines.append(
            f"{columns['latent'][i]:>8} "
            + " ".join(f"{share:>9.0f}%" for share in shares)
        )
    return "\n".join(lines)


def summary_text(summary: Mapping[str, Any]) -> str:
    """The few numbers that tell how far the ranking can be trusted."""
    pairs, exact = summary["pairs"], summary["exact_ablation"]
    fitness = summary.get("sae_fitness", {})
    lines = [f"SAE: {fitness['verdict']}"] if "verdict" in fitness else []
    lines.append(f"{pairs['prompts']} prompts")
    for side in ("positive", "negative"):
        if side in pairs:
            p = pairs[side]
            lines.append(
                f"{side}: {p['completions']} completions of {p['mean_tokens']:.1f} "
                f"tokens, {p['nats_per_token']:.3f} nats/token"
            )
    primary = summary["presets"][summary["primary"]]
    lines.append(
        f"mean activation over {summary['mean']['tokens']:,} tokens, mean norm "
        f"{summary['mean']['norm']:.3f}"
    )
    if "masked" in summary:
        lines.append(masked_text(summary))
    lines.append(
        f"best latent reaches {100 * summary['bound']['best_over_bound']:.0f} % of "
        "what any direction could score"
    )
    stability = summary["stability"]
    lines.append(
        f"halves of the prompts: top overlap {stability['half_overlap']:.2f}, Spearman "
        "over the dictionary "
        f"{stability['half_spearman']:.2f}"
    )
    lines.append(
        "overlap of the top with: "
        + ", ".join(
            f"{k} {v:.2f}" for k, v in primary["overlap"].items() if k != "random"
        )
    )
    silent = silent_text(summary["presets"])
    lines += (
        [f"candidates that fire on no token of the pairs in their scope: {silent}"]
        if silent
        else []
    )
    lines.append(
        "overlap with the same ranking around the prompts' own mean: "
        f"{summary['prompt_mean_overlap']:.2f}"
    )
    if "joint_per_latent" in exact:
        for name in ("joint_per_latent", "joint_per_completion", "single_position"):
            c = exact[name]
            lines.append(
                f"exact ablation, {name.replace('_', ' ')}: Pearson "
                f"{c['pearson']:.3f}, Spearman {c['spearman']:.3f}"
            )
        lines.append(
            f"the first-order step fails for {exact['latents_where_taylor_fails']} "
            "ablated latents (marked !)"
        )
    lines += [
        f"not computed: {name} ({why})" for name, why in summary["skipped"].items()
    ]
    return "\n".join(lines)


def silent_text(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns how many candidates of each preset never fire on the pairs; "" where that
    was not looked at.
    """
    return ", ".join(
        f"{about['never_firing']} ({name})"
        for name, about in presets.items()
        if "never_firing" in about
    )


def masked_text(summary: Mapping[str, Any]) -> str:
    """What the masks of a run left out, in one line."""
    masks, masked = summary["choices"]["masks"], summary["masked"]
    rules = [
        *masks["exclude"],
        *([f"first {masks['first_k']}"] if masks["first_k"] else []),
    ]
    rules += [f"norms beyond {masks['outlier']:g} medians"] if masks["outlier"] else []
    return (
        f"masked: {', '.join(rules) or 'padding only'}; {masked['left_out']:,} of "
        f"{masked['tokens']:,} tokens of the pairs, "
        f"and {masked['corpus_outliers']:,} of the corpus for their norm"
    )


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the libraries that numbers depend on."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"sae_attr": __version__, "python": platform.python_version(), **found}


def plain(value: Any) -> Any:
    """`json.dumps(default=...)`: numpy numbers and arrays, sets and paths as plain
    values.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def json_text(value: Any) -> str:
    """JSON for people and for strict readers: NaN and infinity, which JSON does not
    know, become null.
    """
    finite = json.loads(json.dumps(value, default=plain), parse_constant=lambda _: None)
    return json.dumps(finite, indent=1, ensure_ascii=False) + "\n"
