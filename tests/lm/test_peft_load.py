"""Adapters against the logits that peft gave for them, both ways of using them, and
what is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.peft_load import load_adapter
from sae_attr.lm.save import save_lm
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from tests.miniatures import llama_config, write_llama

GOLDENS = Path(__file__).parent / "goldens"
CASES = sorted(path.name for path in GOLDENS.iterdir())
TOLERANCE = 2e-4


def load(case: str, mesh: str = "data=1", **options: Any) -> tuple[LMConfig, Params]:
    return load_lm(str(GOLDENS / case), mesh=make_mesh(mesh), progress=False, **options)


def run(cfg: LMConfig, params: Params, tokens_bt: np.ndarray) -> np.ndarray:
    return np.asarray(
        jax.jit(
            lambda p: logits(p, forward(p, tokens_bt, cfg=cfg).hidden_btd, cfg=cfg)
        )(params)
    )


def copied(tmp_path: Path, case: str = "llama_all", **config: Any) -> Path:
    """A copy of an adapter whose config has other values."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDENS / case / "adapter", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def edited(folder: Path, *drop: str, **add: np.ndarray) -> Path:
    """The adapter with tensors taken out and put in; "__" in a name stands for "."."""
    file = folder / "adapter_model.safetensors"
    tensors = {
        name: array for name, array in load_file(file).items() if name not in drop
    }
    save_file(
        tensors | {name.replace("__", "."): array for name, array in add.items()}, file
    )
    return folder


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "kept"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_peft(case: str, merge: bool) -> None:
    golden = np.load(GOLDENS / case / "golden.npz")
    cfg, params = load(
        case, "data=2,model=2", adapter=str(GOLDENS / case / "adapter"), merge=merge
    )
    assert ("lora" in params) != merge
    assert (
        np.abs(run(cfg, params, golden["input_ids"]) - golden["logits"]).max()
        <= TOLERANCE
    )
    cfg, params = load(case)
    assert (
        np.abs(run(cfg, params, golden["input_ids"]) - golden["logits"]).max()
        > 100 * TOLERANCE
    )


def test_merging_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = str(GOLDENS / "phi3/adapter")
    _, want = load("phi3", adapter=adapter)
    monkeypatch.setattr("sae_attr.lm.weight_stream.CHUNK_BYTES", 5 * 16 * 4)
    _, got = load("phi3", "data=2,model=2", adapter=adapter)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_only_the_adapted_layers_change() -> None:
    _, base = load("llama_rslora_down")
    _, merged = load(
        "llama_rslora_down", adapter=str(GOLDENS / "llama_rslora_down/adapter")
    )
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (jnp.abs(a - b) > 0).reshape(len(a), -1).any(1), base, merged
    )
    down = np.asarray(moved["blocks"]["down"].pop("kernel"))
    assert down.tolist() == [True, False, True]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(moved))


def test_a_kept_adapter_can_be_differentiated_scaled_and_taken_out() -> None:
    golden = np.load(GOLDENS / "llama_all/golden.npz")
    cfg, kept = load(
        "llama_all", adapter=str(GOLDENS / "llama_all/adapter"), merge=False
    )
    _, base = load("llama_all")
    tokens_bt = golden["input_ids"]
    off = {**kept, "lora": jax.tree.map(jnp.zeros_like, kept["lora"])}
    np.testing.assert_array_equal(run(cfg, off, tokens_bt), run(cfg, base, tokens_bt))
    without = {name: tree for name, tree in kept.items() if name != "lora"}
    np.testing.assert_array_equal(
        run(cfg, without, tokens_bt), run(cfg, base, tokens_bt)
    )

    def loss(lora: Params) -> jax.Array:
        return forward({**base, "lora": lora}, tokens_bt, cfg=cfg).hidden_btd.sum()

    gradient = jax.jit(jax.grad(loss))(kept["lora"])
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(gradient))


PLACES = {
    "q/a": P(),
    "q/b": P(None, None, "model"),
    "down/a": P(None, "model", None),
    "down/b": P(),
}


@pytest.mark.parametrize("path", PLACES)
def test_a_kept_adapter_lies_where_its_matrices_do(path: str) -> None:
    _, params = load(
        "llama_all",
        "data=2,model=2",
        adapter=str(GOLDENS / "llama_all/adapter"),
        merge=False,
    )
    name, half = path.split("/")
    leaf = params["lora"][name][half]
    assert leaf.sharding.is_equivalent_to(
        jax.NamedSharding(make_mesh("data=2,model=2"), PLACES[path]), leaf.ndim
    )


def test_dtypes() -> None:
    adapter = str(GOLDENS / "llama_all/adapter")
    for merge in (True, False):
        _, params = load("llama_all", adapter=adapter, merge=merge, dtype="bfloat16")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


# --- what is refused

