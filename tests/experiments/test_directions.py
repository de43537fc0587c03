from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import directions as config_file
from experiments import directions
from sae_attr.analyses import direction_stages
from sae_attr.analyses.direction_settings import DirectionSettings
from sae_attr.store import Store
from tests.experiments._organism_study import (
    listed,
    small_study,
    started_again,
    written_answers,
)


def small_config() -> ConfigDict:
    config = small_study(
        config_file,
        {
            "answer_prompts": 8,
            "samples": 2,
            "draws": 2,
            "effect_prompts": 8,
            "top": 3,
            "resamples": 20,
            "batch_size": 8,
        },
    )
    config.adapter.layers = (0, 1)
    config.training.update({"steps": 3, "batch": 4, "rows": 12})
    return config


def test_only_what_the_fine_tunes_need_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = listed(directions, small_config(), tmp_path, capsys)
    assert names[:4] == [f"organism-0.{p}" for p in ("base", "chat", "sae", "corpus")]
    parts = ("adapter", "answers", "directions", "transfer", "adapters")
    tunes = ("medical", "financial", "sycophantic")
    assert names[4:] == [f"directions-0.{t}.{p}" for p in parts for t in tunes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tunes": ("medical", "legal")}, "tunes medical, legal: choose of medical, fin"),
        ({"removed": ()}, "removed of nothing: choose of mean_difference, "),
        ({"average": "tokens"}, "average tokens: choose of prompts, answers, each once"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectionSettings(**change)


def test_an_adapter_that_the_models_cannot_have_is_refused(tmp_path: Path) -> None:
    config, workdir = small_config(), epath.Path(tmp_path)
    config.adapter.layers = (1, 5)
    with pytest.raises(ValueError, match=r"LoRA layers \[1, 5\] of a model .* 0\.\.1"):
        directions.open_cases(config, Store(workdir / "store"), workdir)


@pytest.mark.slow
def test_directions_of_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direction_stages, "sampled_answers", written_answers)
    workdir, config = epath.Path(tmp_path), small_config()
    directions.start(config, workdir)
    monkeypatch.setattr(direction_stages, "sampled_answers", None)
    _, numbers = started_again(
        directions, config, tmp_path, "directions", ["directions_figure"]
    )
    assert {row["paired"] for row in numbers["answers"]} == {8}
    # Three fine-tunes: as they are, three kinds of three fine-tunes, random ones.
    transfer = numbers["transfer"]
    assert len(transfer) == 3 * (1 + 3 * 3 + 1)
    own = [row for row in transfer if row["relation"] == "own"]
    assert {(row["tune"], row["of"]) for row in own} == {(t, t) for t in config.tunes}
    for row in transfer:
        assert row["rate_low"] <= row["rate"] <= row["rate_high"]
        assert row["lowest"] <= row["rate"] <= row["highest"]
    assert len(numbers["adapters"]) == 3 * 6  # three matrices of two layers
    for row in numbers["adapters"]:
        assert 0 <= row["auc_inside_low"] <= row["auc_inside_high"] <= 1
        assert row["with_inside"] != row["chat_inside"]
    # B of the adapters that write to the residual stream, each at its own layer.
    names = {
        (r["layer"], r["second"]) for r in numbers["cosines"] if "B" in r["second"]
    }
    assert names == {(x, f"B of {m}") for x in (0, 1) for m in ("o", "down")}
    assert {row["adapters"] for row in numbers["spans"]} == {2, 4}
