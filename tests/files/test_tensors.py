"""Tensor files: what is read equals what was written, nothing hostile runs, damage is
an error and never a crash.
"""

import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_attr.files import torch_file, zip_members
from sae_attr.files.row_source import RowSource
from sae_attr.files.tensors import read_tensors
from sae_attr.files.torch_file import read_torch

X = np.arange(12, dtype=np.float32).reshape(3, 4)
STORAGES = {
    "float32": "FloatStorage",
    "int64": "LongStorage",
    "bfloat16": "BFloat16Storage",
    "bool": "BoolStorage",
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(f"I{v}\n".encode() for v in values) + b"t"


def tensor(
    key: str, storage: str, numel: int, size: tuple, stride: tuple, offset: int = 0
) -> bytes:
    """The opcodes that torch.save writes for one tensor."""
    pid = (
        b"("
        + text("storage")
        + f"ctorch\n{storage}\n".encode()
        + text(key)
        + text("cpu")
        + f"I{numel}\ntQ".encode()
    )
    tail = (
        f"I{offset}\n".encode()
        + numbers(size)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + tail


def of(array: np.ndarray, key: str = "0") -> bytes:
    strides = tuple(s // array.itemsize for s in array.strides)
    return tensor(key, STORAGES[array.dtype.name], array.size, array.shape, strides)


def save_torch(
    path: Path,
    entries: dict[str, bytes],
    arrays: dict[str, np.ndarray],
    data: bytes | None = None,
) -> Path:
    """A torch zip file written without torch; `entries` are the opcodes of each value,
    `data` replaces the pickle.
    """
    body = (
        b"\x80\x02}("
        + b"".join(text(name) + value for name, value in entries.items())
        + b"u."
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ae/data.pkl", body if data is None else data)
        archive.writestr("ae/byteorder", "little")
        for key, array in arrays.items():
            archive.writestr(f"ae/data/{key}", array.tobytes())
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_safetensors_are_mapped_and_equal(tmp_path: Path, dtype: str) -> None:
    array = X.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    save_file({"a": array, "b": X[0].copy()}, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert isinstance(found["a"], np.memmap)
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"], X[0])


def test_npz_is_mapped_where_stored_and_loaded_where_compressed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, f=np.asfortranarray(X), scalar=np.int64(3))
    np.savez_compressed(tmp_path / "b.npz", x=X)
    stored = read_tensors(tmp_path / "a.npz")
    assert isinstance(stored["x"], np.memmap)
    for found in (stored["x"], stored["f"], read_tensors(tmp_path / "b.npz")["x"]):
        np.testing.assert_array_equal(found, X)
    assert stored["scalar"] == 3


def test_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="not plain numbers; save it as float32"):
        read_tensors(tmp_path / "a.npz")


def test_torch_zip_gives_strided_views_and_plain_values(tmp_path: Path) -> None:
    half = X.astype(ml_dtypes.bfloat16)
    entries = {
        "w": of(X),
        "t": tensor("0", "FloatStorage", 12, (4, 3), (1, 4)),
        "row": tensor("0", "FloatStorage", 12, (4,), (1,), 8),
        "k": of(np.array(5, np.int64), "1"),
        "h": of(half, "2"),
        "step": b"K\x07",
        "act": text("TopK"),
    }
    arrays = {"0": X, "1": np.array(5, np.int64), "2": half}
    path = save_torch(tmp_path / "ae.pt", entries, arrays)
    found = read_torch(path)
    assert isinstance(found["w"], np.memmap)
    for name, value in {
        "w": X,
        "t": X.T,
        "row": X[2],
        "k": np.array(5),
        "h": half,
    }.items():
        np.testing.assert_array_equal(found[name], value)
    assert (found["step"], found["act"]) == (7, "TopK")
    assert sorted(read_tensors(path)) == ["h", "k", "row", "t", "w"]


def test_nested_torch_dicts_get_dotted_names(tmp_path: Path) -> None:
    path = save_torch(
        tmp_path / "x.pth", {"state_dict": b"}(" + text("w") + of(X) + b"u"}, {"0": X}
    )
    assert list(read_tensors(path)) == ["state_dict.w"]


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (os.system, r"\w+\.system"),
        (eval, "__builtin__.eval"),
        (getattr, "__builtin__.getattr"),
    ],
)
def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, call: Any, wanted: str
) -> None:
    flag = tmp_path / "ran"
    data = pickle.dumps({"w": Evil(call, f"touch {flag}")}, protocol=2)
    path = save_torch(tmp_path / "evil.pt", {}, {}, data)
    with pytest.raises(
        ValueError, match=rf"evil\.pt wants to run {wanted}; refused.*safetensors"
    ):
        read_tensors(path)
    assert not flag.exists()


