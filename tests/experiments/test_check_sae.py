"""The check of an SAE as a program, and at the start of every run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import check_sae as configs_check_sae
from experiments import check_sae
from sae_attr.files.torch_writing import write_torch
from sae_attr.sae.formats import load_sae
from sae_attr.sae.model import SAE
from sae_attr.site_names import parse_site
from tests.experiments import _demo


@pytest.fixture
def settings(shared: Path, stories: Path) -> ConfigDict:
    config = configs_check_sae.get_config()
    config.update(
        {
            "lm": str(stories),
            "sae": str(shared / "fixtures/sae/saelens/topk_rescaled"),
            "mesh": "data=1",
        }
    )
    config.update(
        {
            "corpus": str(shared / "corpora/tinystories_1000.json"),
            "sae_check_tokens": 1500,
            "corpus_batch": 2,
        }
    )
    return config


def test_an_honest_sae_passes_and_the_stage_is_stored(
    settings: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_sae.check(settings, epath.Path(tmp_path), keep=True)
    assert found["passes"]
    assert found["verdict"] in capsys.readouterr().out
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["measured"]["site"] == "layer2.resid_post"
    settings.bands.min_explained_variance = (
        0.99  # another band needs no new measurement
    )
    again = check_sae.check(settings, epath.Path(tmp_path), keep=False)
    assert not again["passes"]
    assert again["inputs"]["stage"] == saved["inputs"]["stage"]
    assert len(list((tmp_path / "store").glob("sae_check-*"))) == 1


def test_exit_status_and_verdict_of_a_wrong_site(settings: ConfigDict) -> None:
    plain = {
        k: v
        for k, v in settings.to_dict().items()
        if isinstance(v, (str, int, float)) and k != "site"
    }
    flags = [f"--config.{k}={v}" for k, v in plain.items()]
    command = [
        sys.executable,
        "-m",
        "experiments.check_sae",
        "--config=configs/check_sae.py",
        *flags,
    ]
    ended = _demo.ended([*command, "--config.site=layer1.resid_post"])
    assert ended.returncode == 1, ended.stderr
    assert "layer 2 instead of 1" in ended.stdout.splitlines()[-1]
    assert "is the hook off by one?" in ended.stdout.splitlines()[-1]


def test_a_run_stops_at_an_sae_that_does_not_fit(
    miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"(?s)does not fit layer1\.resid_post.*wrong_model.*--config\.trust_sae=True",
    ):
        _demo.run(_demo.config(miniature, trust_sae=False), tmp_path / "w")
    assert not (tmp_path / "w/latents.csv").exists()
    found = _demo.run(
        _demo.config(miniature, trust_sae=True), tmp_path / "w"
    )  # the workdir is not refused
    assert "sae_check" in _demo.loaded(found)
    assert not found["sae_check"]["passes"]
    assert found["sae_check"]["trusted"]
    assert any(text.startswith("SAE, wrong_model") for text in found["warnings"])


def write_crosscoder(sae: SAE, folder: Path) -> dict[str, Any]:
    twice = lambda w: np.stack([np.asarray(w)] * 2)
    tensors = {
        "encoder.weight": twice(sae.enc_dn),
        "encoder.bias": np.asarray(sae.enc_bias_n),
    }
    tensors |= {
        "decoder.weight": twice(sae.dec_nm),
        "decoder.bias": twice(sae.dec_bias_m),
    }
    write_torch(folder / "model_final.pt", tensors)
    return {"sae_options.model": "1", "site": str(parse_site(str(sae.cfg.site)))}


def write_temporal(sae: SAE, folder: Path) -> dict[str, Any]:
    n, d = sae.dec_nm.shape
    tensors = {"W_dec": np.asarray(sae.dec_nm), "b_dec": np.asarray(sae.dec_bias_m)}
    for name, out in (
        ("q_target", n // 8),
        ("k_ctx", n // 8),
        ("v_ctx", n),
        ("c_proj", n),
    ):
        tensors |= {
            f"attn_layers.0.{name}.{half}": np.zeros((out, n)[:k], np.float32)
            for k, half in ((2, "weight"), (1, "bias"))
        }
    said = {
        "architecture": "temporal",
        "d_in": d,
        "d_sae": n,
        "n_heads": 1,
        "bottleneck_factor": 8,
        "kval_topk": 4,
    }
    (folder / "cfg.json").write_text(
        json.dumps(said | {"metadata": {"hook_name": sae.cfg.site}})
    )
    save_file(tensors, folder / "sae_weights.safetensors")
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_crosscoder, write_temporal])
def test_a_run_ranks_decoders_of_which_single_tokens_have_no_codes(
    miniature: Path, tmp_path: Path, write: Callable[[SAE, Path], dict[str, Any]]
) -> None:
    changes = write(load_sae(miniature / "random_sae"), tmp_path)
    config = _demo.config(
        miniature, sae=str(tmp_path), trust_sae=False, ablate=0, sae_check_tokens=600
    )
    config.update_from_flattened_dict(changes)
    found = _demo.run(config, tmp_path / "w")
    assert int(_demo.table(tmp_path / "w/latents.csv")[0]["latent"]) == _demo.PLANTED
    assert found["sae_check"] == {"skipped": found["skipped"]["delta_code"]}
    assert not np.isfinite(_demo.scores(tmp_path / "w")["delta_code"]).any()


def test_what_a_run_records(done: Path) -> None:
    found: dict[str, Any] = json.loads((done / "result.json").read_text())["sae_check"]
    assert {f["code"] for f in found["findings"]} >= {"wrong_model"}
    assert found["measured"]["metrics"]["latents"] == 256
