from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import ranking_truth as config_file
from experiments import ranking_truth
from sae_attr.attribution.directions import DIRECTIONS
from sae_attr.attribution.score_registry import SCORES
from sae_attr.attribution.selectors import SELECTORS
from sae_attr.organism.documents import persona_answer
from sae_attr.organism.words import PERSONAS
from sae_attr.study import score_ground_truth
from sae_attr.study.stage_choice import StageChoice
from sae_attr.text.rows import SCOPES


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
            "latents": (16, 32),
            "draws": 20,
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
        "organism-0.sae.16",
        "organism-0.corpus",
    ]
    # The second SAE and the second kind of fine-tune are all that is not shared.
    assert [name for name in names if name.startswith("organism-0.")][6:] == [
        "organism-0.sae.32",
        "organism-0.misaligned.calm",
    ]
    for run in ("misalignment-mixed-0", "misalignment-calm-0", "validation-mixed-0"):
        of_run = [name.removeprefix(run) for name in names if name.startswith(run)]
        assert of_run[0] == ".pairs"  # once, for both sizes
        for latents in (16, 32):
            beginning = f"-{latents}."
            of_size = [x[len(beginning) :] for x in of_run if x.startswith(beginning)]
            assert of_size[-7:] == [
                *(f"scores.{scope}" for scope in SCOPES),
                "ground_truth",
                "directions",
                "selectors",
                "agreement",
            ]
    assert not list(tmp_path.iterdir())


def test_the_sizes_of_the_sae_have_one_key(tmp_path: Path) -> None:
    config = small_config()
    config.organism.sae.latents = 64
    with pytest.raises(ValueError, match=r"latents=64, but .* latents=16,32; set lat"):
        ranking_truth.start(config, epath.Path(tmp_path), shown=True)


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
    config.kinds, config.latents = ("mixed",), (32,)
    config.publish = str(tmp_path / "docs" / "table")
    (tmp_path / "docs").mkdir()
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
    expected = {("random", ""), ("half of the prompts", ""), ("prompting", "")}
    expected |= {(name, "direction") for name in DIRECTIONS}
    for name, score in {**SCORES, **SELECTORS}.items():
        scopes = SCOPES if score.scope != "none" else ("",)
        expected |= {(name, scope) for scope in scopes}
    expected |= {
        (name, "") for name in ("output_score", "token_confidence", "output_kl")
    }
    assert {(r["score"], r["scope"]) for r in rows} == expected
    assert {r["behaviour"] for r in rows} == {"misalignment", "validation"}
    content = json.loads((tmp_path / "truth.json").read_text())
    assert content["runs"]["behaviour"] == ["misalignment", "validation"]
    columns = content["columns"]
    assert {len(values) for values in columns.values()} == {3 * 3 * len(expected)}
    for ending in ("txt", "json"):
        published = (tmp_path / f"docs/table.{ending}").read_text()
        assert published == (tmp_path / f"truth.{ending}").read_text()
