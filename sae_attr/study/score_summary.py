"""Scores against ground truth over several organisms: means, and intervals by a
bootstrap over seeds and, within each, over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.organism.score_agreement import NUMBERS
from sae_attr.store import Result
from sae_attr.study.evaluation import Evaluation
from sae_attr.study.ground_truth_stages import (
    DIRECTION,
    GROUND_TRUTHS,
    HALF,
    PROMPTING,
    RANDOM,
    ground_truths_of,
)
from sae_attr.study.stages.mean_activation import mean_of

CASE = ("behaviour", "kind", "latents")
ALL = "all"  # the behaviour and kind of rows that are means over cases
LEVEL = 0.95

Row = dict[str, Any]
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Means and the ends of their intervals, `[s]` each."""
READS = ("agreement", "pairs", "mean_activation", "ground_truth", "directions")


@dataclass(frozen=True, eq=False)
class Cell:
    """The agreement of all scores with all ground truths, for one organism, SAE and
    behaviour.

    Args:
      about: behaviour, kind, latents and seed.
      scores: (name, token scope or "") of each score.
      values: (ground truth, number) -> `[1 + b, s]`, first the number, then its draws.
      best_effect: by ground truth.
    """

    about: Mapping[str, Any]
    scores: tuple[tuple[str, str], ...]
    values: Mapping[tuple[str, str], np.ndarray]
    best_effect: Mapping[str, float]


def is_complete(e: Evaluation, results: Mapping[str, Result]) -> bool:
    """Returns True if all results are there that `cell_of` and `facts_of` read."""
    return all(e.stage_name(stage) in results for stage in READS)


def cell_of(e: Evaluation, results: Mapping[str, Result]) -> Cell:
    """Reads the agreement of an evaluation from its stage's result."""
    arrays, meta = results[e.stage_name("agreement")][:2]
    values = {}
    for truth in GROUND_TRUTHS:
        for number in NUMBERS:
            array = np.asarray(arrays[f"{truth}.{number}"], np.float64)
            values[truth, number] = array
    scores = tuple((name, scope) for name, scope in meta["scores"])
    return Cell(e.about, scores, values, meta["best_effect"])


def rows_of(cell: Cell) -> list[Row]:
    """Returns a row for every score and ground truth of a cell."""
    rows = []
    for truth in GROUND_TRUTHS:
        for i, (score, scope) in enumerate(cell.scores):
            row = {**cell.about, "score": score, "scope": scope, "truth": truth}
            for number in NUMBERS:
                row[number] = float(cell.values[truth, number][0, i])
            rows.append(row | {"best_effect": cell.best_effect[truth]})
    return rows


def summary_rows(cells: Sequence[Cell], *, seed: int = 0) -> list[Row]:
    """Returns a row for every case, score and ground truth: the mean over seeds of each
    number, with `<number>_low` and `<number>_high`, and `behind`, how far its effect is
    below that of the best score; then the same rows for the mean over cases of each size
    of the SAE.

    Args:
      cells: only scores that all cells of a case have are summarised.
      seed: of the draws of seeds, which all cases share.
    """
    by_case: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        by_case.setdefault(tuple(cell.about[key] for key in CASE), []).append(cell)
    rows = []
    by_size: dict[int, list[list[Cell]]] = {}
    for case, of_case in by_case.items():
        rows += _case_rows(case, [of_case], seed)
        by_size.setdefault(case[-1], []).append(of_case)
    for latents, cases in by_size.items():
        if len(cases) > 1:
            rows += _case_rows((ALL, ALL, latents), cases, seed)
    return rows


def _case_rows(
    case: tuple[Any, ...], cases: Sequence[Sequence[Cell]], seed: int
) -> list[Row]:
    scores = _common([cell for of_case in cases for cell in of_case])
    seeds = min(len(of_case) for of_case in cases)
    rows = []
    for truth in GROUND_TRUTHS:
        estimates = {}
        for number in NUMBERS:
            stacks = [_stacked(of_case, scores, truth, number) for of_case in cases]
            estimates[number] = estimate(stacks, seed)
            if number == "effect":
                estimates["behind"] = _behind(stacks, scores, estimates[number], seed)
        largest = [cell.best_effect[truth] for of_case in cases for cell in of_case]
        for i, (score, scope) in enumerate(scores):
            row = dict(zip(CASE, case, strict=True))
            row |= {"seeds": seeds, "score": score, "scope": scope, "truth": truth}
            for number, (mean_s, low_s, high_s) in estimates.items():
                row[number] = float(mean_s[i])
                row[f"{number}_low"] = float(low_s[i])
                row[f"{number}_high"] = float(high_s[i])
            rows.append(row | {"best_effect": float(np.mean(largest))})
    return rows


