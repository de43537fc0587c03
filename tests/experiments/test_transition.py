from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import transition as config_file
from experiments import transition
from sae_attr.analyses import transition_stages
from sae_attr.study import score_ground_truth
from tests.experiments._organism_study import (
    listed,
    pairs_of,
    small_study,
    started_again,
    written_answers,
)


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
