"""The latents of a case as a table, and some of them with completions to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.attribution.score_registry import SCORES, key_of
from sae_attr.comparison_records import Direction
from sae_attr.report.method_style import RANDOM
from sae_attr.report.page import Column, Comparison, Completion, SteeredLatent, Table
from sae_attr.store import Result
from sae_attr.study.case_results import CaseResults
from sae_attr.study.cause_and_lever import plane_columns
from sae_attr.study.dictionary_settings import DELTA_NORM, MEAN_CODE
from sae_attr.study.role_numbers import role_columns
from sae_attr.study.screen_results import screen_columns
from sae_attr.study.selection import OTHERS
from sae_attr.study.settings import DIRECTIONS
from sae_attr.study.shading import shaded
from sae_attr.study.stages.ablated_rates import NAME as ABLATED_RATES
from sae_attr.text.pairing import Answer

SHOWN_LATENTS = 6  # per direction, with completions to read

_BEFORE = (
    Column("latent", "latent", "integer", "number in the SAE, or NAME:NUMBER of a further dictionary"),
    Column("methods", "selected by", "methods", "methods among whose best it is"),
    Column("delta", "Δ", "number", "attribution of the studied preset, nats per token, mean over prompts"),
    Column("se", "± se", "number", "standard error of Δ over prompts", 2),
)  # fmt: skip
_AFTER = (
    Column("cause_z", "cause", "number", "Δ of the studied method in standard deviations over the dictionary", 2),
    Column("lever_z", "lever", "number", "−Δg·d in standard deviations over the dictionary", 2),
    Column("corner", "corner", "text", "of the plane of cause and lever"),
    Column("firing_rate", "fires", "percent", "share of corpus tokens on which it is active", 2),
    Column("dense", "dense", "flag", "fires on a larger share of corpus tokens than dense_rate, by default a tenth"),
    Column("fires_on_pairs", "fires on pairs", "percent", "share of the pairs' prompts that activate it; of a few latents", 0),
    Column("away", "away", "points", "change of the behaviour's rate when steering against it"),
    Column("away_strength", "c away", "number", "strength in units of the mean norm; 0: none was coherent enough", 2),
    Column("away_q", "q away", "number", "FDR over the latents of no change at all (sign flips over prompts)", 2),
    Column("toward", "toward", "points", "change of the behaviour's rate when steering along it"),
    Column("toward_strength", "c toward", "number", "strength in units of the mean norm; 0: none was coherent enough", 2),
    Column("toward_q", "q toward", "number", "FDR over the latents of no change at all (sign flips over prompts)", 2),
    Column("ablated", "ablated", "points", "exact change of the behaviour's rate when the latent alone is set to its mean"),
    Column("ablated_q", "q ablated", "number", "FDR over the latents of no change at all (sign flips over prompts)", 2),
    Column(DELTA_NORM, "Δ_norm", "number", "above .5: the fine-tune's decoder row is the longer one; of a crosscoder", 3),
    Column(MEAN_CODE, "mean code", "number", "mean latent activation on the pairs' tokens; of a further dictionary", 3),
    Column("screen_away", "screen away", "number", "of log p(C) − log p(C′) on held-out pairs, nats", 2),
    Column("screen_toward", "screen toward", "number", "of log p(C) − log p(C′) on held-out pairs, nats", 2),
    Column("main_role", "role", "text", "of the tokens that the largest part of Δ comes from"),
    Column("main_share", "of Δ's parts", "percent", "that part's share of the sizes of all; below 0: against the latent", 0),
    Column("rank_user_only", "rank by user", "integer", "its rank where only the user's tokens count"),
    Column("exact", "exact ΔL", "number", "exact mean ablation on the pairs, nats; of a few latents"),
    Column("outside", "outside", "flag", "outside the random band on the side that matters, in either direction"),
    Column("tokens", "nearest tokens", "tokens", "unembedding vectors of largest cosine"),
)  # fmt: skip


# Columns of a study that has further dictionaries which rank by them.
_FURTHER = (DELTA_NORM, MEAN_CODE)


def table_columns() -> tuple[Column, ...]:
    """Returns the columns of the table: Δ, the scores that the page shows, and the
    effects of steering.
    """
    scores = []
    for name, score in SCORES.items():
        if score.on_page:
            scores.append(Column(name, score.title or name, "number", score.meaning))
    return (*_BEFORE, *scores, *_AFTER)


def latent_table(results: CaseResults) -> Table:
    """Returns every latent that was steered, the studied method's best first."""
    best = next(iter(results.selection.methods.values()))
    order = {int(latent): place for place, latent in enumerate(best)}
    latents = results.selection.latents_u.tolist()
    rows = dict(zip(latents, _rows(results), strict=True))
    latents.sort(key=lambda latent: (order.get(latent, len(order)), latent))
    columns = table_columns()
    if not results.has("screen"):
        columns = tuple(c for c in columns if not c.key.startswith("screen_"))
    used = {dictionary.by for dictionary in results.case.dictionaries}
    columns = tuple(c for c in columns if c.key not in _FURTHER or c.key in used)
    return Table(columns, tuple([rows[latent] for latent in latents]))


