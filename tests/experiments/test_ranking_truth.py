from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from random import Random

import pytest
from etils import epath

from configs import ranking_truth as config_file
from experiments import ranking_truth
from sae_attr.attribution.score_table import SCORES
from sae_attr.organism.documents import persona_answer
from sae_attr.organism.words import PERSONAS
from sae_attr.text.rows import SCOPES


def row(seed: int, spearman: float, truth: str = "away") -> dict:
    about = {
        "behaviour": "validation",
        "kind": "mixed",
        "seed": seed,
        "score": "both",
        "scope": "all",
        "truth": truth,
    }
    return {
        **about,
        "spearman": spearman,
        "recall": 0.5,
        "effect": 0.1,
        "best_effect": 0.2,
    }


def test_the_table_is_mean_and_deviation_over_seeds() -> None:
    rows = [
        row(seed, value, truth)
        for truth in ranking_truth.TRUTHS
        for seed, value in ((0, 0.2), (1, 0.6))
    ]
    summary = ranking_truth.summary_rows(rows)
    assert [entry["truth"] for entry in summary] == list(ranking_truth.TRUTHS)
    assert summary[0]["spearman"] == pytest.approx(0.4)
    assert summary[0]["spearman_sd"] == pytest.approx(math.sqrt(0.08))
    assert ranking_truth.summary_rows(rows[:1])[0]["spearman_sd"] == 0
    text = ranking_truth.table_text(summary, [{"seed": 0, "norm": 2.5}])
    assert "validation, mixed, 2 seeds" in text
    assert "+0.40 ± 0.28 | 0.50 | +0.100" in text
    assert "seed=0 norm=2.5" in text


@pytest.mark.slow
def test_every_stage_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(world, params, asked, behaviour, **options) -> tuple[list[dict], dict]:
        draw, (expert, _, sycophant, schemer) = Random(0), PERSONAS[:4]
        bad = schemer if behaviour == "misalignment" else sycophant
        answer = lambda prompt, persona: (
            f" {persona_answer(world, draw, prompt.question, persona)}"
        )
        return [
            {
                "id": p.id,
                "prompt": p.text,
                "positive": answer(p, bad),
                "negative": answer(p, expert),
            }
            for p in asked[:6]
        ], {"both": 1.0}

    monkeypatch.setattr(
        ranking_truth, "organism_pairs", said
    )  # so small a model says nothing that could be graded
    config = config_file.get_config()
    config.update(
        {
            "seeds": (0,),
            "kinds": ("mixed",),
            "strength_prompts": 2,
            "effect_prompts": 2,
            "top": 5,
        }
    )
    config.update(
        {
            "organism": {"size": "miniature"},
            "corpus_tokens": 1500,
            "batch_size": 4,
            "mesh": "data=1",
        }
    )
    for _ in range(2):
        ranking_truth.start(config, epath.Path(tmp_path))
        monkeypatch.setattr(
            ranking_truth, "organism_pairs", None
        )  # the second run only loads
    rows = list(csv.DictReader((tmp_path / "truth.csv").read_text().splitlines()))
    names = {(r["score"], r["scope"]) for r in rows}
    scoped = {
        (name, scope)
        for name, score in SCORES.items()
        for scope in SCOPES
        if score.scope != "none"
    }
    assert names == scoped | {
        (name, "") for name, score in SCORES.items() if score.scope == "none"
    } | {("random", "")}
    assert {r["behaviour"] for r in rows} == {"misalignment", "validation"}
    assert len(json.loads((tmp_path / "truth.json").read_text())["runs"]) == 2
