"""`--dry_run` of every experiment: it says what a run needs, writes nothing, and ends
with status 1 where a run would fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import miniature as configs
from experiments import _dry_run, case_study
from sae_attr.study.dry_run.report import DryRun

RATES = _dry_run.rates_of_flags(("2000", "100"), "data=1")


def study_config(folder: Path, **changes: Any) -> ConfigDict:
    made = configs.get_config("study")
    for case in made.cases.values():
        for name in ("lm", "sae", "corpus", "prompts"):
            case[name] = case[name].replace(configs.FOLDER, str(folder))
    made.update({"mesh": "data=1", **changes})
    return made


def test_a_study(miniature: Path, tmp_path: Path) -> None:
    config = study_config(miniature)
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert report.faults == []
    assert list(tmp_path.iterdir()) == []
    text = report.text()
    for words in ("rude: models", "rude: SAE", "kind.steer.away", "missing"):
        assert words in text
    assert "everything fits" in text


def test_faults_are_listed_and_the_rest_is_shown(
    miniature: Path, tmp_path: Path
) -> None:
    config = study_config(miniature)
    config.sampling.max_new = 100_000
    config.cases.rude.judge = {"kind": "openai", "rubric": "validation", "model": "m"}
    config.cases.rude.judge.base_url = "http://127.0.0.1:9/v1"
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert any("exceeds the model's" in fault for fault in report.faults)
    assert any("its judge" in fault for fault in report.faults)
    assert "rude: memory" in report.text()
    assert "a run would fail" in report.text()
    assert list(tmp_path.iterdir()) == []


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as good:
        _dry_run.end(DryRun())
    with pytest.raises(SystemExit) as bad:
        _dry_run.end(DryRun(faults=["no room"]))
    assert (good.value.code, bad.value.code) == (0, 1)
    assert "- no room" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [("1",), ("a", "2"), ("0", "1"), ("1", "2", "3")])
def test_rates_that_cannot_be(numbers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers above 0"):
        _dry_run.rates_of_flags(numbers, "")
