"""Packed experts: every byte, a round trip, transformers' own dequantisation, and a
whole gpt-oss from packed files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_attr.lm.mxfp4 import PackedExperts, dequantise, join_packed
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def number(nibble: int) -> float:
    """e2m1 from its bits: sign, exponent of bias 1, mantissa; exponent 0 is subnormal."""
    sign, exponent, mantissa = nibble >> 3, (nibble >> 1) & 3, nibble & 1
    size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
    return -size if sign else size


def pack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[..., out, in]` -> blocks `[..., out, in / 32, 16]` and scales: the nearest fp4
    under a power of two a block.
    """
    groups = matrix.reshape(*matrix.shape[:-1], -1, 32)
    largest = np.abs(groups).max(-1)
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1.0))).astype(int) - 2
    scaled = groups / 2.0 ** exponent[..., None]
    nibbles = np.abs(np.abs(scaled)[..., None] - np.array(VALUES)).argmin(-1) + 8 * (
        scaled < 0
    )
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).astype(np.uint8), (
        exponent + 127
    ).astype(np.uint8)


def test_every_byte() -> None:
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 1, 16)
    scales = np.arange(120, 136, dtype=np.uint8).reshape(16, 1)
    want = [
        [number(n) * 2.0 ** (s - 127) for byte in row for n in (byte & 15, byte >> 4)]
        for row, s in zip(blocks[:, 0].tolist(), scales[:, 0].tolist())
    ]
    np.testing.assert_array_equal(dequantise(blocks, scales), want)


@pytest.mark.parametrize("scale", [0, 1, 127, 254])
def test_the_ends_of_the_scale(scale: int) -> None:
    got = dequantise(np.full((1, 16), 0x21, np.uint8), np.full(1, scale, np.uint8))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            got[:2],
            np.array([0.5, 1.0]).astype(np.float32) * np.float32(2.0 ** (scale - 127)),
        )


def test_round_trip() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.choice(
        [*VALUES, *[-v for v in VALUES]], (3, 10, 64)
    ) * 2.0 ** rng.integers(-9, 9, (3, 10, 2)).repeat(32, -1)
    matrix[..., ::32] = 6.0 * np.sign(
        matrix[..., ::32] + 0.1
    )  # a block's largest number, which decides its scale
    matrix = matrix.astype(np.float32)
    again = dequantise(*pack(dequantise(*pack(matrix))))
    np.testing.assert_array_equal(again, dequantise(*pack(matrix)))
    loss = np.abs(again - matrix).reshape(3, 10, 2, 32).max(-1) / np.abs(
        matrix
    ).reshape(3, 10, 2, 32).max(-1)
    assert loss.max() <= 0.25


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_same() -> None:
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 10, 2, 16)).astype(np.uint8)
    scales = rng.integers(100, 150, (3, 10, 2)).astype(np.uint8)
    want = mxfp4.convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
    ).numpy()
    packed = PackedExperts("x", blocks, scales)
    assert packed.shape == want.shape
    for expert in range(3):
        np.testing.assert_array_equal(packed[expert, :, 1::2], want[expert, :, 1::2])


@pytest.mark.parametrize(
    ("blocks", "scales"),
    [((2, 4, 1, 8), (2, 4, 1)), ((2, 4, 2, 16), (2, 4, 1)), ((4, 1, 16), (4, 1))],
)
def test_other_layouts_are_refused(
    blocks: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    tensors = {
        "x_blocks": np.zeros(blocks, np.uint8),
        "x_scales": np.zeros(scales, np.uint8),
        "y": np.zeros(1),
    }
    with pytest.raises(
        ValueError,
        match=r"x: _blocks .* is not MXFP4; expected uint8 \[e, out, in / 32, 16\]",
    ):
        join_packed(tensors)
    with pytest.raises(ValueError, match=r"is not MXFP4"):
        PackedExperts(
            "x", np.zeros((2, 4, 2, 16), np.int8), np.zeros((2, 4, 2), np.uint8)
        )


@pytest.mark.parametrize("mesh", ["data=1", "data=2,model=2"])
def test_a_packed_model_is_the_same_as_its_dequantised_copy(
    shared: Path, tmp_path: Path, mesh: str
) -> None:
    source = shared / "fixtures/hf/gpt_oss"
    plain, packed = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        plain[name] = packed[name] = tensor
        if name.endswith(
            "gate_up_proj"
        ):  # its 32 inputs are a block; the 24 inputs of down_proj are none
            blocks, scales = pack(np.swapaxes(tensor, 1, 2))
            plain[name] = np.ascontiguousarray(
                np.swapaxes(dequantise(blocks, scales), 1, 2)
            )
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            del packed[name]
    trees = []
    for kind, tensors in (("plain", plain), ("packed", packed)):
        (tmp_path / kind).mkdir()
        shutil.copy(source / "config.json", tmp_path / kind)
        save_file(tensors, tmp_path / kind / "model.safetensors")
        trees.append(
            load_lm(str(tmp_path / kind), mesh=make_mesh(mesh), progress=False)[1]
        )
    jax.tree.map(np.testing.assert_array_equal, *trees)
