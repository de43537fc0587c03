"""GGUF models: the same config and weights as the Hugging Face folder that they were
converted from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import model_fingerprint, resolve_model
from sae_attr.lm.model import Params
from sae_attr.lm.rope import Rope
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.store import fingerprint
from tests.gguf_files import convert, metadata_of, tensors_of, write_gguf
from tests.miniatures import write_llama

pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")


def assert_same(one: Params, other: Params, atol: float = 0.0) -> None:
    """Trees of the same leaves, equal in every bit; Gemma's norms, of which a GGUF has
    1 + w, to its rounding.
    """
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_a_llama_is_the_folder_that_it_was_converted_from(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    file = convert(folder, tmp_path / "m.gguf")
    cfg, params = load_lm(str(file), progress=False)
    same, want = load_lm(str(folder), progress=False)
    assert cfg == same == load_config(str(file))
    assert_same(params, want)


# What a GGUF file has no key for, or what llama.cpp fixes.
ADJUSTED: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16},
    # Long enough that a frequency lies between Llama 3's two extremes.
    "llama": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
    "mistral": {"model_type": "llama", "sliding_window": None},
}
FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2")
FAMILIES += ("gemma3_text", "olmo2", "phi3", "mixtral", "qwen3_moe", "gpt_oss")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(shared: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(shared / "fixtures/hf" / family, folder)
    config = json.loads((folder / "config.v4.json").read_text())
    config |= ADJUSTED.get(family, {})
    (folder / "config.json").write_text(json.dumps(config))
    file = convert(folder, tmp_path / "m.gguf")
    cfg, params = load_lm(str(file), progress=False)
    same, want = load_lm(str(folder), progress=False)
    assert cfg == same
    assert_same(params, want, 2e-7 if family.startswith("gemma") else 0.0)


@pytest.mark.parametrize("case", ["llama_all", "gpt2", "mixtral_attention", "phi3"])
def test_adapters_and_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    folder = Path(__file__).parent / "goldens" / case
    file = convert(folder, tmp_path / "m.gguf")
    adapter, mesh = str(folder / "adapter"), make_mesh("data=2,model=2")
    options: dict[str, Any] = {"adapter": adapter, "mesh": mesh, "progress": False}
    cfg, want = load_lm(str(folder), **options)
    monkeypatch.setattr("sae_attr.lm.weight_stream.CHUNK_BYTES", 5 * 16 * 4)
    same, params = load_lm(str(file), **options)
    assert cfg == same
    assert_same(params, want)


def converted(tmp_path: Path, more: dict[str, Any], **config: Any) -> Path:
    """A miniature Llama as GGUF with further tensors."""
    folder = write_llama(tmp_path / "hf", **config)
    content = json.loads((folder / "config.json").read_text())
    tensors = tensors_of(folder, content) | more
    return write_gguf(tmp_path / "m.gguf", "llama", metadata_of(content), tensors)


def test_frequencies_that_follow_no_rule_are_taken_as_they_are(tmp_path: Path) -> None:
    divisors = np.array([3.0, 1.0, 7.0, 2.0], np.float32)
    file = converted(tmp_path, {"rope_freqs.weight": divisors}, head_dim=8, d=32)
    (rope,) = load_config(str(file)).ropes
    plain = Rope(8, 10000.0).inv_freq()
    for long in (False, True):
        np.testing.assert_allclose(rope.inv_freq(long), plain / divisors)
    assert rope.attention_factor == 1.0


def scaled_rope(tmp_path: Path, **keys: Any) -> Rope:
    folder = write_llama(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    metadata = metadata_of(config) | keys
    tensors = tensors_of(folder, config)
    file = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors)
    (rope,) = load_config(str(file)).ropes
    return rope


def test_scaled_positions(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert scaled_rope(tmp_path, **linear).factor == 4.0
    yarn = linear | {
        "rope.scaling.type": "yarn",
        "rope.scaling.original_context_length": 32,
    }
    rope = scaled_rope(tmp_path, **yarn)
    assert (rope.kind, rope.original_len) == ("yarn", 32)
    with pytest.raises(ValueError, match=r"scaling\.type 'ntk' is not read"):
        scaled_rope(tmp_path, **(linear | {"rope.scaling.type": "ntk"}))
    with pytest.raises(ValueError, match="rotates 2 of the 4 channels"):
        scaled_rope(tmp_path, **{"rope.dimension_count": 2})


def test_its_name_is_its_contents(tmp_path: Path) -> None:
    file = convert(write_llama(tmp_path / "hf"), tmp_path / "m.gguf")
    assert resolve_model(str(file)) == file
    assert model_fingerprint(str(file)) == fingerprint(file)
