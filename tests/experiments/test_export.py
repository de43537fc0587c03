"""An SAE and directions of it, written for other tools by the entrypoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import export as configs_export
from experiments import _config, export
from sae_attr.files.vectors import read_vectors
from sae_attr.sae.formats import load_sae, open_decoder
from sae_attr.sae.model import encode
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
