"""A new SAE format is one module and one line of the table: here one is added for real."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_attr.files.tensors import read_tensors
from sae_attr.sae import formats
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import LoadOptions, load_sae, open_decoder, read_config
from sae_attr.sae.formats.checks import check_names, matrix_shape, reject_options
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.locate import hub_files
from sae_attr.sae.formats.parts import Parts, decoder_source
from sae_attr.sae.model import encode

# ---- the module of the format: reads "up" [n, d], "down" [n, d] and "shift" [n] ------

NAMES = ("up", "down", "shift")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the parts of a miniature SAE."""
    reject_options(options, "miniature", ("site",))
    tensors = read_tensors(weights)
    check_names(weights, "a miniature SAE", tensors, NAMES)
    n, d = matrix_shape(weights, tensors, "up")
    cfg = SAEConfig(
        d_in=d, d_out=d, n_latents=n, source="miniature", site=options.get("site")
    )
    vectors = {"enc_bias_n": tensors["shift"], "dec_bias_m": np.zeros(d, np.float32)}
    dec = decoder_source(tensors["down"])
    return Parts(weights, cfg, (dec,), (tensors["up"].T,), vectors)


def detect(file: WeightFile) -> bool:
    """Recognises the three names."""
    return file.names == {*NAMES}


FORMAT = Format(
    "miniature", read, detect, weights=("mini.safetensors",), configs=("mini.json",)
)


@pytest.fixture(autouse=True)
def one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {known.name: known for known in (FORMAT, *formats.FORMATS.values())}
    monkeypatch.setattr(formats, "FORMATS", table)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"up": (5, 3), "down": (5, 3), "shift": (5,)}
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", ["mini.safetensors", "other.safetensors"])
def test_it_is_detected_and_read(
    name: str, tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file(tensors, tmp_path / name)
    sae = load_sae(tmp_path)
    x = jnp.asarray([[0.5, -1.0, 2.0]])
    expected = np.maximum(np.asarray(x) @ tensors["up"].T + tensors["shift"], 0)
    np.testing.assert_allclose(encode(sae, x), expected, rtol=1e-6)
    assert read_config(tmp_path, site="layer0.resid_post").site == "layer0.resid_post"
    assert sae.cfg.source == "miniature"
    rows = open_decoder(tmp_path / name)
    np.testing.assert_array_equal(rows.rows(0, 5), tensors["down"])
    assert load_sae(tmp_path, latents=[3, 1]).dec_nm.shape == (2, 3)


def test_its_options_are_checked(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file(tensors, tmp_path / "mini.safetensors")
    with pytest.raises(ValueError, match="option k= means nothing for a miniature"):
        load_sae(tmp_path, k=3)
    assert formats.identity(LoadOptions(site="a")) == {"site": "a"}


def test_messages_and_the_hub_know_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fmt='mini' is unknown; known: auto, miniatu"):
        load_sae(tmp_path, fmt="mini")
    with pytest.raises(ValueError, match=r"looked for mini\.safetensors"):
        load_sae(tmp_path)
    with pytest.raises(ValueError, match="holds no miniature SAE"):
        load_sae(tmp_path, fmt="miniature")
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="say fmt= one of miniature, gemma_scope"):
        load_sae(tmp_path / "a.safetensors")
    files = hub_files("owner/repo", "layer3", formats.FORMATS)
    assert {"layer3/mini.safetensors", "layer3/mini.json"} <= {*files}