REFUSED = {
    "another type": (
        {"peft_type": "IA3"},
        r"peft_type 'IA3' is not implemented; only 'LORA' is",
    ),
    "dora": ({"use_dora": True}, r"use_dora=True is not implemented; only plain LoRA"),
    "whole modules": (
        {"modules_to_save": ["lm_head"]},
        r"modules_to_save=\['lm_head'\] is not implemented",
    ),
    "biases": ({"bias": "lora_only"}, r"bias 'lora_only' trains biases too"),
    "bias of B": ({"lora_bias": True}, r"lora_bias=True is not implemented"),
    "copied layers": (
        {"layer_replication": [[0, 2]]},
        r"layer_replication=\[\[0, 2\]\] is not implemented",
    ),
    "experts": (
        {"target_parameters": ["experts.gate_up_proj"]},
        r"target_parameters=.* is not implemented",
    ),
    "something of the future": ({"use_nova": 3}, r"use_nova=3 is not implemented"),
    "a start that changes the model": (
        {"init_lora_weights": "pissa_niter_4"},
        r"'pissa_niter_4' changes the base model",
    ),
    "another rank": (
        {"r": 4},
        r"has rank 4 for .*proj by adapter_config.json, but lora_A \(8, \d+\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_is_not_implemented(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load_adapter(copied(tmp_path, **changes))


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", "8", r"adapter_config.json: r is '8'; expected a whole number"),
        ("r", 0, r"r is 0; expected"),
        ("lora_alpha", float("inf"), r"lora_alpha is inf; expected a finite number"),
        ("use_rslora", 1, r"use_rslora is 1; expected true, false or null"),
        (
            "rank_pattern",
            ["q_proj"],
            r"rank_pattern is \['q_proj'\]; expected an object",
        ),
        ("rank_pattern", {"q_proj": "x"}, r"by its patterns, for .*q_proj, r is 'x'"),
        (
            "rank_pattern",
            {"(a+)+b": 8},
            r"the pattern '\(a\+\)\+b' is no module's name or simple expression",
        ),
        ("alpha_pattern", {"[": 8}, r"the pattern '\[' is no"),
    ],
)
def test_values_of_an_adapters_config_that_cannot_be(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_adapter(copied(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    "value", [np.full((8, 16), np.nan, np.float32), np.ones((8, 16), np.int8)]
)
def test_factors_that_are_no_numbers(tmp_path: Path, value: np.ndarray) -> None:
    folder = copied(tmp_path)
    name = next(
        name
        for name in load_file(folder / "adapter_model.safetensors")
        if "q_proj.lora_A" in name
    )
    edited(folder, **{name: value})
    with pytest.raises(
        ValueError,
        match=r"adapter_model.safetensors: .*q_proj.lora_A.* holds \w+ numbers, NaN or infinity",
    ):
        load_adapter(folder)


def test_files_that_are_broken(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds no adapter_config.json, so it is no PEFT adapter"
    ):
        load_adapter(tmp_path)
    folder = copied(tmp_path)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"adapter_config.json cannot be read \(a list where an object"
    ):
        load_adapter(folder)
    shutil.copy(GOLDENS / "llama_all/adapter/adapter_config.json", folder)
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj.lora_A alone"):
        load_adapter(edited(folder, f"{Q0}B.weight"))
    strange = {"base_model__model__lm_head__weight": np.zeros((3, 3), np.float32)}
    with pytest.raises(
        ValueError,
        match=r"also holds base_model.model.lm_head.weight \(3, 3\); only LoRA of linear maps",
    ):
        load_adapter(edited(folder, **strange))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"lacks adapter_model.safetensors \(or .bin\)"
    ):
        load_adapter(folder)


def test_an_adapter_of_a_model_with_other_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"does not fit this llama model of 3 layers:\nh.0.attn.c_attn: no such matrix",
    ):
        load("llama_all", adapter=str(GOLDENS / "gpt2/adapter"))
    with pytest.raises(
        ValueError,
        match=r"does not fit this mixtral model .*\nlayers.0.mlp.down_proj: no such matrix",
    ):
        load("mixtral_attention", adapter=str(GOLDENS / "llama_all/adapter"))


def test_an_adapter_of_a_model_with_other_sizes(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, n_layers=2, d=32)
    with pytest.raises(
        ValueError, match=r"does not fit this llama model of 2 layers"
    ) as error:
        load_lm(
            str(folder),
            mesh=make_mesh("data=1"),
            adapter=str(GOLDENS / "llama_all/adapter"),
            progress=False,
        )
    lines = str(error.value).splitlines()
    assert "layers.2.mlp.down_proj: no such matrix can be adapted here" in lines
    assert (
        "blocks/q/kernel of layer 0 is (32, 32) in the model and (16, 16) in the "
        "adapter" in lines
    )
    assert lines[-2].startswith("... and")


def test_fused_matrices_of_other_sizes() -> None:
    adapter = load_adapter(GOLDENS / "phi3/adapter")
    cfg, params = load("phi3")
    shapes = {
        f"blocks/{n}/kernel": leaf["kernel"].shape
        for n, leaf in params["blocks"].items()
        if "kernel" in leaf
    }
    adapter.check(cfg, shapes)
    module = next(name for name in adapter.matrices if name.endswith("qkv_proj"))
    a_ri, b_or = adapter.matrices[module]
    adapter.matrices[module] = a_ri, b_or[:-1]  # type: ignore[index]
    with pytest.raises(
        ValueError,
        match=r"blocks/v/kernel of layer 0 is \(16, 8\) in the model and \(16, 7\)",
    ):
        adapter.check(cfg, shapes)


def test_parameters_with_an_adapter_apart_are_not_saved(tmp_path: Path) -> None:
    _, params = load(
        "llama_all", adapter=str(GOLDENS / "llama_all/adapter"), merge=False
    )
    with pytest.raises(ValueError, match=r"keep an adapter apart"):
        save_lm(tmp_path, llama_config(), params)