@pytest.mark.parametrize(
    "value",
    [
        tensor("0", "FloatStorage", 12, (3, 5), (4, 1)),
        tensor("0", "FloatStorage", 12, (3, 4), (4, 1), 1),
        tensor("0", "FloatStorage", 12, (3, 4), (-4, 1), 11),
        tensor("0", "FloatStorage", 12, (3, 4), (4, 1), -1),
        tensor("0", "FloatStorage", 12, (1 << 40,), (0,)),
        tensor("0", "FloatStorage", 99, (3, 4), (4, 1)),
        tensor("0", "FloatStorage", -1, (3, 4), (4, 1)),
        tensor("9", "FloatStorage", 12, (3, 4), (4, 1)),
        tensor("0", "FloatStorage", 12, (3, 4), (4,)),
        b"r\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00",
        b"Q",
    ],
)
def test_hostile_tensors_and_lengths_are_errors(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_tensors(save_torch(tmp_path / "x.pt", {"w": value}, {"0": X}))


def test_a_pickle_cannot_change_what_it_is_given(tmp_path: Path) -> None:
    # BUILD with a dict state writes into an object's __dict__; the next load must not
    # notice.
    build = b"ctorch._utils\n_rebuild_tensor_v2\n}(" + text("x") + b"K\x01ub"
    save_torch(tmp_path / "a.pt", {"w": build, "v": of(X)}, {"0": X})
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pt")["v"], X)
    np.testing.assert_array_equal(
        read_tensors(save_torch(tmp_path / "b.pt", {"w": of(X)}, {"0": X}))["w"], X
    )


def test_cyclic_and_non_dict_pickles_are_errors(tmp_path: Path) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(ValueError, match="more than 1,000,000 entries"):
        read_tensors(
            save_torch(tmp_path / "a.pt", {}, {}, pickle.dumps(cycle, protocol=2))
        )
    with pytest.raises(
        ValueError, match="holds list at its top, not a dict of tensors"
    ):
        read_tensors(
            save_torch(tmp_path / "b.pt", {}, {}, pickle.dumps([1], protocol=2))
        )


def test_a_few_bytes_that_stand_for_many_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_file, "_MAX_ENTRIES", 10_000)
    nested: Any = {}
    for _ in range(7):
        nested = {str(i): nested for i in range(60)}
    doubled: Any = ("x",)
    for _ in range(60):
        doubled = (doubled, doubled)
    for value in (nested, {"activation": doubled}):
        save_torch(tmp_path / "x.pt", {}, {}, pickle.dumps(value, protocol=2))
        with pytest.raises(ValueError, match=r"more than 10,000 entries"):
            read_torch(tmp_path / "x.pt")


def test_a_key_that_takes_for_ever_to_hash_is_an_error(tmp_path: Path) -> None:
    doubled: Any = ("x",)
    for _ in range(60):
        doubled = (doubled, doubled)
    key = pickle.dumps(doubled, protocol=2)[
        2:-1
    ]  # pickle.dumps would hash it as well, were it a key already
    for body in (
        b"}" + key + b"K\x01s.",
        b"}(" + key + b"K\x01u.",
        b"}ctorch\nSize\n" + key + b"\x85RK\x01s.",
    ):
        save_torch(tmp_path / "x.pt", {}, {}, b"\x80\x02" + body)
        with pytest.raises(
            ValueError,
            match=r"x.pt (has more than 10,000 entries in a tuple|is truncated or corrupt)",
        ):
            read_torch(tmp_path / "x.pt")


def test_a_pickle_of_endless_opcodes_is_an_error(tmp_path: Path) -> None:
    save_torch(tmp_path / "x.pt", {}, {}, b"\x80\x02" + b"N0" * (1 << 23) + b"}.")
    with pytest.raises(
        ValueError,
        match=r"x.pt has a pickle of 16,777,220 bytes; save the state_dict alone",
    ):
        read_torch(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "suffix", [".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt"]
)
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(
        ValueError,
        match=rf"x{suffix} is a Git LFS pointer, not the file itself; run `git lfs pull`",
    ):
        read_tensors(file)


