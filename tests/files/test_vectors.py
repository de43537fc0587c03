"""A saved vector is one however it was saved, and what is none is said in one line."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_attr.files.torch_writing import write_torch
from sae_attr.files.vectors import read_vector, read_vectors

V = np.arange(1, 6, dtype=np.float32)
WAYS: dict[str, Any] = {
    "bare.npy": lambda p: np.save(p, V),
    "wide.npy": lambda p: np.save(p, V[None, None].astype(np.float64)),
    "fortran.npy": lambda p: np.save(p, np.asfortranarray(V[None])),
    "half.npy": lambda p: np.save(p, V.astype(np.float16)),
    "one.npz": lambda p: np.savez(
        p, mean_d=V, norm=3.0, tokens=np.int64(9), site=np.array("layer1")
    ),
    "bare.pt": lambda p: write_torch(p, V),
    "bfloat16.pth": lambda p: write_torch(p, V.astype(ml_dtypes.bfloat16)),
    "list.pt": lambda p: write_torch(p, [V]),
    "dict.pt": lambda p: write_torch(p, {"layer": 3, "vector": V}),
    "by layer.pt": lambda p: write_torch(p, {15: V}),
    "deep.bin": lambda p: write_torch(p, {"steering": {"15": V}}),
    "one.safetensors": lambda p: save_file({"v": V}, p),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_vector_is_read_however_it_was_saved(tmp_path: Path, name: str) -> None:
    WAYS[name](tmp_path / name)
    vector = read_vector(tmp_path / name, 5)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, V)


def test_several_by_name(tmp_path: Path) -> None:
    save_file({"b": V, "a": np.stack([V, 2 * V])}, tmp_path / "two.safetensors")
    read = read_vectors(tmp_path / "two.safetensors")
    assert {name: value.shape for name, value in read.items()} == {
        "a": (2, 5),
        "b": (5,),
    }
    np.save(tmp_path / "rows.npy", np.stack([V, 2 * V]))
    assert read_vectors(tmp_path / "rows.npy")["rows"].shape == (2, 5)
    write_torch(tmp_path / "list.pt", [V, 2 * V])
    assert [*read_vectors(tmp_path / "list.pt")] == ["0", "1"]


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def evil(path: Path) -> None:
    if path.suffix == ".npy":
        np.save(path, np.array([Evil(path.parent / "ran")], object), allow_pickle=True)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl",
            pickle.dumps({"v": Evil(path.parent / "ran")}, protocol=2),
        )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HUGE = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000,), }"
BAD: dict[str, tuple[str, Any, str]] = {
    "pickle": ("v.pt", evil, "wants to run .*; refused"),
    "objects": ("v.npy", evil, "is no array of numbers"),
    "text": ("v.npy", lambda p: p.write_text("1 2 3"), "is no array of numbers"),
    "a shape beyond the file": ("v.npy", lambda p: p.write_bytes(HUGE + b" " * 50 + b"\n" + bytes(20)), "is no array"),
    "cut short": ("v.npy", lambda p: (np.save(p, V), p.write_bytes(p.read_bytes()[:-3])), "is no array"),
    "empty": ("v.npy", lambda p: p.write_bytes(b""), "is no array of numbers"),
    "whole numbers": ("v.npy", lambda p: np.save(p, np.arange(5)), "holds int64, not floating-point"),
    "words": ("v.npy", lambda p: np.save(p, np.array(["a", "b"])), "holds <U1, not floating-point"),
    "records": ("v.npy", lambda p: np.save(p, np.zeros(3, [("a", "f4")])), "not floating-point"),
    "NaN": ("v.npy", lambda p: np.save(p, V * np.nan), "holds NaN or infinity"),
    "beyond float32": ("v.npy", lambda p: np.save(p, V.astype(np.float64) * 1e300), "beyond float32"),
    "three axes": ("v.npy", lambda p: np.save(p, np.ones((2, 3, 4))), r"has shape \[2, 3, 4\]; a vector is \[d\]"),
    "one number": ("v.npy", lambda p: np.save(p, np.float32(1)), "holds no vector"),
    "several": ("v.npy", lambda p: np.save(p, np.ones((2, 5))), r"holds 2 vectors \('v'\) where one is needed"),
    "another width": ("v.npy", lambda p: np.save(p, np.ones(4)), "'v' has 4 numbers, but 5 are needed"),
    "a pointer": ("v.pt", lambda p: p.write_text(POINTER), "Git LFS"),
    "a pointer, npy": ("v.npy", lambda p: p.write_text(POINTER), "Git LFS"),
    "another kind": ("v.csv", lambda p: p.write_text("1,2"), "not a tensor file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_vector_is_one_line_and_runs_nothing(
    tmp_path: Path, kind: str
) -> None:
    name, make, message = BAD[kind]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_vector(tmp_path / name, 5)
    assert name in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"v\.npy is not a file"):
        read_vectors(tmp_path / "v.npy")
