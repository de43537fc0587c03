from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import transition as config_file
from experiments import transition
from sae_attr.analyses import transition_stages
from sae_attr.organism.pair_sampling import graded_pairs
from sae_attr.organism.pair_sources import source_answers
from sae_attr.organism.world import make_world
from sae_attr.study import score_ground_truth


def small_config() -> ConfigDict:
    config = config_file.get_config()
    config.update(
        {
            "behaviours": ("misalignment",),
            "runs": 2,
            "pair_prompts": 8,
            "samples": 2,
            "pairs": 6,
            "measure_every": 5,
            "top": 3,
            "random": 4,
            "rate_prompts": 2,
            "effect_prompts": 1,
            "organism": {"size": "miniature", "sae": {"latents": 32}},
            "training": {"steps": 12, "batch": 4, "lr": 1e-2, "rows": 40},
            "adapter": {"layers": (0,)},
            "events": {"lags": (2, 3), "rise_lag": 2, "smooth": 3, "least_rise": 0.0},
            "corpus_tokens": 1500,
            "batch_size": 4,
            "mesh": "data=1",
        }
    )
    return config


def test_every_stage_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transition.start(small_config(), epath.Path(tmp_path), shown=True)
    names = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert names[-6:] == [
        f"misalignment-mixed-0.run-{run}.{stage}"
        for run in (0, 1)
        for stage in ("path", "rates", "measured")
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_transition_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(world, params, prompts, behaviour, *, cfg, samples, count, sampler, seed):
        """So small a model says nothing that could be graded."""
        options: dict[str, Any] = {"cfg": cfg, "samples": 2, "seed": seed}
        texts = source_answers(
            "written", make_world(0), behaviour, prompts, params, **options
        )
        return graded_pairs(
            world, prompts, behaviour, texts, count=count, sampler=sampler, seed=seed
        )

    monkeypatch.setattr(score_ground_truth, "organism_pairs", pairs)
    workdir, config = epath.Path(tmp_path), small_config()
    transition.start(config, workdir)
    monkeypatch.setattr(transition_stages, "train_path", None)
    text = (tmp_path / "transition.txt").read_text()
    (tmp_path / "transition.txt").unlink()
    transition.start(config, workdir)  # only loads
    assert (tmp_path / "transition.txt").read_text() == text
    for suffix in ("svg", "png", "json"):
        assert (tmp_path / f"transition_figure.{suffix}").exists()
    numbers = json.loads((tmp_path / "transition.json").read_text())
    first, second = numbers["runs"]
    assert first["step"] == list(range(13))
    assert first["measured_step"] == [0, 5, 10, 12]
    assert first["curves"]["length"][0] == 0
    assert first["curves"]["length"] != second["curves"]["length"]
    # Before the first step every scale has the rate of the model before.
    assert first["curves"]["rate_x1"][0] == first["curves"]["rate_x4"][0]
    assert first["curves"]["rate_x1"][-1] != first["curves"]["rate_x4"][-1]
    assert first["measured"]["gradient_to_last"][-1] == pytest.approx(1)
    assert first["measured"]["gradient_to_b"][0] is None
    assert len(first["measured"]["steering_top"]) == 4
    assert {row["event"] for row in numbers["events"]} == {
        "turn_2",
        "turn_3",
        "peak",
        "rise_x1",
        "rise_x2",
        "rise_x4",
    }
    assert len(numbers["distances"]) == 2 + 2 * 3 + 3
