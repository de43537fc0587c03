from __future__ import annotations

import numpy as np
import pytest

from sae_attr.organism.score_agreement import NUMBERS
from sae_attr.report.ground_truth_table import table_text
from sae_attr.study.ground_truth_stages import GROUND_TRUTHS, HALF, RANDOM
from sae_attr.study.score_summary import Cell, estimate, rows_of, summary_rows

SCORES = (("both", "all"), ("gradient", "all"), RANDOM, HALF, ("up", "direction"))
DRAWS = 200


def cell(seed: int, effects: tuple[float, ...], kind: str = "mixed") -> Cell:
    """Effects of the scores, with draws of 1 point about each that all of them share."""
    noise_b = np.random.default_rng(seed).normal(0, 0.01, DRAWS)
    effect = np.vstack([effects, np.add.outer(noise_b, effects)])
    values = {}
    for truth in GROUND_TRUTHS:
        for number in NUMBERS:
            values[truth, number] = effect
    about = {"behaviour": "b", "kind": kind, "latents": 256, "seed": seed}
    return Cell(about, SCORES, values, dict.fromkeys(GROUND_TRUTHS, 0.3))


def test_an_interval_holds_what_differs_between_seeds_and_within() -> None:
    rng = np.random.default_rng(0)
    seeds_e = rng.normal(0.2, 0.05, 5)
    draws_eb = seeds_e[:, None] + rng.normal(0, 0.02, (5, 2000))
    stack = np.concatenate([seeds_e[:, None], draws_eb], axis=1)[..., None]
    mean, low, high = (x[0] for x in estimate([stack]))
    assert mean == pytest.approx(seeds_e.mean())
    expected = np.sqrt((seeds_e.var() + 0.02**2) / 5)
    assert (high - low) / 3.92 == pytest.approx(expected, rel=0.1)
    # What draws lose on average is no part of the interval.
    shifted = np.concatenate([stack[:, :1], stack[:, 1:] - 0.1], axis=1)
    np.testing.assert_allclose(estimate([shifted]), estimate([stack]), atol=1e-9)


def test_scores_are_compared_on_the_same_seeds_and_prompts() -> None:
    # The gap is 1 point in every seed, far less than what seeds differ by.
    cells = [cell(s, (0.1 * s, 0.1 * s + 0.01, 0.5, 0.9, 0.8)) for s in range(5)]
    rows = {(r["score"], r["truth"]): r for r in summary_rows(cells)}
    assert rows["gradient", "away"]["behind"] == 0
    both = rows["both", "away"]
    assert both["effect_high"] - both["effect_low"] > 0.1
    assert both["behind"] == pytest.approx(0.01)
    assert both["behind_low"] == pytest.approx(0.01)
    # Controls stand behind nothing, however large their effects are.
    assert np.isnan([rows[name, "away"]["behind"] for name in ("random", "up")]).all()
    assert {r["seeds"] for r in rows.values()} == {5}
    assert rows_of(cells[2])[0]["effect"] == pytest.approx(0.2)


def test_means_over_cases_come_first_in_the_table() -> None:
    effects = (0.05, 0.2, 0.0, 0.21, 0.4)
    cells = [cell(s, effects, kind) for s in (0, 1) for kind in ("mixed", "calm")]
    summary = summary_rows(cells)
    assert [r["kind"] for r in summary[:: 3 * len(SCORES)]] == ["mixed", "calm", "all"]
    text = table_text(summary, [{"seed": 0, "norm": 2.5}])
    best, mean, mixed, _ = (
        text.index(words)
        for words in (
            "the best score of each question",
            "\nmean over all cases, 256 latents, 2 seeds",
            "\nb, mixed, 256 latents, 2 seeds",
            "seed=0 norm=2.5",
        )
    )
    assert best < mean < mixed
    line = next(x for x in text[mean:].splitlines() if x.startswith("gradient"))
    assert line.count("*") == 3
