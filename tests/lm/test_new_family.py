"""A new family is an entry of `FAMILIES` and, where its tensors have names of their own,
one of `LAYOUTS`: shown by adding one, writing it and reading it back.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_families import FAMILIES, Family
from sae_attr.lm.hf_layouts import LAYOUTS, Layout, LeafSource, transposed
from sae_attr.lm.hf_shared import llama_like
from sae_attr.lm.model import forward
from sae_attr.lm.params import init_params
from sae_attr.lm.save import save_lm
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

REPO = Path(__file__).resolve().parent.parent.parent
HF = {
    "model_type": "toy",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "query_gain": 2.0,
}


def read_toy(hf: Mapping[str, Any]) -> LMConfig:
    cfg = llama_like(hf, post_norm=True, tied_head=True)
    return replace(cfg, query_scale=cfg.query_scale * hf["query_gain"])


TOY = Family(read_toy, FAMILIES["llama"].keys | {"query_gain"}, {"rope_theta": 500.0})
TOY_LAYOUT = Layout(
    {
        "q/kernel": LeafSource("layers.{}.attn.wq.weight", transposed),
        "attn_post_norm/scale": LeafSource("layers.{}.norm_a.weight"),
        "mlp_post_norm/scale": LeafSource("layers.{}.norm_b.weight"),
    },
    prefix="toy.",
)


def test_a_family_is_two_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setitem(LAYOUTS, "toy", TOY_LAYOUT)
    cfg = config_from_hf(HF)
    params = init_params(cfg, jax.random.key(0))
    save_lm(tmp_path, HF, params)
    read_cfg, again = load_lm(str(tmp_path), mesh=make_mesh(), progress=False)
    assert read_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, again, params)
    tokens_bt = jnp.arange(8)[None]
    hidden = forward(again, tokens_bt, cfg=read_cfg).hidden_btd
    assert np.isfinite(np.asarray(hidden)).all()
    names = json.dumps(sorted(_tensors(tmp_path)))
    assert "toy.layers.0.attn.wq.weight" in names
    with pytest.raises(ValueError, match="query_gian"):
        config_from_hf({**HF, "query_gian": 3.0})


def _tensors(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return list(file.keys())


def test_no_other_file_of_the_library_names_a_family() -> None:
    # What llama.cpp calls a family and its tensors stands in tables of its own.
    tables = {"hf_families.py", "hf_layouts.py", "gguf_config.py", "gguf_weights.py"}
    naming = set()
    for path in sorted((REPO / "sae_attr/lm").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and node.value in set(FAMILIES):
                naming |= (
                    {(path.name, node.value)} if path.name not in tables else set()
                )
    # A multimodal config.json may leave out what its text part is.
    assert naming == {("hf_config.py", "gemma3_text")}
