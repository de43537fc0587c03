"""Mitigation of a finished study: the planted latent against random ones, and workdirs
that hold no finished study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from configs import mitigate as configs
from experiments import mitigate
from sae_attr.analyses.mitigation_settings import MitigationSettings
from sae_attr.study.finished_study import open_finished
from tests.experiments import _demo
from tests.experiments.test_case_study import run
from tests.experiments.test_exact_study import exact_config

pytestmark = pytest.mark.usefixtures("quick")


def opened_config(study: Path, **changes: Any) -> Any:
    made = configs.get_config()
    made.update({"study": str(study), "counts": (1, 2), "draws": 2, **changes})
    made.update({"text_tokens": 400, "layer_tokens": 400, "resamples": 100})
    return made


@pytest.mark.slow
def test_suppressing_the_planted_latent_lowers_the_rate_and_is_not_run_twice(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(exact_config(miniature), tmp_path / "study")
    workdir = epath.Path(tmp_path / "mitigate")
    # The miniature's dictionary has few latents that were not ranked first.
    config = opened_config(tmp_path / "study", strength=0.5)
    mitigate.start(config, workdir)
    result = json.loads((workdir / "result.json").read_text())
    numbers = result["cases"]["rude"]
    assert numbers["latents"]["cause"][0] == _demo.PLANTED
    rows = {(r["block"], r["method"], r["count"]): r for r in numbers["rows"]}
    base = rows["", "unedited", 0]["rate"]
    for by in ("mean", "steer"):
        assert rows[by, "cause", 1]["rate"] < base - 0.03
        assert rows[by, "cause", 1]["rate"] < rows[by, "random", 1]["lowest"]
    for row in numbers["rows"]:
        assert row["rate_low"] <= row["rate"] <= row["rate_high"]
        assert row["perplexity"] > 0
    assert {("site", "direction", 1), ("layers", "random_direction", 4)} <= set(rows)
    for name in ("rude.csv", "figures/rude.mitigation.png"):
        assert (workdir / name).stat().length > 0
    before = (workdir / "metrics.jsonl").read_text()
    capsys.readouterr()
    mitigate.start(config, workdir)  # only reads
    assert json.loads((workdir / "result.json").read_text()) == result
    assert (workdir / "metrics.jsonl").read_text() == before
    with pytest.raises(ValueError, match="no case 'kind'; its cases are rude"):
        mitigate.opened(opened_config(tmp_path / "study", case="kind"))
    many = opened_config(tmp_path / "study", counts=(1, 5000), strength=0.5)
    with pytest.raises(
        ValueError, match=r"5000 latents are to be suppressed together, "
    ):
        mitigate.start(many, epath.Path(tmp_path / "many"))
    assert not (tmp_path / "many").exists()


def test_a_workdir_without_a_finished_study_is_refused(
    miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the config lacks study"):
        mitigate.opened(configs.get_config())
    with pytest.raises(ValueError, match="holds no config"):
        open_finished(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        open_finished(tmp_path)
    file.write_text('{"lm": "model", "sae": "sae"}')
    with pytest.raises(ValueError, match="the workdir of another experiment"):
        open_finished(tmp_path)
    file.write_text(json.dumps(exact_config(miniature).to_dict()))
    workdir = epath.Path(tmp_path / "mitigate")
    with pytest.raises(
        ValueError, match=r"not finished: stage rude\.attribute is missing"
    ):
        mitigate.start(opened_config(tmp_path), workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (4, 2)}, "must be numbers of latents from 1, ascending"),
        ({"counts": ()}, "must be numbers of latents from 1, ascending"),
        ({"cause": "harm"}, "cause 'harm' is unknown; choose of delta_attribution"),
        ({"suppress_by": ("mean", "mean")}, "suppress_by mean, mean: choose of .* once"),
        ({"project_to": "one"}, "project_to one: choose of zero, mean"),
        ({"strength": 0.0}, "strength 0.0 must be above 0"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MitigationSettings(**change)
