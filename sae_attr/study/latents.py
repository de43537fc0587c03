"""The latents of a case as a table, and some of them with completions to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.report.page import Column, Comparison, Completion, SteeredLatent, Table
from sae_attr.study.results import CaseResults
from sae_attr.study.samples import unpadded
from sae_attr.study.score_table import SCORES, key_of
from sae_attr.study.selection import OTHERS, Selection
from sae_attr.study.settings import DIRECTIONS

READ = 6  # latents per direction that are shown with completions

_BEFORE = (
    Column("latent", "latent", "integer", "number in the SAE"),
    Column("methods", "chosen by", "methods", "methods among whose best it is"),
    Column("delta", "Δ", "number", "attribution of the studied preset, nats per token, mean over prompts"),
    Column("se", "± se", "number", "standard error of Δ over prompts", 2),
)  # fmt: skip
_AFTER = (
    Column("firing_rate", "fires", "percent", "share of corpus tokens on which the code is not zero", 2),
    Column("fires_on_pairs", "fires on pairs", "percent", "share of the pairs' prompts in which it fires; of a few latents", 0),
    Column("away", "away", "points", "change of the behaviour's rate when steering against it"),
    Column("away_strength", "c away", "number", "strength in units of the mean norm; 0: none was coherent enough", 2),
    Column("away_q", "q away", "number", "FDR over the latents of no change at all (sign flips over prompts)", 2),
    Column("toward", "toward", "points", "change of the behaviour's rate when steering along it"),
    Column("toward_strength", "c toward", "number", "strength in units of the mean norm; 0: none was coherent enough", 2),
    Column("toward_q", "q toward", "number", "FDR over the latents of no change at all (sign flips over prompts)", 2),
    Column("exact", "exact ΔL", "number", "exact mean ablation on the pairs, nats; of a few latents"),
    Column("outside", "outside", "flag", "outside the random band on the side that matters, in either direction"),
    Column("tokens", "nearest tokens", "tokens", "unembedding vectors of largest cosine"),
)  # fmt: skip


def table_columns() -> tuple[Column, ...]:
    """Returns the columns of the table: what Δ is, the scores that the page shows, and
    what steering found.
    """
    shown = {name: score for name, score in SCORES.items() if score.on_page}
    scores = tuple(
        Column(name, score.title or name, "number", score.meaning)
        for name, score in shown.items()
    )
    return (*_BEFORE, *scores, *_AFTER)


def latent_table(r: CaseResults) -> Table:
    """Every latent that was steered, the studied method's best first."""
    chosen = r.selection
    order = {int(i): k for k, i in enumerate(next(iter(chosen.methods.values())))}
    rows = sorted(
        _rows(r, chosen),
        key=lambda row: (order.get(row["latent"], len(order)), row["latent"]),
    )
    return Table(table_columns(), tuple(rows))


def methods_of(chosen: Selection, latent: int) -> list[str]:
    """Who chose a latent."""
    return [name for name, latents in chosen.methods.items() if latent in latents]


def _rows(r: CaseResults, chosen: Selection) -> Iterator[dict[str, Any]]:
    attribution, effects = r.of["attribute"], r.of["effects"]
    known = _known(attribution.meta["columns"])
    summary, scores = attribution.meta["summary"], attribution.arrays
    preset = summary["presets"][summary["primary"]]
    number = lambda value: (
        None if value is None or not np.isfinite(value) else float(value)
    )
    for u, latent in enumerate(map(int, chosen.latents_u)):
        columns = known.get(latent, {})
        row: dict[str, Any] = {
            "latent": latent,
            "methods": methods_of(chosen, latent),
            "delta": number(scores[f"{preset['sides']}_{preset['tokens']}"][latent]),
            "se": number(columns.get("se")),
            **{
                name: number(value)
                for name, value in _scores_of(scores, preset["tokens"], latent).items()
            },
            "fires_on_pairs": number(columns.get("fires_on_pairs")),
            "firing_rate": number(scores["firing_rate"][latent]),
            "exact": number(columns.get("exact")),
            "tokens": r.of["interpret"].meta["nearest"][str(latent)],
            "outside": False,
        }
        for direction in DIRECTIONS:
            for column, name in (
                ("", "change"),
                ("_strength", "strength"),
                ("_q", "q_zero"),
            ):
                row[f"{direction}{column}"] = number(
                    effects.arrays[f"{direction}.{name}_u"][u]
                )
            row["outside"] |= outside(
                row[direction], effects.meta["panels"][direction]["band"], direction
            )
        yield row