def _rows(results: CaseResults) -> Iterator[dict[str, Any]]:
    """Yields a row per steered latent."""
    attribution, selection = results.of["attribute"], results.selection
    summary = attribution.meta["summary"]
    preset = summary["presets"][summary["primary"]]
    latents_u = selection.latents_u
    delta_u = results.scores.of(f"{preset['gating']}_{preset['tokens']}", latents_u)
    rate_u = results.scores.of("firing_rate", latents_u)
    shown = _scores_of(results, preset["tokens"])
    statistics = _statistics(attribution.meta["columns"])
    planes = plane_columns(results)
    roles = role_columns(results)
    screens = screen_columns(results)
    for place, latent in enumerate(latents_u.tolist()):
        columns = statistics.get(latent, {})
        rate = _finite(rate_u[place])
        yield {
            "latent": results.label(latent),
            "methods": selection.methods_of(latent),
            "delta": _finite(delta_u[place]),
            "se": _finite(columns.get("se")),
            **{name: _finite(score_u[place]) for name, score_u in shown.items()},
            **planes[latent],
            **roles[latent],
            **_ablated(results, place),
            **screens.get(latent, {}),
            "fires_on_pairs": _finite(columns.get("fires_on_pairs")),
            "firing_rate": rate,
            "dense": None if rate is None else rate > results.case.study.dense_rate,
            "exact": _finite(columns.get("exact")),
            "tokens": results.of["interpret"].meta["nearest"][str(latent)],
            **_on_tokens(results, latent),
            **_effects_of(results.of["effects"], place),
        }


