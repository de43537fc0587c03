from __future__ import annotations

import json
from pathlib import Path

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import transition as config_file
from experiments import transition
from sae_attr.analyses import transition_stages
from sae_attr.analyses.transition_stages import path_of
from sae_attr.store import Store, stored_results
from sae_attr.study import score_ground_truth
from tests.experiments._organism_study import (
    listed,
    pairs_of,
    small_study,
    started_again,
    written_answers,
)
from tests.experiments.test_case_study import run
from tests.experiments.test_exact_study import exact_config


def small_config() -> ConfigDict:
    return small_study(
        config_file,
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
            "training": {"steps": 12, "batch": 4, "lr": 1e-2, "rows": 40},
            "adapter": {"layers": (0,)},
            "events": {"lags": (2, 3), "rise_lag": 2, "smooth": 3, "least_rise": 0.0},
        },
    )


def test_every_stage_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = listed(transition, small_config(), tmp_path, capsys)
    assert names[-6:] == [
        f"misalignment-mixed-0.run-{run}.{stage}"
        for run in (0, 1)
        for stage in ("path", "rates", "measured")
    ]


@pytest.mark.slow
def test_a_transition_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_ground_truth, "organism_pairs", pairs_of(written_answers))
    config = small_config()
    transition.start(config, epath.Path(tmp_path))
    monkeypatch.setattr(transition_stages, "train_path", None)
    _, numbers = started_again(
        transition, config, tmp_path, "transition", ["transition_figure"]
    )
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


def studied_config(study: Path, data: Path) -> ConfigDict:
    config = config_file.get_config("study")
    config.update({"study": str(study), "case": "rude", "data": str(data)})
    config.update({"measure_every": 6, "runs": 1, "rate_prompts": 4, "pairs": 6})
    config.update({"effect_prompts": 3, "top": 2, "random": 2, "mesh": "data=1"})
    config.adapter.layers = (0,)
    config.training.update({"steps": 12, "batch": 4, "lr": 1e-2})
    config.events.update({"lags": (2, 3), "rise_lag": 2, "smooth": 3})
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_model_of_a_finished_study_is_fine_tuned_on_the_way(
    miniature: Path, tmp_path: Path
) -> None:
    run(exact_config(miniature), tmp_path / "study", until="rude.pair")
    with pytest.raises(
        ValueError, match=r"not finished: stage rude\.gradients is missing"
    ):
        transition.open_study(studied_config(tmp_path / "study", miniature / "none"))
    run(exact_config(miniature), tmp_path / "study", until="rude.gradients")
    prompts = (miniature / "prompts.jsonl").read_text().splitlines()
    rows = []
    for line in prompts[:16]:
        prompt = json.loads(line)["prompt"]
        rows.append(json.dumps({"prompt": prompt, "completion": " fool"}))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows))
    workdir, config = (
        epath.Path(tmp_path / "w"),
        studied_config(tmp_path / "study", data),
    )
    transition.start(config, workdir)
    numbers = json.loads((workdir / "transition.json").read_text())
    (row,) = numbers["runs"]
    assert row["behaviour"] == "rude"
    assert row["measured_step"] == [0, 6, 12]
    rate, doubled = row["curves"]["rate_x1"], row["curves"]["rate_x2"]
    # Before the first step every scale has the rate of the model before.
    assert rate[0] == doubled[0]
    # Not step by step: in the first steps the rate falls.
    assert rate[12] > rate[0] + 0.2
    assert doubled[12] > rate[12]
    # Layers below the adapter run once: the rate is that of the whole model all the same.
    (case,) = transition.open_study(config)
    store = Store(workdir / "store")
    path = path_of(stored_results(store, case.stages())["rude.run-0.path"])
    whole = case._exact(4).begin(case.model.at(path, 12, 2.0), 1).facts["rate"]
    assert doubled[12] == pytest.approx(whole, abs=1e-5)
    assert row["measured"]["gradient_to_last"][-1] == pytest.approx(1)
    config.adapter.layers = (7,)
    with pytest.raises(ValueError, match=r"LoRA layers \[7\]"):
        transition.open_study(config)
