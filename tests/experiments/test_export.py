"""An SAE and directions of it, written for other tools by the entrypoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from etils import epath
from ml_collections import ConfigDict

from configs import export as configs_export
from experiments import _config, export
from sae_attr.files.vectors import read_vectors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import load_sae, open_decoder
from sae_attr.sae.model import encode
from sae_attr.sae.model_card import CardFacts, model_card
from tests.sae._gguf import read_gguf


def config(folder: Path, **changes: Any) -> ConfigDict:
    made = configs_export.get_config()
    made.lock()
    for name, value in {"sae": str(folder / "sae"), **changes}.items():
        _config.override(made, name, str(value))
    return made


@pytest.mark.parametrize("layout", ["saelens", "dictionary_learning"])
def test_an_exported_sae_has_the_same_codes(
    layout: str, miniature: Path, tmp_path: Path
) -> None:
    result = export.export(config(miniature, layout=layout), epath.Path(tmp_path))
    assert result["files"] == [f"{layout}/"]
    before, after = load_sae(miniature / "sae"), load_sae(tmp_path / layout)
    assert after.cfg.source == layout
    x = np.random.default_rng(0).normal(size=(5, before.cfg.d_in))
    x = jnp.asarray(x.astype(np.float32))
    np.testing.assert_allclose(
        encode(after, x), encode(before, x), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(FileExistsError, match="holds an SAE already"):
        export.export(config(miniature, layout=layout), epath.Path(tmp_path))


def test_directions_are_unit_decoder_rows(miniature: Path, tmp_path: Path) -> None:
    made = config(miniature, latents="3,1", scale="-2")
    export.export(made, epath.Path(tmp_path))
    decoder = open_decoder(miniature / "sae")
    vectors = read_vectors(tmp_path / "directions.safetensors")
    assert {*vectors} == {"latent_3", "latent_1"}
    row_m = decoder.rows(3, 4)[0]
    expected = -2 * row_m / np.linalg.norm(row_m)
    np.testing.assert_allclose(vectors["latent_3"], expected, rtol=1e-5)
    made = config(miniature, latents="3", vectors="repeng", model_type="llama")
    export.export(made, epath.Path(tmp_path))
    keys, tensors = read_gguf(tmp_path / "latent_3.gguf")
    assert keys["controlvector.model_hint"] == "llama"
    (name,) = tensors
    assert name == f"direction.{load_sae(miniature / 'sae').cfg.layer}"
    np.testing.assert_allclose(tensors[name], expected / -2, rtol=1e-5)
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["files"] == ["latent_3.gguf"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae": None}, r"lacks sae; add --config\.sae=PATH"),
        ({}, "nothing is asked for; give --config.layout=saelens"),
        ({"layout": "torch"}, "layout 'torch' is unknown; choose one of saelens"),
        ({"latents": "1", "vectors": "npz"}, "vectors 'npz' is unknown"),
        ({"latents": "1", "vectors": "repeng"}, r"add --config\.model_type=TYPE"),
        ({"latents": "999999"}, "latent 999999 lies outside the SAE"),
    ],
)
def test_bad_input(
    changes: dict[str, Any], message: str, miniature: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export.export(config(miniature, **changes), epath.Path(tmp_path))


# ---- the hub -------------------------------------------------------------------------


class Hub:
    """What `huggingface_hub.HfApi` is asked for."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def create_repo(self, repo: str, **options: Any) -> None:
        Hub.calls.append((repo, options))

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        if Hub.error is not None:
            raise Hub.error
        Hub.calls.append((options.pop("repo_id"), options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a client in place of the hub's."""
    Hub.calls, Hub.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return Hub.calls


def pushed(config: ConfigDict, workdir: Path, private: bool = True) -> str:
    export.check_push(config, "me/my-sae")
    result = export.export(config, epath.Path(workdir))
    return export.push(config, workdir, result, "me/my-sae", private)


def test_what_is_uploaded_is_listed_first_and_can_be_loaded(
    miniature: Path,
    tmp_path: Path,
    hub: list[tuple[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(miniature / "sae", trained / "sae")
    measured = {"held_out": {"explained_variance": 0.891, "l0": 30.9, "tokens": 5}}
    (trained / "result.json").write_text(json.dumps(measured))
    values = {"layout": "saelens", "latents": "77", "license": "apache-2.0"}
    made = config(trained, base_model="owner/model", **values)
    assert pushed(made, tmp_path / "w").endswith("huggingface.co/me/my-sae")
    (made_repo, created), (filled, uploaded) = hub
    assert (made_repo, filled) == ("me/my-sae", "me/my-sae")
    assert created == {"private": True, "repo_type": "model", "exist_ok": True}
    files = uploaded["allow_patterns"]
    assert set(files) == {
        "README.md",
        "saelens/cfg.json",
        "saelens/sae_weights.safetensors",
        "directions.safetensors",
    }
    out = capsys.readouterr().out
    assert all(f"  {name}  " in out for name in files)
    card = (tmp_path / "w/README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "owner/model"
    assert "| explained_variance | 0.891 |" in card
    assert "tokens |" not in card.split("## Measured")[1].split("##")[0]
    assert 'load_sae("hf://me/my-sae/saelens")' in card
    assert 'SAE.from_pretrained("me/my-sae", "saelens")' in card
    assert str(tmp_path) not in card
    load_sae(tmp_path / "w/saelens")


def test_a_card_of_a_local_model_names_no_base_model(
    miniature: Path, tmp_path: Path, hub: list[tuple[str, dict[str, Any]]]
) -> None:
    made = config(miniature, layout="dictionary_learning", license="mit")
    pushed(made, tmp_path, private=False)
    card = (tmp_path / "README.md").read_text()
    assert "base_model" not in card
    assert "sae_lens" not in card
    assert hub[0][1]["private"] is False


def test_a_card_shows_names_of_a_file_as_text() -> None:
    cfg = SAEConfig(d_in=4, d_out=4, n_latents=8, site="a`|\n# b", model_name="x")
    card = model_card(cfg, CardFacts("me/it", "mit"))
    assert "| reads | `a# b` |" in card


@pytest.mark.parametrize(
    ("repo", "token", "license", "message"),
    [
        ("me/it", "hf_x", None, r"needs a licence; add --config\.license=NAME"),
        ("it", "hf_x", "mit", "'it' names no hub repository; give owner/name"),
        ("me/it", None, "mit", "without a token: log in with `hf auth login`"),
    ],
)
def test_an_upload_is_refused_before_anything_is_written(
    repo: str,
    token: str | None,
    license: str | None,
    message: str,
    miniature: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    made = config(miniature, layout="saelens", license=str(license))
    with pytest.raises(ValueError, match=message):
        export.check_push(made, repo)


def test_what_the_hub_refuses_is_said_in_one_message(
    miniature: Path, tmp_path: Path, hub: list[tuple[str, dict[str, Any]]]
) -> None:
    Hub.error = ConnectionError("down")
    with pytest.raises(ValueError, match=r"did not take me/my-sae: down\. The files"):
        pushed(config(miniature, layout="saelens", license="mit"), tmp_path)
