"""The study of crosscoders on the miniature organism, as a user starts it."""

import json
from pathlib import Path

import pytest
from etils import epath

from configs import crosscoders as configs
from experiments import crosscoders

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.slow
def test_a_run_gives_tables_that_agree(tmp_path: Path) -> None:
    config = configs.get_config()
    config.organism.size = "miniature"
    config.update({"documents": 60, "latents": 32, "steps": 40, "batch": 64})
    config.update({"held_out": 8, "patched": 6, "top": 3, "random": 8, "k": 4})
    config.update({"strength_prompts": 2, "effect_prompts": 2, "corpus_tokens": 2000})
    config.planted.steps = 0
    crosscoders.start(config, epath.Path(tmp_path))
    numbers = json.loads((tmp_path / "crosscoders.json").read_text())
    by_name = {row["dictionary"]: row for row in numbers["dictionaries"]}
    assert list(by_name) == ["crosscoder", "crosscoder_l1", "difference"]
    for name in ("crosscoder", "crosscoder_l1"):
        row = by_name[name]
        kinds = ("ft_only", "shared", "base_only", "other")
        latents = [r for r in numbers["latents"] if r["dictionary"] == name]
        assert sum(row[kind] for kind in kinds) == row["fired"] == len(latents)
        assert row["specific"] <= row["ft_only"]
        sizes = {kind: part["latents"] for kind, part in row["kl"].items()}
        assert sizes["specific"] == sizes["low_nu"] + sizes["high_nu"] <= 6
    counts = {row["method"]: row["latents"] for row in numbers["steering"]}
    assert counts == {
        "crosscoder": 3,
        "crosscoder_l1": 3,
        "difference": 3,
        "random": 8,
    }
    assert (tmp_path / "crosscoders_figure.svg").exists()
    assert "KL to the fine-tuned model" in (tmp_path / "crosscoders.txt").read_text()