def _finite(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _effects_of(effects: Result, place: int) -> dict[str, Any]:
    """Returns what steering with a latent did in both directions.

    Args:
      place: of the latent among the selected ones, in whose order the effects are.
    """
    row: dict[str, Any] = {"outside": False}
    columns = {"": "change", "_strength": "strength", "_q": "q_zero"}
    for direction in DIRECTIONS:
        for suffix, name in columns.items():
            value = effects.arrays[f"{direction}.{name}_u"][place]
            row[f"{direction}{suffix}"] = _finite(value)
        band = effects.meta["panels"][direction]["band"]
        row["outside"] |= outside(row[direction], band, direction)
    return row


def _on_tokens(results: CaseResults, latent: int) -> dict[str, list[str]]:
    """Returns the tokens whose logits a latent changes most, where they were looked up."""
    effects = results.of["interpret"].meta["effects"].get(str(latent), {})
    return {side: [token for token, _ in pairs] for side, pairs in effects.items()}


def _ablated(results: CaseResults, place: int) -> dict[str, Any]:
    """Returns what the exact ablation of a latent did, where it was measured."""
    ablated = results.of.get(ABLATED_RATES)
    if ablated is None or "change_u" not in ablated.arrays:
        return {}
    return {
        "ablated": _finite(ablated.arrays["change_u"][place]),
        "ablated_q": _finite(ablated.arrays["q_zero_u"][place]),
    }


def outside(change: float | None, band: Sequence[float] | None, direction: str) -> bool:
    """Returns whether a change leaves the random band on the side that matters; without
    a band nothing does.

    There is no band where the methods took every latent that could be drawn at random.
    """
    if change is None or band is None:
        return False
    low, high = band
    return change < low if direction == "away" else change > high


def _scores_of(results: CaseResults, scope: str) -> dict[str, np.ndarray]:
    """Returns the scores of the steered latents that the page shows, by name; NaN where
    not computed.
    """
    latents_u, scores = results.selection.latents_u, {}
    for name, score in SCORES.items():
        if not score.on_page:
            continue
        key = key_of(name, scope)
        scores[name] = np.full(len(latents_u), np.nan)
        if key in results.of["attribute"].arrays:
            scores[name] = results.scores.of(key, latents_u)
    for name in _FURTHER:
        scores[name] = results.scores.further(name, latents_u)
    return scores


def _statistics(
    presets: Mapping[str, Mapping[str, Sequence[Any]]],
) -> dict[int, dict[str, Any]]:
    """Returns latent -> its statistics in the first preset that has it.

    Args:
      presets: name -> columns of its candidates.
    """
    of_latents: dict[int, dict[str, Any]] = {}
    for columns in presets.values():
        for i, latent in enumerate(columns["latent"]):
            row = {name: values[i] for name, values in columns.items()}
            of_latents.setdefault(int(latent), row)
    return of_latents


# ---- completions to read -------------------------------------------------------------


def steered_latents(results: CaseResults) -> Iterator[SteeredLatent]:
    """Yields the latents of largest effect on the side that matters, with steered
    completions beside unsteered ones.
    """
    selection, effects = results.selection, results.of["effects"]
    # The largest of a hundred random latents is large by chance: no finding of this study.
    methods = dict(selection.methods)
    methods.pop(RANDOM, None)
    methods.pop(OTHERS, None)
    candidates = np.isin(selection.latents_u, np.concatenate(list(methods.values())))
    for direction in DIRECTIONS:
        change_u = np.asarray(effects.arrays[f"{direction}.change_u"])
        gain_u = change_u if direction == "toward" else -change_u
        gain_u = np.where(candidates & np.isfinite(change_u), gain_u, -np.inf)
        for place in np.argsort(-gain_u, kind="stable")[:SHOWN_LATENTS]:
            if np.isfinite(gain_u[place]):
                yield _steered(results, direction, int(place))


def _steered(results: CaseResults, direction: Direction, place: int) -> SteeredLatent:
    """Returns one latent's effect in a direction, with its completions."""
    selection, interpreted = results.selection, results.of["interpret"].meta
    latent = int(selection.latents_u[place])
    numbers = {}
    for name in ("strength", "change", "low", "high", "base"):
        values = results.of["effects"].arrays[f"{direction}.{name}_u"]
        numbers[name] = float(values[place])
    return SteeredLatent(
        latent=results.label(latent),
        direction=direction,
        strength=numbers["strength"],
        change=numbers["change"],
        low=numbers["low"],
        high=numbers["high"],
        base_rate=numbers["base"],
        methods=tuple(selection.methods_of(latent)),
        tokens=tuple(interpreted["nearest"][str(latent)]),
        passages=tuple(map(shaded, interpreted["passages"].get(str(latent), []))),
        comparisons=tuple(_comparisons(results, direction, latent)),
        note=_note(results),
    )


def _note(results: CaseResults) -> str:
    if results.case.study.effects_by == "exact":
        return "effects are exact probabilities: no completions were sampled"
    return "prompts where the verdict changed come first"


def _comparisons(
    results: CaseResults, direction: Direction, latent: int
) -> Iterator[Comparison]:
    """Yields steered beside unsteered completions, those of changed verdict first; none
    where nothing was sampled.
    """
    if results.case.study.effects_by == "exact":
        return
    prompts = results.case.prompts_by_id("effects")
    unsteered = results.answers(direction)
    steered = results.answers(direction, latent)

    def change(sample: tuple[str, int]) -> float:
        before, after = unsteered[sample].behaviour, steered[sample].behaviour
        return abs(np.nan_to_num(after) - np.nan_to_num(before))

    # Sorting keeps the order of equals: without a change, prompts come as sampled.
    by_change = sorted(steered, key=change, reverse=True)
    for sample in by_change[: results.case.study.shown]:
        prompt = prompts[sample[0]]
        yield Comparison(
            prompt.id,
            prompt.text,
            _completion(unsteered[sample]),
            _completion(steered[sample]),
        )


def _completion(answer: Answer) -> Completion:
    return Completion(answer.text, answer.behaviour, answer.coherent, answer.label)
