"""A study of a model with an adapter: which weights it computes with, and under which
name.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from sae_attr.store import Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.setup import Setup
from tests._hub import Hub

MODEL = Path(__file__).parent.parent / "lm/goldens/llama_all"


def study(tmp_path: Path, adapter: Path | None) -> Setup:
    settings = Settings(
        lm=str(MODEL),
        sae="sae",
        pairs="pairs",
        corpus="corpus",
        adapter=adapter and str(adapter),
    )
    return Setup(
        settings,
        Store(epath.Path(tmp_path / "store")),
        make_mesh("data=1"),
        progress=False,
    )


def test_an_adapter_is_merged_and_named(tmp_path: Path) -> None:
    with_adapter, without = study(tmp_path, MODEL / "adapter"), study(tmp_path, None)
    _, want = load_lm(
        str(MODEL),
        mesh=make_mesh("data=1"),
        adapter=str(MODEL / "adapter"),
        progress=False,
    )
    jax.tree.map(np.testing.assert_array_equal, with_adapter.params, want)
    assert with_adapter.lm_key != without.lm_key
    other = shutil.copytree(MODEL / "adapter", tmp_path / "other")
    assert study(tmp_path, other).lm_key == with_adapter.lm_key  # wherever it lies
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 8'))
    assert study(tmp_path, other).lm_key != with_adapter.lm_key


def test_a_registered_sae_of_another_model_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    setup = study(tmp_path, None)
    name = "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medium"
    setup = replace(setup, settings=replace(setup.settings, sae=name))
    for read in ("sae_cfg", "decoder", "sae_key"):
        with pytest.raises(
            ValueError, match=r"an SAE of google/gemma-3-270m-it, which"
        ):
            getattr(setup, read)
    assert hub.downloads == []