def _behind(
    stacks: Sequence[np.ndarray],
    scores: Sequence[tuple[str, str]],
    effect: Estimate,
    seed: int,
) -> Estimate:
    """How far each score's effect is below that of the best score; both see the same
    seeds and prompts. NaN of what ranks nothing.
    """
    ranks_s = np.array([ranks_latents(score) for score in scores])
    best = int(np.where(ranks_s, effect[0], -np.inf).argmax())
    gaps = [stack[..., best : best + 1] - stack for stack in stacks]
    mean_s, low_s, high_s = estimate(gaps, seed)
    hidden_s = np.where(ranks_s, 0, np.nan)
    return mean_s + hidden_s, low_s + hidden_s, high_s + hidden_s


def ranks_latents(score: tuple[str, str]) -> bool:
    """Returns False for the controls of a table: what ranks no latents, or is no score
    that one could compute.
    """
    _, scope = score
    return scope != DIRECTION and score not in (HALF, PROMPTING, RANDOM)


def _common(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The scores that every cell has, in the order of the first."""
    everywhere = set(cells[0].scores).intersection(*(set(c.scores) for c in cells))
    return [score for score in cells[0].scores if score in everywhere]


def _stacked(
    cells: Sequence[Cell], scores: Sequence[tuple[str, str]], truth: str, number: str
) -> np.ndarray:
    """One number of some scores in every cell, `[seeds, 1 + b, s]`."""
    parts = []
    for cell in cells:
        columns = [cell.scores.index(score) for score in scores]
        parts.append(cell.values[truth, number][:, columns])
    return np.stack(parts)


def estimate(
    stacks: Sequence[np.ndarray], seed: int = 0, *, level: float = LEVEL
) -> Estimate:
    """Returns the mean over cases and seeds, and an interval's ends, `[s]` each.

    The interval is a percentile bootstrap: seeds are drawn with replacement, the same
    ones for all cases, and with each of them one draw of its prompts. It is shifted by
    its bias, since drawing prompts anew adds noise that weakens every correlation.

    Args:
      stacks: of each case `[seeds, 1 + b, s]`, first the number and then its draws.
    """
    drawn_bs = np.mean([_drawn_seeds(stack, seed) for stack in stacks], axis=0)
    mean_s = np.mean([stack[:, 0].mean(0) for stack in stacks], axis=0)
    if not len(drawn_bs):
        return mean_s, np.full_like(mean_s, np.nan), np.full_like(mean_s, np.nan)
    ends = (1 - level) / 2, (1 + level) / 2
    low_s, high_s = np.quantile(drawn_bs, ends, axis=0)
    bias_s = drawn_bs.mean(0) - mean_s
    return mean_s, low_s - bias_s, high_s - bias_s


def _drawn_seeds(stack: np.ndarray, seed: int) -> np.ndarray:
    """Means over drawn seeds, `[b, s]`."""
    seeds, draws = len(stack), stack.shape[1] - 1
    seed_be = np.random.default_rng(seed).integers(seeds, size=(draws, seeds))
    # A seed that is drawn twice brings two different draws of its prompts.
    draw_be = (np.arange(draws)[:, None] + np.arange(seeds)) % max(draws, 1)
    return stack[seed_be, 1 + draw_be].mean(1)


def facts_of(e: Evaluation, results: Mapping[str, Result]) -> Row:
    """Returns an evaluation's numbers of pairs and samples, and its ground truths in
    short.
    """
    pairs = results[e.stage_name("pairs")].meta
    mean = mean_of(results[e.stage_name("mean_activation")])
    facts = {**e.about, "pairs": len(pairs["records"]), "norm": mean.norm}
    for name, rate in pairs["rates"].items():
        facts[f"sampled_{name}"] = rate
    for name, truth in ground_truths_of(results[e.stage_name("ground_truth")]).items():
        facts[f"{name}_base"] = truth.base
        facts[f"{name}_max"] = float(truth.effect_n.max())
        facts[f"{name}_unsteerable"] = int((truth.strength_n == 0).sum())
    for direction, word in results[e.stage_name("directions")].meta["words"].items():
        facts[f"prompting_{direction}"] = word
    return facts
