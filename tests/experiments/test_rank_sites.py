"""Several SAEs ranked together: the scores are those of each alone, in one order."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import rank_sites as configs_rank_sites
from experiments import rank_sites
from tests.experiments import _demo
from tests.experiments._demo import PLANTED, table


def settings(miniature: Path, saes: str, **changes: Any) -> ConfigDict:
    made = configs_rank_sites.get_config()
    single = _demo.config(miniature).to_dict()
    made.update({k: v for k, v in single.items() if k in made and k != "sae"})
    made.update({"saes": saes, "top": 30, "trust_sae": True, **changes})
    return made


@pytest.fixture
def other(miniature: Path, tmp_path: Path) -> Path:
    """The miniature's SAE once more, said to be of an earlier site."""
    folder = tmp_path / "other"
    shutil.copytree(miniature / "random_sae", folder)
    return folder


def test_one_order_of_two_saes_with_each_ones_own_scores(
    done: Path,
    miniature: Path,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saes = f"{miniature / 'random_sae'},{other}?site=layer0.resid_post"
    found = rank_sites.start(settings(miniature, saes), epath.Path(tmp_path / "w"))
    rows = table(tmp_path / "w/latents.csv")
    assert len(rows) == 30
    deltas = [float(row["delta"]) for row in rows]
    assert deltas == sorted(deltas, reverse=True)
    assert (rows[0]["site"], int(rows[0]["latent"])) == ("layer1.resid_post", PLANTED)
    assert {row["site"] for row in rows} == {"layer0.resid_post", "layer1.resid_post"}
    alone = np.load(done / "scores.npz")["both_prompt"]
    for row in rows:
        if row["site"] == "layer1.resid_post" and row["latent"] != "error":
            assert float(row["delta"]) == pytest.approx(
                alone[int(row["latent"])], rel=1e-3, abs=1e-6
            )
            assert float(row["low"]) <= float(row["delta"]) <= float(row["high"])
    saved = json.loads((tmp_path / "w/result.json").read_text())
    assert (
        saved["reconstruction_error"]["layer1.resid_post"]
        == found["reconstruction_error"]["layer1.resid_post"]
    )
    error = json.loads((done / "result.json").read_text())["reconstruction_error"][
        "delta"
    ]
    assert found["reconstruction_error"]["layer1.resid_post"] == pytest.approx(
        error, rel=1e-3
    )
    assert "layer1.resid_post" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("saes", "said"),
    [
        ("", "names no SAE; add --config.saes"),
        ("{sae},{sae}", "are both of layer1.resid_post; give one a site"),
        ("{sae}?layer=3", r"is not understood; write SAE, or SAE\?site="),
        (
            "{sae},{sae}?site=layer9.resid_post",
            "site layer9.resid_post lies outside the model",
        ),
    ],
)
def test_bad_input(miniature: Path, tmp_path: Path, saes: str, said: str) -> None:
    config = settings(miniature, saes.format(sae=miniature / "random_sae"))
    with pytest.raises(ValueError, match=said):
        rank_sites.start(config, epath.Path(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
