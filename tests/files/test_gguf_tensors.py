"""Tensors of GGUF files: every type that the gguf package dequantises, cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.files.gguf_header import read_header
from sae_attr.files.gguf_tensors import map_tensors
from sae_attr.lm.gguf_weights import quantisation, quantisation_text
from sae_attr.lm.weights import load_lm
from tests.gguf_files import metadata_of, tensors_of, write_gguf
from tests.miniatures import write_llama

gguf = pytest.importorskip("gguf", reason="needs the gguf package")

WIDTH = 256  # numbers that the largest blocks pack together


def dequantised_types() -> list[Any]:
    """Every type of the package's that it turns into numbers."""
    out = []
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        out.append(kind)
    return [*out, gguf.GGMLQuantizationType.F64]


def random_rows(kind: Any, rows: int, columns: int, seed: int) -> np.ndarray:
    """The bytes of rows of random blocks whose numbers are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    if kind.name in ("F32", "F64"):
        dtype = "<f4" if kind.name == "F32" else "<f8"
        return rng.standard_normal((rows, columns)).astype(dtype).view(np.uint8)
    sound: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        while len(sound) < rows * columns // block:
            raw = rng.integers(0, 256, (64, size), dtype=np.uint8)
            numbers = gguf.dequantize(raw, kind)
            small = np.isfinite(numbers).all(-1) & (abs(numbers) < 1e4).all(-1)
            sound += list(raw[small])
    count = rows * columns // block
    return np.stack(sound[:count]).reshape(rows, -1)


def write_raw(file: Path, tensors: dict[str, tuple[Any, np.ndarray]]) -> Path:
    """A GGUF file of tensors as bytes of their types."""
    writer = gguf.GGUFWriter(file, "llama")
    for name, (kind, raw) in tensors.items():
        data = raw.view("<f8") if kind.name == "F64" else raw
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_there_are_as_many_types_as_expected() -> None:
    assert len(dequantised_types()) >= 23


@pytest.mark.parametrize("kind", dequantised_types(), ids=lambda kind: kind.name)
def test_every_type_cut_anywhere(tmp_path: Path, kind: Any) -> None:
    raw = random_rows(kind, 12, 2 * WIDTH, seed=int(kind))
    file = write_raw(tmp_path / "m.gguf", {"x": (kind, raw)})
    tensor = map_tensors(read_header(file).tensors.values())["x"]
    whole = raw.view("<f8") if kind.name == "F64" else gguf.dequantize(raw, kind)
    assert (tensor.shape, tensor.dtype) == (whole.shape, whole.dtype)
    assert np.std(whole) > 0
    cuts: list[Any] = [
        slice(None),
        slice(3, 7),
        (slice(1, 9), slice(200, 300)),
        (..., slice(5, 6)),
        (slice(None), slice(0, None, 2)),
        (None, slice(2, 4)),
        (None, None, slice(0, 0)),
    ]
    for cut in cuts:
        np.testing.assert_array_equal(np.asarray(tensor[cut]), whole[cut])
    np.testing.assert_array_equal(
        tensor.T[30:290, 4:].astype("f4"), whole.T[30:290, 4:].astype("f4")
    )
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(tensor.reordered(order)[2:5], whole[order][2:5])
    stacked = tensor.reshape(3, 4, 2 * WIDTH)
    np.testing.assert_array_equal(stacked[1].T[7:9], whole[4:8].T[7:9])
    np.testing.assert_array_equal(stacked[:, 2], whole[2::4])


def test_a_model_that_has_a_tensor_of_every_type(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"d": WIDTH, "d_mlp": WIDTH, "vocab": 8, "n_layers": 4}
    folder = write_llama(tmp_path / "hf", n_heads=4, n_kv_heads=4, **shape)
    config = json.loads((folder / "config.json").read_text())
    tensors = tensors_of(folder, config)
    matrices = sorted(name for name, tensor in tensors.items() if tensor.ndim == 2)
    kinds = [kind for kind in dequantised_types() if kind.name != "F64"]
    assert len(matrices) >= len(kinds)
    raw, dequantised = {}, dict(tensors)
    for number, name in enumerate(matrices):
        kind = kinds[number % len(kinds)]
        raw[name] = (kind, random_rows(kind, len(tensors[name]), WIDTH, seed=number))
        dequantised[name] = np.asarray(gguf.dequantize(raw[name][1], kind))
    keys = metadata_of(config)
    packed = write_gguf(tmp_path / "q.gguf", "llama", keys, tensors, raw=raw)
    plain = write_gguf(tmp_path / "f.gguf", "llama", keys, dequantised)
    cfg, params = load_lm(str(packed), progress=False)
    same, want = load_lm(str(plain), progress=False)
    assert cfg == same
    jax.tree.map(np.testing.assert_array_equal, params, want)
    counts = quantisation(read_header(packed))
    assert sum(counts.values()) == len(tensors)
    assert set(counts) == {kind.name for kind in kinds}
    assert quantisation_text(counts).startswith(f"F32 {counts['F32']} · ")


def test_types_without_numbers_are_refused(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.I32
    raw = np.zeros((2, 64), np.int32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match=r"'x' is stored as I32, which the gguf package"
    ):
        map_tensors(read_header(tmp_path / "m.gguf").tensors.values())
