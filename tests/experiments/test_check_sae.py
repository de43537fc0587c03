"""The check of an SAE as a program, and at the start of every run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import check_sae as configs_check_sae
from experiments import check_sae
from tests.experiments import _demo


@pytest.fixture
def settings(shared: Path, stories: Path) -> ConfigDict:
    config = configs_check_sae.get_config()
    config.update({"lm": str(stories), "sae": str(shared / "fixtures/sae/saelens/topk_rescaled"), "mesh": "data=1"})
    config.update({"corpus": str(shared / "corpora/tinystories_1000.json"), "fitness_tokens": 1500, "corpus_batch": 2})
    return config


def test_an_honest_sae_passes_and_the_stage_is_stored(
    settings: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_sae.check(settings, epath.Path(tmp_path), keep=True)
    assert found["passes"]
    assert found["verdict"] in capsys.readouterr().out
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["measured"]["site"] == "layer2.resid_post"
    settings.bands.min_explained_variance = 0.99  # another band needs no new measurement
    again = check_sae.check(settings, epath.Path(tmp_path), keep=False)
    assert not again["passes"]
    assert again["inputs"]["stage"] == saved["inputs"]["stage"]
    assert len(list((tmp_path / "store").glob("fitness-*"))) == 1


def test_exit_status_and_verdict_of_a_wrong_site(settings: ConfigDict) -> None:
    plain = {k: v for k, v in settings.to_dict().items() if isinstance(v, (str, int, float)) and k != "site"}
    flags = [f"--config.{k}={v}" for k, v in plain.items()]
    command = [sys.executable, "-m", "experiments.check_sae", "--config=configs/check_sae.py", *flags]
    ended = _demo.ended([*command, "--config.site=layer1.resid_post"])
    assert ended.returncode == 1, ended.stderr
    assert "layer 2 instead of 1" in ended.stdout.splitlines()[-1]
    assert "is the hook off by one?" in ended.stdout.splitlines()[-1]


def test_a_run_stops_at_an_sae_that_does_not_fit(miniature: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)does not fit layer1\.resid_post.*wrong_model.*--config\.trust_sae=True"):
        _demo.run(_demo.config(miniature, trust_sae=False), tmp_path / "w")
    assert not (tmp_path / "w/latents.csv").exists()
    found = _demo.run(_demo.config(miniature, trust_sae=True), tmp_path / "w")  # the workdir is not refused
    assert "fitness" in _demo.loaded(found)
    assert not found["sae_fitness"]["passes"]
    assert found["sae_fitness"]["trusted"]
    assert any(text.startswith("SAE, wrong_model") for text in found["warnings"])


def test_what_a_run_records(done: Path) -> None:
    found: dict[str, Any] = json.loads((done / "result.json").read_text())["sae_fitness"]
    assert {f["code"] for f in found["findings"]} >= {"wrong_model"}
    assert found["measured"]["metrics"]["latents"] == 256
