from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from random import Random

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import ranking_truth as config_file
from experiments import ranking_truth
from sae_attr.attribution.score_registry import SCORES
from sae_attr.organism.documents import persona_answer
from sae_attr.organism.words import PERSONAS
from sae_attr.report.ground_truth_table import summary_rows, table_text
from sae_attr.study import score_ground_truth
from sae_attr.study.score_ground_truth import GROUND_TRUTHS
from sae_attr.study.stage_choice import StageChoice
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
        for truth in GROUND_TRUTHS
        for seed, value in ((0, 0.2), (1, 0.6))
    ]
    summary = summary_rows(rows)
    assert [entry["truth"] for entry in summary] == list(GROUND_TRUTHS)
    assert summary[0]["spearman"] == pytest.approx(0.4)
    assert summary[0]["spearman_sd"] == pytest.approx(math.sqrt(0.08))
    assert summary_rows(rows[:1])[0]["spearman_sd"] == 0
    text = table_text(summary, [{"seed": 0, "norm": 2.5}])
    assert "validation, mixed, 2 seeds" in text
    assert "+0.40 ± 0.28 | 0.50 | +0.100" in text
    assert "seed=0 norm=2.5" in text


def small_config() -> ConfigDict:
    config = config_file.get_config()
    config.update(
        {
            "seeds": (0,),
            "kinds": ("mixed", "calm"),
            "strength_prompts": 2,
            "effect_prompts": 2,
            "top": 5,
            "organism": {"size": "miniature"},
            "corpus_tokens": 1500,
            "batch_size": 4,
            "mesh": "data=1",
        }
    )
    return config


def test_every_stage_is_listed_the_organisms_among_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranking_truth.start(small_config(), epath.Path(tmp_path), shown=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {state for state, _ in lines} == {"missing"}
    names = [name for _, name in lines]
    assert names[:6] == [
        "organism-0.base",
        "organism-0.chat",
        "organism-0.misaligned.mixed",
        "organism-0.validation",
        "organism-0.sae",
        "organism-0.corpus",
    ]
    # The second kind of fine-tune is the only part that is not shared.
    assert [name for name in names if name.startswith("organism-0.")][6:] == [
        "organism-0.misaligned.calm"
    ]
    for run in ("misalignment-mixed-0", "misalignment-calm-0", "validation-mixed-0"):
        own = [name.removeprefix(f"{run}.") for name in names if name.startswith(run)]
        assert own[0] == "pairs"
        assert own[-5:] == [
            *(f"scores.{scope}" for scope in SCOPES),
            "ground_truth",
            "agreement",
        ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_stage_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(world, params, asked, behaviour, **options) -> tuple[list[dict], dict]:
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

    # So small a model says nothing that could be graded.
    monkeypatch.setattr(score_ground_truth, "organism_pairs", written)
    config = small_config()
    config.kinds = ("mixed",)
    workdir = epath.Path(tmp_path)
    ranking_truth.start(config, workdir)
    monkeypatch.setattr(score_ground_truth, "organism_pairs", None)
    ranking_truth.start(config, workdir)  # only loads
    before = (tmp_path / "truth.csv").read_text()
    (tmp_path / "truth.csv").unlink()
    again = StageChoice(only=("agreement",), force=("agreement",))
    ranking_truth.start(config, workdir, choice=again)
    assert (tmp_path / "truth.csv").read_text() == before
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
