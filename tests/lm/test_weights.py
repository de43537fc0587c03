"""Loading by bad input, spellings of one checkpoint, dtypes and places; values are
compared in test_parity.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from sae_attr.lm.config_files import load_config
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from tests.miniatures import llama_config, llama_tensors, write_llama, write_model

LM_HEAD = "lm_head.weight"


def load(folder: Path, **options: Any) -> Params:
    return load_lm(str(folder), mesh=make_mesh("data=1"), progress=False, **options)[1]


def assert_same(got: Params, want: Params) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def edited(folder: Path, *drop: str, **add: np.ndarray) -> Path:
    """The folder with tensors taken out and put in; "__" in a name stands for "."."""
    file = folder / "model.safetensors"
    tensors = {
        name: array for name, array in load_file(file).items() if name not in drop
    }
    save_file(
        tensors | {name.replace("__", "."): array for name, array in add.items()}, file
    )
    return folder


# --- bad input


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path) -> None:
    folder = edited(
        write_llama(tmp_path),
        "model.layers.1.mlp.up_proj.weight",
        adapter__weight=np.zeros(2, np.float32),
    )
    with pytest.raises(
        ValueError, match=r"llama model that config.json describes"
    ) as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert lines[1:3] == [
        "- layers.1.mlp.up_proj.weight (missing)",
        "+ adapter.weight (unexpected)",
    ]


def test_a_long_list_of_weights_is_cut(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path, llama_config(n_layers=5), llama_tensors(llama_config(n_layers=2))
    )
    with pytest.raises(ValueError, match=r"\.\.\. and 7 more"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = write_llama(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"model.safetensors is (empty|truncated or corrupt)"
    ):
        load(tmp_path)


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    tensors = llama_tensors(llama_config())
    (write_model(tmp_path, llama_config(), tensors) / "model.safetensors").rename(
        tmp_path / "model-1.safetensors"
    )
    index = {name: f"model-{1 + (name == LM_HEAD)}.safetensors" for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    with pytest.raises(
        ValueError, match=r"lacks model-2.safetensors; download the model completely"
    ):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (write_llama(tmp_path) / "model.safetensors.index.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"model.safetensors.index.json .*(weight_map|JSON)"
    ):
        load(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named(tmp_path: Path, value: float) -> None:
    config = llama_config()
    tensors = llama_tensors(config)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = value
    with pytest.raises(
        ValueError,
        match=r"blocks/v/kernel holds NaN or infinity after loading as float32",
    ):
        load(write_model(tmp_path, config, tensors))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "model type": (
        {"model_type": "mamba"},
        r"model_type 'mamba' is not implemented; known: .*llama",
    ),
    "no model type": ({"model_type": None}, r"model_type None is not implemented"),
    "activation": (
        {"hidden_act": "quick_gelu"},
        r"activation 'quick_gelu' is not implemented; known: .*silu",
    ),
    "rope": (
        {"rope_scaling": {"rope_type": "xpos", "factor": 2.0}},
        r"rope type 'xpos' is not implemented",
    ),
    "rope, old key": (
        {"rope_scaling": {"type": "ntk"}},
        r"rope type 'ntk' is not implemented",
    ),
    "rope, new key": (
        {"rope_parameters": {"rope_type": "proportional"}},
        r"rope type 'proportional' is not",
    ),
    "rope without factor": (
        {"rope_scaling": {"type": "linear"}},
        r"rope type 'linear' needs a factor",
    ),
    "longrope": (
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.0],
                "long_factor": [1.0],
            }
        },
        r"short_factor and long_factor have 2 and 1 entries, but 4 channels",
    ),
    "layer types": (
        {"layer_types": ["full_attention"]},
        r"layer_types .*1.*num_hidden_layers.*2",
    ),
    "kind of layer": (
        {"layer_types": ["full_attention", "chunked_attention"]},
        r"'chunked_attention' is not implem",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_is_not_implemented(tmp_path: Path, case: str) -> None:
    changes, message = BAD_CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        load_config(str(write_model(tmp_path, llama_config() | changes, {})))


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"]
)
def test_a_config_that_lacks_a_key(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in llama_config().items() if name != key}
    with pytest.raises(
        ValueError, match=rf"config.json of a llama model lacks '{key}'"
    ):
        load_config(str(write_model(tmp_path, config, {})))


def test_a_config_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config.json"):
        load_config(str(tmp_path))
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json (is not JSON|holds a list)"):
            load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "leaf"),
    [
        ("vocab", 41, "embed/table"),
        ("vocab", 39, "embed/table"),
        ("d", 32, "blocks/attn_norm/scale"),
        ("d_mlp", 20, "blocks/(up|gate|down)/kernel"),
        ("n_kv_heads", 4, "blocks/[kv]/kernel"),
        ("head_dim", 8, "blocks/[qkvo]/kernel"),
    ],
)
def test_a_shape_that_contradicts_the_config(
    tmp_path: Path, key: str, value: int, leaf: str
) -> None:
    folder = write_model(
        tmp_path, llama_config(**{key: value}), llama_tensors(llama_config())
    )
    with pytest.raises(
        ValueError,
        match=rf"({leaf}) should be \(.*\) by config.json, but the file has \(",
    ):
        load(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.norm.weight", 15), ("model.layers.1.input_layernorm.weight", 17)],
)
def test_a_norm_of_another_length(tmp_path: Path, name: str, shape: int) -> None:
    folder = write_model(
        tmp_path,
        llama_config(),
        llama_tensors(llama_config()) | {name: np.ones(shape, np.float32)},
    )
    with pytest.raises(
        ValueError,
        match=r"norm/scale should be \(16,\) by config.json, but the file has \(1[57],\)",
    ):
        load(folder)


@pytest.mark.parametrize(
    "path", ["no/such/folder", "./gpt2", "/nowhere/at/all", "gpt2", "a/b c"]
)
def test_neither_folder_nor_hub_id(path: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is neither a folder here nor a hub id owner/name\[@revision\]",
    ):
        load_config(path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (write_llama(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks any \*.safetensors file"):
        load(tmp_path)


# --- spellings of one checkpoint


def test_a_tied_model_with_and_without_its_head_in_the_file(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, tie_word_embeddings=True)
    without = load(folder)
    assert "head" not in without
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert_same(load(edited(folder, lm_head__weight=table)), without)


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"- lm_head.weight \(missing\)"):
        load(edited(write_llama(tmp_path), LM_HEAD))


def test_a_second_copy_of_the_weights_is_left_alone(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    save_file(
        {"tok_embeddings.weight": np.zeros(2, np.float32)},
        folder / "consolidated.safetensors",
    )
    assert "head" in load(folder)


GEMMA = llama_config(
    model_type="gemma3_text", head_dim=8, hidden_activation="gelu_pytorch_tanh"
) | {
    "tie_word_embeddings": True,
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_multimodal_gemma_3_is_its_language_model(
    tmp_path: Path, prefix: str
) -> None:
    tensors = llama_tensors(GEMMA)
    cfg, want = load_lm(
        str(write_model(tmp_path / "text", GEMMA, tensors)),
        mesh=make_mesh("data=1"),
        progress=False,
    )
    seen = {name.replace("model.", prefix, 1): array for name, array in tensors.items()}
    vision = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    outer = "model." if prefix.startswith("model") else ""
    for name in (vision, "multi_modal_projector.mm_input_projection_weight"):
        seen[outer + name] = np.ones((3, 3), np.float32)
    head = "lm_head.weight" if outer else "language_model.lm_head.weight"
    seen[head] = tensors["model.embed_tokens.weight"]
    text = {
        name: value
        for name, value in GEMMA.items()
        if name not in ("eos_token_id", "tie_word_embeddings")
    }
    config = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 3},
        "eos_token_id": 2,
    }
    got_cfg, got = load_lm(
        str(write_model(tmp_path / "seen", config, seen)),
        mesh=make_mesh("data=1"),
        progress=False,
    )
    assert got_cfg == cfg
    assert_same(got, want)


def test_gpt2_with_and_without_its_prefix(shared: Path, tmp_path: Path) -> None:
    source = shared / "fixtures/hf/gpt2"
    tensors = load_file(source / "model.safetensors")
    assert all(name.startswith("transformer.") for name in tensors)
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    bare["h.0.attn.bias"] = np.ones(
        (1, 1, 64, 64), np.float32
    )  # the causal mask, which old files carry
    bare["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    folder = write_model(
        tmp_path, json.loads((source / "config.json").read_text()), bare
    )
    assert_same(load(folder), load(source))


# --- dtypes and places


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_file(tmp_path: Path, dtype: str) -> None:
    params = load(write_llama(tmp_path, dtype=ml_dtypes.bfloat16), dtype=dtype)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    for i in range(2):
        kernel = tensors[f"model.layers.{i}.mlp.down_proj.weight"].T
        np.testing.assert_array_equal(
            np.asarray(params["blocks"]["down"]["kernel"][i], np.float32), kernel
        )


PLACES = {
    "embed/table": P("model", None),
    "head/table": P("model", None),
    "blocks/q/kernel": P(None, None, "model"),
    "blocks/o/kernel": P(None, "model", None),
    "blocks/up/kernel": P(None, None, "model"),
    "blocks/down/kernel": P(None, "model", None),
    "blocks/attn_norm/scale": P(),
    "final_norm/scale": P(),
}


@pytest.mark.parametrize("path", PLACES)
def test_weights_lie_where_the_rules_say(tmp_path: Path, path: str) -> None:
    mesh = make_mesh("data=2,model=2")
    leaf: Any = load_lm(str(write_llama(tmp_path)), mesh=mesh, progress=False)[1]
    for key in path.split("/"):
        leaf = leaf[key]
    assert leaf.sharding.is_equivalent_to(
        jax.NamedSharding(mesh, PLACES[path]), leaf.ndim
    )


def test_a_mesh_that_would_cut_heads_apart_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    words = r"1 × 3 cannot split the model's 4 heads \(2 for keys\).*one of 1, 2, 4,"
    for load in (load_config, load_lm):
        with pytest.raises(ValueError, match=words):
            load(str(folder), mesh=make_mesh("model=3"))


@pytest.mark.parametrize("spec", ["model=4", "data=2,model=2", "data=4"])
def test_values_do_not_depend_on_the_mesh(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_llama(tmp_path, vocab=42)  # 42 rows cannot be split over 4
    want = load(folder)
    monkeypatch.setattr(
        "sae_attr.lm.weight_stream.CHUNK_BYTES", 5 * 16 * 4
    )  # tables come in pieces of 5 rows, the last of 2
    cfg, got = load_lm(str(folder), mesh=make_mesh(spec), progress=False)
    assert_same(got, want)
    tokens = np.arange(12).reshape(4, 3)
    out = jax.jit(lambda p: logits(p, forward(p, tokens, cfg=cfg).hidden_btd, cfg=cfg))(
        got
    )
    assert out.shape == (4, 3, 42)
    assert np.isfinite(np.asarray(out)).all()