def test_a_member_that_grows_without_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 18, np.float32))
    assert read_tensors(tmp_path / "x.npz")["a"].shape == (
        1 << 18,
    )  # a tensor of zeros that is not large
    monkeypatch.setattr(zip_members, "_LARGE", 1 << 18)
    with pytest.raises(
        ValueError,
        match=r"a.npy unpacks from [\d,]+ to 1,048,704 bytes, which weights do not",
    ):
        read_tensors(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_members_that_grow_together_are_an_error_however_small_each_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(zip_members, "_LARGE", 1 << 18)
    with zipfile.ZipFile(tmp_path / f"x{suffix}", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for i in range(4):
            archive.writestr(f"a{i}.npy", bytes(1 << 17))
    with pytest.raises(
        ValueError, match=r"unpacks from [\d,]+ to 524,\d+ bytes, which weights do not"
    ):
        read_tensors(tmp_path / f"x{suffix}")


def test_words_beside_the_arrays_of_an_archive_are_left_out(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        mean_d=X[0],
        site=np.array("layer1.resid_post"),
        norm=np.float64(2),
    )
    assert read_tensors(tmp_path / "x.npz").keys() == {"mean_d", "norm"}


def test_legacy_pickles_and_other_zips_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(
        ValueError,
        match=r"legacy pickle of torch < 1.6.*save it again with a current torch.save",
    ):
        read_tensors(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("code/a.py", "")
    with pytest.raises(ValueError, match="no state_dict"):
        read_tensors(tmp_path / "zip.pt")


def test_big_endian_unknown_suffix_and_absent_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("ae/data.pkl", b"\x80\x02}.")
        archive.writestr("ae/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        read_tensors(tmp_path / "x.pt")
    (tmp_path / "x.h5").write_bytes(b"1")
    with pytest.raises(
        ValueError, match=r"ends in '\.h5'.*known: \.safetensors \.npz \.pt"
    ):
        read_tensors(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_tensors(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "file",
    [
        "saelens/topk_rescaled/sae_weights.safetensors",
        "saelens/standard_bfloat16/sae_weights.safetensors",
        "dictionary_learning/BatchTopKSAE/ae.pt",
        "dictionary_learning/GatedAutoEncoder/ae.pt",
        "gemma_scope/layer_2/width_512/average_l0_13/params.npz",
        "gemma_scope/layer_2/width_512/average_l0_13/golden.npz",
    ],
)
def test_truncation_anywhere_is_a_value_error(
    shared: Path, tmp_path: Path, file: str
) -> None:
    whole = (shared / "fixtures/sae" / file).read_bytes()
    for cut in (
        0,
        1,
        3,
        4,
        7,
        8,
        40,
        300,
        1000,
        len(whole) // 2,
        len(whole) - 100,
        len(whole) - 23,
        len(whole) - 1,
    ):
        path = tmp_path / f"cut{cut}{Path(file).suffix}"
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"cut{cut}"):
            read_tensors(path)


def test_flipped_bytes_never_crash(shared: Path, tmp_path: Path) -> None:
    whole = bytearray(
        (shared / "fixtures/sae/dictionary_learning/AutoEncoderTopK/ae.pt").read_bytes()
    )
    rng = np.random.default_rng(0)
    for at in [*range(30, 600, 3), *rng.integers(len(whole) - 1500, len(whole), 100)]:
        damaged = whole.copy()
        damaged[at] ^= 1 << rng.integers(8)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "x.pt")
        except ValueError as error:
            assert "x.pt" in str(error)  # noqa: PT017 - other bytes may be harmless, and then nothing is raised


def test_rows_are_float32_copies_in_c_order() -> None:
    for matrix in (X, X.T, X.astype(np.float16), X.astype(ml_dtypes.bfloat16).T):
        source = RowSource(matrix)
        rows = source.rows(1, 3)
        assert (source.shape, len(source), source.dtype) == (
            matrix.shape,
            matrix.shape[0],
            matrix.dtype,
        )
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert not np.shares_memory(rows, matrix)
        np.testing.assert_array_equal(rows, matrix[1:3].astype(np.float32))


def test_rows_scale_then_normalise_and_zero_rows_stay() -> None:
    scaled = RowSource(X, scale_n=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(scaled.rows(0, 3), X * [[1], [2], [3]])
    unit = RowSource(np.zeros((2, 4)) + [[0.0], [2.0]], unit=True).rows(0, 2)
    np.testing.assert_allclose(unit, [[0] * 4, [0.5] * 4])


def test_rows_outside_and_bad_shapes_are_errors() -> None:
    for i, j in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(
            IndexError, match="matrix with 3 rows; give 0 <= i <= j <= 3"
        ):
            RowSource(X).rows(i, j)
    with pytest.raises(ValueError, match="needs a matrix"):
        RowSource(X[0])
    with pytest.raises(ValueError, match="has 3 rows"):
        RowSource(X, scale_n=np.ones(2))


def test_a_dictionary_larger_than_memory(tmp_path: Path) -> None:
    # A sparse file of 256 GiB: only its header and one row take room on disk.
    n, m = 1 << 25, 2048
    header = f'{{"W_dec":{{"dtype":"F32","shape":[{n},{m}],"data_offsets":[0,{n * m * 4}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "x.safetensors"
    try:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + n * m * 4)
            file.seek(8 + len(header) + (n - 1) * m * 4)
            file.write(np.ones(m, np.float32).tobytes())
    except OSError:
        pytest.skip("the file system has no sparse files of 256 GiB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = RowSource(read_tensors(path)["W_dec"])
    rows = source.rows(n - 2, n)
    assert rows.sum(axis=1).tolist() == [0, m]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