def outside(change: float | None, band: Sequence[float] | None, direction: str) -> bool:
    """Returns whether a change leaves the random band on the side that matters; without
    a band nothing does.

    There is no band where the methods took every latent that could be drawn at random.
    """
    if change is None or band is None:
        return False
    low, high = band
    return change < low if direction == "away" else change > high


def _scores_of(
    scores: Mapping[str, np.ndarray], scope: str, latent: int
) -> dict[str, Any]:
    """The scores of a latent that the page shows; None where they were not computed."""
    keys = {
        name: key_of(name, scope) for name, score in SCORES.items() if score.on_page
    }
    return {
        name: scores[key][latent] if key in scores else None
        for name, key in keys.items()
    }


def _known(columns: dict[str, dict[str, list[Any]]]) -> dict[int, dict[str, Any]]:
    """Latent -> its statistics in the first preset that has it."""
    out: dict[int, dict[str, Any]] = {}
    for found in columns.values():
        for i, latent in enumerate(found["latent"]):
            out.setdefault(
                int(latent), {name: values[i] for name, values in found.items()}
            )
    return out


def steered_latents(r: CaseResults) -> Iterator[SteeredLatent]:
    """The latents of largest effect on the side that matters, with steered completions
    beside unsteered ones.
    """
    chosen, effects = r.selection, r.of["effects"]
    candidates = np.isin(
        chosen.latents_u,
        np.concatenate(
            [v for k, v in chosen.methods.items() if k not in ("random", OTHERS)]
        ),
    )
    for direction in DIRECTIONS:
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
        wanted = np.where(
            candidates, change_u if direction == "toward" else -change_u, -np.inf
        )
        best = np.argsort(-np.nan_to_num(wanted, nan=-np.inf), kind="stable")[:READ]
        yield from (
            _steered(r, chosen, direction, int(u))
            for u in best
            if np.isfinite(wanted[u])
        )


def _steered(
    r: CaseResults, chosen: Selection, direction: str, u: int
) -> SteeredLatent:
    effects, latent = r.of["effects"].arrays, int(chosen.latents_u[u])
    part = lambda name: float(effects[f"{direction}.{name}_u"][u])
    passages = r.of["interpret"].meta["passages"].get(str(latent), [])
    return SteeredLatent(
        latent=latent,
        direction=direction,  # pyright: ignore[reportArgumentType]
        strength=part("strength"),
        change=part("change"),
        low=part("low"),
        high=part("high"),
        base_rate=part("base"),
        methods=tuple(methods_of(chosen, latent)),
        tokens=tuple(r.of["interpret"].meta["nearest"][str(latent)]),
        passages=tuple(_passage(p) for p in passages),
        comparisons=tuple(_comparisons(r, direction, u)),
        note="prompts where the verdict changed come first",
    )


def _passage(passage: dict[str, Any]) -> str:
    """A passage with the token that fires between marks."""
    at, tokens = passage["at"], passage["tokens"]
    return " ".join([*tokens[:at], f"⟦{tokens[at]}⟧", *tokens[at + 1 :]])


def _comparisons(r: CaseResults, direction: str, u: int) -> Iterator[Comparison]:
    case, grades = r.case, r.grades(direction)
    arms = len(grades.behaviour_r) // (
        len(case.prompts("effects")) * case.study.effect_samples
    )
    shape = (arms, len(case.prompts("effects")), case.study.effect_samples)
    rows_kps = np.arange(len(grades.behaviour_r)).reshape(shape)
    arm = (
        1 + u
    )  # arms of the fixed sign stand in the order of the selection, after the unsteered model
    behaviour_kps, _ = grades.shaped(*shape)
    changed = np.abs(
        np.nan_to_num(behaviour_kps[arm]) - np.nan_to_num(behaviour_kps[0])
    )
    ids = list(unpadded(grades.tokens_rn))
    said = lambda row: Completion(
        case.text(ids[row]),
        float(grades.behaviour_r[row]),
        float(grades.coherent_r[row]),
        grades.labels_r[row],
    )
    for place in np.argsort(-changed.ravel(), kind="stable")[: case.study.shown]:
        p, s = divmod(int(place), shape[2])
        prompt = case.prompts("effects")[p]
        text = (
            prompt.prompt
            if isinstance(prompt.prompt, str)
            else "\n".join(f"{m['role']}: {m['content']}" for m in prompt.prompt)
        )
        yield Comparison(
            prompt.id, text, said(rows_kps[0, p, s]), said(rows_kps[arm, p, s])
        )
