"""Dense latents of a finished study: the miniature's, with the files that are written;
and the test on planted data.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from configs import dense_latents as configs
from experiments import dense_latents
from sae_attr.analyses.dense_retraining import retraining_rows
from sae_attr.analyses.dense_settings import DenseSettings
from tests.experiments.test_case_study import run
from tests.experiments.test_exact_study import exact_config

pytestmark = pytest.mark.usefixtures("quick")


def opened_config(study: Path, **changes: Any) -> Any:
    config = configs.get_config()
    config.update({"study": str(study), "tokens": 800, "sample_tokens": 400})
    config.update({"null_directions": 1, "most": 20, "entropy_tokens": 8, **changes})
    config.retraining.steps = 0
    return config


@pytest.mark.slow
def test_a_finished_study_gives_tables_that_agree_and_is_not_measured_twice(
    miniature: Path, tmp_path: Path
) -> None:
    run(exact_config(miniature), tmp_path / "study")
    workdir = epath.Path(tmp_path / "dense")
    config = opened_config(tmp_path / "study", dense=0.02)
    dense_latents.start(config, workdir)
    result = json.loads((workdir / "result.json").read_text())
    numbers = result["cases"]["rude"]
    dense = [row for row in numbers["rows"] if row["dense"]]
    assert numbers["dense"] >= len(dense) > 0
    assert sum(row["dense"] for row in numbers["classes"]) == len(dense)
    rates = [row["firing_rate"] for row in numbers["rows"]]
    assert rates == sorted(rates, reverse=True)
    for row in numbers["rankings"]:
        assert row["dense"] == len(row["latents"]) == sum(row["classes"].values())
    for row in numbers["effects"]:
        assert row["latents_without"] == row["latents"] - row["dense"]
    lines = list(csv.DictReader((workdir / "rude/latents.csv").read_text().split("\n")))
    latents = [row["latent"] for row in numbers["rows"]]
    assert [int(line["latent"]) for line in lines] == latents
    table = (tmp_path / "study/rude/latents.csv").read_text().split("\n")
    for line in csv.DictReader(table):
        assert line["dense"] == str(float(line["firing_rate"]) > 0.1).lower()
    assert (workdir / "figures/rude.dense.png").stat().length > 0
    before = (workdir / "metrics.jsonl").read_text()
    dense_latents.start(config, workdir)  # only reads
    assert (workdir / "metrics.jsonl").read_text() == before
    wide = opened_config(tmp_path / "study", null_directions=4096)
    with pytest.raises(ValueError, match="null_directions is 4096, but the residual"):
        dense_latents.start(wide, epath.Path(tmp_path / "wide"))
    assert not (tmp_path / "wide").exists()


def test_without_a_study_it_is_refused() -> None:
    with pytest.raises(ValueError, match="the config lacks study"):
        dense_latents.opened(configs.get_config())


@pytest.mark.slow
def test_a_dense_direction_becomes_a_pair_and_none_is_left_without_it() -> None:
    planted, without, random = retraining_rows(DenseSettings())
    for row in (planted, random):
        assert (row["dense"], row["pairs"]) == (2, 2)
        assert row["antipodality"] > 0.9
        assert row["cosine"] > 0.95
    assert without["dense"] == 0
