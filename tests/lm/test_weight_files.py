"""Every file of a model folder is used or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.files.torch_writing import write_torch
from sae_attr.lm.config_files import load_config
from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh
from tests.miniatures import llama_config, llama_tensors, write_llama, write_model

INDEX = "model.safetensors.index.json"


def load(folder: Path, **options: Any) -> Params:
    return load_lm(str(folder), mesh=make_mesh("data=1"), progress=False, **options)[1]


def refuses(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder, **options)


def same(got: Params, want: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def sharded(
    folder: Path, tensors: dict[str, np.ndarray], names: tuple[str, ...] = ("a", "b")
) -> Path:
    """The tensors in turn in several files, and their index."""
    parts = {
        f"{name}.safetensors": dict(list(tensors.items())[k :: len(names)])
        for k, name in enumerate(names)
    }
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    return folder


def without_weights(folder: Path) -> Path:
    (write_llama(folder) / "model.safetensors").unlink()
    return folder


TENSORS = llama_tensors(llama_config())


# ---- heads


def test_a_tied_config_whose_file_has_another_head(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]},
        folder / "model.safetensors",
    )
    refuses(
        folder,
        r"config.json says .* \(tie_word_embeddings\), but lm_head.weight in model.safetensors differs from embed",
    )
    short = tensors["model.embed_tokens.weight"][:-1].copy()
    save_file(tensors | {"lm_head.weight": short}, folder / "model.safetensors")
    refuses(folder, r"lm_head.weight in model.safetensors differs")


@pytest.mark.parametrize(
    "name", ["v_head.summary.weight", "score.weight", "value_head.weight"]
)
def test_a_value_head_is_left_out_with_a_line(tmp_path: Path, name: str) -> None:
    folder = write_llama(tmp_path)
    want = load(folder)
    save_file(
        TENSORS | {name: np.ones((1, 16), np.float32)}, folder / "model.safetensors"
    )
    with pytest.warns(
        RuntimeWarning,
        match=rf"{name} is a head beside the language model's and is left out",
    ):
        same(load(folder), want)


# ---- files that contradict each other


def test_an_index_of_other_shards_beside_a_single_file(tmp_path: Path) -> None:
    sharded(write_llama(tmp_path), llama_tensors(llama_config(), seed=7))
    refuses(
        tmp_path,
        r"holds model.safetensors and the shards of model.safetensors.index.json \(a.safetensors",
    )


def test_a_leftover_index_whose_shards_are_gone(tmp_path: Path) -> None:
    want = load(write_llama(tmp_path))
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {name: "model-1.safetensors" for name in TENSORS}})
    )
    same(load(tmp_path), want)


def test_shards_are_read_with_and_without_their_index(tmp_path: Path) -> None:
    want = load(write_llama(tmp_path / "whole"))
    names = ("model-00001-of-00002", "model-00002-of-00002")
    folder = sharded(without_weights(tmp_path / "shards"), TENSORS, names)
    same(load(folder), want)
    (folder / INDEX).unlink()
    same(load(folder), want)
    (folder / f"{names[1]}.safetensors").unlink()
    refuses(
        folder, r"lacks model-00002-of-00002.safetensors; download the model completely"
    )


def test_an_index_that_says_another_file(tmp_path: Path) -> None:
    folder = sharded(without_weights(tmp_path), TENSORS)
    stated = json.loads((folder / INDEX).read_text())
    stated["weight_map"]["lm_head.weight"] = "a.safetensors"
    held = "a" if "lm_head.weight" in load_file(folder / "a.safetensors") else "b"
    stated["weight_map"]["lm_head.weight"] = (
        f"{'b' if held == 'a' else 'a'}.safetensors"
    )
    (folder / INDEX).write_text(json.dumps(stated))
    refuses(
        folder,
        r"index.json says that [ab].safetensors holds lm_head.weight, but it does not",
    )


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(without_weights(tmp_path), TENSORS)
    for name in ("a", "b"):
        tensors = load_file(folder / f"{name}.safetensors")
        factor = 1 if name == "a" else 2
        save_file(
            tensors | {"model.norm.weight": factor * TENSORS["model.norm.weight"]},
            folder / f"{name}.safetensors",
        )
    refuses(
        folder,
        r"a.safetensors and .*b.safetensors both hold norm.weight, with other numbers",
    )


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x", ""]
)
def test_an_index_that_points_outside(tmp_path: Path, name: str) -> None:
    folder = without_weights(tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    refuses(
        folder,
        r"index.json: weight_map names .* which lies outside the folder; refused",
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"a": 1}}',
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '"x"',
        "[" * 9999,
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (without_weights(tmp_path) / INDEX).write_text(text)
    refuses(tmp_path, r"model.safetensors.index.json .*weight_map")


def test_a_file_of_weights_that_nothing_names(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    for name in (
        "consolidated.00",
        "model.fp16",
        "optimizer",
    ):  # copies, and what training keeps
        save_file({"a": np.ones(1, np.float32)}, folder / f"{name}.safetensors")
    load(folder)
    save_file(
        {"a": np.ones(1, np.float32)}, folder / "model-00001-of-00002.safetensors"
    )
    refuses(
        folder,
        r"holds model-00001-of-00002.safetensors beside model.safetensors, which nothing says",
    )


# ---- adapters


def add_adapter(folder: Path, base: str = "owner/base") -> Path:
    folder.mkdir(exist_ok=True)
    said = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(said))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {
        name.format("A"): np.ones((1, 16), np.float32),
        name.format("B"): np.ones((16, 1), np.float32),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_given_as_model(tmp_path: Path) -> None:
    folder = add_adapter(tmp_path)
    message = r"holds a PEFT adapter \(adapter_config.json\) and no model: give 'owner/base', which adapter_config.json names"
    refuses(folder, message)
    with pytest.raises(ValueError, match=message):
        load_config(str(folder))
    (folder / "config.json").write_text(
        json.dumps(llama_config())
    )  # some trainers write it beside the adapter
    refuses(folder, message)


def test_an_adapter_in_a_models_folder(tmp_path: Path) -> None:
    want = load(
        write_llama(tmp_path / "model"), adapter=str(add_adapter(tmp_path / "adapter"))
    )
    folder = add_adapter(write_llama(tmp_path / "both"))
    refuses(
        folder,
        r"holds a model \(config.json\) and an adapter \(adapter_config.json\): give the folder as adapter too",
    )
    same(load(folder, adapter=str(folder)), want)


# ---- other formats


def test_a_file_of_torch_alone_is_read(tmp_path: Path) -> None:
    want = load(write_llama(tmp_path / "want"))
    folder = without_weights(tmp_path / "bin")
    write_torch(folder / "pytorch_model.bin", TENSORS)
    same(load(folder), want)
    (folder / "pytorch_model.bin").unlink()
    names = list(TENSORS)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, part in parts.items():
        write_torch(folder / file, {name: TENSORS[name] for name in part})
    same(load(folder), want)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    same(load(folder), want)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json"]
)
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    folder = (
        write_llama(tmp_path) if name == "config.json" else without_weights(tmp_path)
    )
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    refuses(
        folder, rf"{name} is a Git LFS pointer, not the file itself; run `git lfs pull`"
    )


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4"]
)
def test_quantised_models_are_named(tmp_path: Path, method: str) -> None:
    folder = write_llama(
        tmp_path, quantization_config={"quant_method": method, "bits": 4}
    )
    refuses(
        folder,
        rf"config.json: quantization_config \(quant_method '{method}'\) says that the weights are quantised",
    )


@pytest.mark.parametrize(
    "name",
    ["self_attn.q_proj.qweight", "mlp.up_proj.weight_scale_inv", "mlp.up_proj.SCB"],
)
def test_quantised_weights_without_their_config(tmp_path: Path, name: str) -> None:
    extra = {f"model.layers.0.{name}": np.ones((2, 2), np.float32)}
    folder = write_model(tmp_path, llama_config(), TENSORS | extra)
    refuses(
        folder,
        rf"layers.0.{name} belongs to quantised weights, whose config.json has a quantization_config",
    )


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, bool, ml_dtypes.float8_e4m3fn]
)
def test_whole_numbers_without_scales(tmp_path: Path, dtype: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = write_model(
        tmp_path, llama_config(), TENSORS | {name: (TENSORS[name] > 0).astype(dtype)}
    )
    refuses(
        folder,
        r"model.safetensors: layers.1.mlp.up_proj.weight holds \w+ numbers without scales",
    )


def test_names_that_mean_harm_are_shown_escaped(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path,
        llama_config(),
        TENSORS | {"\x1b[2J\nx": np.ones(1, np.float32), "y" * 9999: np.ones(2)},
    )
    with pytest.raises(ValueError, match=r"\(unexpected\)") as error:
        load(folder)
    assert "\x1b" not in str(error.value)
    assert max(map(len, str(error.value).splitlines())) < 400


def test_folders_in_the_place_of_files(tmp_path: Path) -> None:
    (without_weights(tmp_path) / "model.safetensors").mkdir()
    refuses(tmp_path, r"lacks any \*.safetensors file")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    refuses(tmp_path, r"holds no config.json")


def test_shapes_are_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a buffer was made")

    monkeypatch.setattr("sae_attr.lm.weight_stream._programs", never)
    folder = write_model(tmp_path, llama_config(intermediate_size=2**24), TENSORS)
    refuses(
        folder,
        r"blocks/\w+/kernel should be .*16777216.* by config.json, but the file has \((16, 24|24, 16)\)",
    )
