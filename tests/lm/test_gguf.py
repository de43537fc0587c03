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

from sae_attr.lm.hf_folder import model_fingerprint, resolve_model
from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_config, load_lm
from sae_attr.store import fingerprint
from tests.gguf_files import convert
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
    "mistral": {"model_type": "llama", "sliding_window": None},
}
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2")
FAMILIES += ("gemma3_text", "olmo2", "phi3", "mixtral", "qwen3_moe")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(shared: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(shared / "fixtures/hf" / family, folder)
    config = json.loads((folder / "config.v4.json").read_text())
    config |= ADJUSTED.get(family, {})
    if family == "llama":
        config["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(config))
    file = convert(folder, tmp_path / "m.gguf")
    cfg, params = load_lm(str(file), progress=False)
    same, want = load_lm(str(folder), progress=False)
    assert cfg == same
    assert_same(params, want, 2e-7 if family.startswith("gemma") else 0.0)


def test_its_name_is_its_contents(tmp_path: Path) -> None:
    file = convert(write_llama(tmp_path / "hf"), tmp_path / "m.gguf")
    assert resolve_model(str(file)) == file
    assert model_fingerprint(str(file)) == fingerprint(file)
