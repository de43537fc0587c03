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
from sae_attr.store import Store, fingerprint
from sae_attr.study import ranking_notes
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.setup import Setup
from tests._hub import Hub
from tests.gguf_files import byte_level_keys, convert

MODEL = Path(__file__).parent.parent / "lm/goldens/llama_all"


def study(tmp_path: Path, adapter: Path | None, lm: Path = MODEL) -> Setup:
    settings = Settings(
        lm=str(lm),
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


def test_a_gguf_is_named_and_its_quantisation_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    types = {"blk.1.ffn_up.weight": "F16", "blk.0.attn_q.weight": "F16"}
    keys = byte_level_keys() | {"tokenizer.ggml.tokens": list("abcdefg")}
    keys |= {"tokenizer.ggml.token_type": [1] * 7, "tokenizer.ggml.merges": []}
    file = convert(MODEL, tmp_path / "m.gguf", types=types, **keys)
    setup, plain = study(tmp_path, MODEL / "adapter", file), study(tmp_path, None)
    assert setup.model_files.quantisation == {"lm": {"F32": 28, "F16": 2}}
    assert plain.model_files.quantisation == {}
    (line,) = ranking_notes._about_models(setup)
    assert line.startswith(
        "lm is a GGUF whose weights are dequantised (F32 28 · F16 2 "
    )
    assert list(ranking_notes._about_models(plain)) == []
    assert ranking_notes._quantised(setup)["quantisation"]["lm"]["F16"] == 2
    assert setup.tokenizer.eos_id == 1
    assert setup.ends["model"] == (1, 2)
    logged: list[str] = []
    log = lambda text, *values: logged.append(text % values)
    monkeypatch.setattr("sae_attr.lm.weights.logging.info", log)
    assert jax.tree.structure(setup.params) == jax.tree.structure(plain.params)
    assert logged == ["m.gguf: dequantised from F32 28 · F16 2 tensors"]
    assert study(tmp_path, None, file).lm_key == fingerprint(file)


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
