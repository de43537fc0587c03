"""Whatever happens to a stored file, what it held is made again or was whole; nothing
damaged is read as if it were not.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sae_attr.store import (
    Damaged,
    Progress,
    Result,
    Stage,
    Store,
    names,
    run_stage,
    run_stages,
    stage_statuses,
)
from sae_attr.store import manifest as manifests

VALUES = {
    "x": np.arange(40, dtype=np.float32),
    "b": np.arange(8).astype(ml_dtypes.bfloat16),
}
META = {"text": "Δ", "n": 3}


def made(store: Store) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_stage(store, "stage", 1, {}, {}, lambda progress: (VALUES, META))


def is_right(result: Result) -> bool:
    # A stage of a graph also notes its seconds.
    meta = {name: value for name, value in result.meta.items() if name != "seconds"}
    if meta != META or result.arrays.keys() != VALUES.keys():
        return False
    pairs = [(result.arrays[name], value) for name, value in VALUES.items()]
    return all(
        got.dtype == value.dtype and np.array_equal(got, value) for got, value in pairs
    )


def test_a_flipped_bit_anywhere_in_an_entry_is_no_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder, rng = Path(store.path(made(store).key)), np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for at in sorted(
            {*rng.integers(0, len(whole), 40).tolist(), 0, len(whole) - 1}
        ):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            result = made(store)
            assert is_right(result), (file.name, at)
            assert not result.cached, (file.name, at)
            assert file.read_bytes() == whole


JUNK = (
    None,
    [],
    {},
    3,
    "x",
    [1],
    {"a": 1},
    True,
    -1,
    1e308,
    "../../x",
    "/etc/passwd",
    "a\x00b",
)


def changed_anywhere(value: Any) -> list[Any]:
    """The value with one part after the other replaced by junk, left out or doubled."""
    out: list[Any] = list(JUNK)
    if isinstance(value, dict):
        for key, part in value.items():
            out.append({k: v for k, v in value.items() if k != key})
            out.append(value | {f"{key}2": part})
            out += [value | {key: changed} for changed in changed_anywhere(part)]
    return out


@pytest.mark.parametrize("old", [False, True])
def test_a_manifest_of_another_shape_is_an_absent_entry(
    tmp_path: Path, old: bool
) -> None:
    """Without its checksum too, as older versions wrote it; then only what cannot be
    right is found.
    """
    store = Store(tmp_path)
    folder = Path(store.path(made(store).key))
    manifest = json.loads((folder / "manifest.json").read_text())
    if old:
        del manifest["checksum"]
    for other in changed_anywhere(manifest):
        (folder / "manifest.json").write_text(json.dumps(other))
        result = made(store)
        older = other == {name: manifest[name] for name in ("arrays", "files")}
        assert result.cached == older or (old and result.cached), other
        assert is_right(result) or (old and result.arrays.keys() < VALUES.keys()), other
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert made(store).cached


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "manifest is a folder": lambda f: (
        (f / "manifest.json").unlink() or (f / "manifest.json").mkdir()
    ),
    "manifest nested without end": lambda f: (f / "manifest.json").write_text(
        "[" * 100_000
    ),
    "manifest in another encoding": lambda f: (f / "manifest.json").write_bytes(
        b"\xff\xfe{}"
    ),
    "meta is a list": lambda f: rewritten(f, "meta.json", b"[]"),
    "meta is no text": lambda f: rewritten(f, "meta.json", b"\xff"),
    "meta is gone": lambda f: (f / "meta.json").unlink(),
    "array is a folder": lambda f: (f / "x.npy").unlink() or (f / "x.npy").mkdir(),
    "array is no array": lambda f: rewritten(f, "x.npy", b"not an array"),
    "array of objects": lambda f: rewritten(
        f, "x.npy", b"\x93NUMPY\x01\x00F\x00{'descr': '|O', 'fortran_order': False}\n"
    ),
    "array of another type": lambda f: rewritten(
        f, "x.npy", saved(np.arange(40, dtype=np.int16))
    ),
    "array cut short, manifest agreeing": lambda f: rewritten(
        f, "x.npy", (f / "x.npy").read_bytes()[:-20]
    ),
    "entry is a file": lambda f: shutil.rmtree(f) or f.write_text("a file"),
    "entry is a dangling link": lambda f: (
        shutil.rmtree(f) or f.symlink_to(f.parent / "nowhere")
    ),
    "entry is a link to elsewhere": lambda f: (
        shutil.move(f, f.parent / "moved") and f.symlink_to(f.parent / "nothing")
    ),
    "entry is empty": lambda f: shutil.rmtree(f) or f.mkdir(),
}


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """A file of other contents, and a manifest that agrees with it."""
    (folder / name).write_bytes(content)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"][name] = {
        "bytes": len(content),
        "sha256": names.whole_hash(manifests.epath.Path(folder / name)),
    }
    (folder / "manifest.json").write_text(
        manifests.manifest_text(raw["arrays"], raw["files"])
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_every_kind_is_made_again(tmp_path: Path, damage: str) -> None:
    store, stage = Store(tmp_path), Stage("s", lambda inputs, progress: (VALUES, META))
    first = run_stages(store, [stage])["s"]
    DAMAGES[damage](Path(store.path(first.key)))
    stage_statuses(store, [stage])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = run_stages(store, [stage])["s"]
    assert not again.cached
    assert is_right(again)
    assert run_stages(store, [stage])["s"].cached


def test_a_large_array_is_checked_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_WHOLE", 100)
    monkeypatch.setattr(names, "_SAMPLE", 1)
    store = Store(tmp_path)
    store.publish("k", {"x": np.zeros(5000)})
    file = Path(store.path("k")) / "x.npy"
    data = bytearray(file.read_bytes())
    data[20_001] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match="other contents"):
        store.load("k")


def test_what_cannot_be_read_for_want_of_permission_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    made(store)

    def refused(path: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "whole_hash", refused)
        with pytest.raises(PermissionError):
            made(store)
    assert made(store).cached


# ---- progress


def test_a_flipped_bit_anywhere_in_a_shard_makes_it_unfinished_or_changes_nothing(
    tmp_path: Path,
) -> None:
    progress, rng = Store(tmp_path).progress("k"), np.random.default_rng(0)
    progress.add("0", VALUES, META)
    file = Path(progress.folder) / "0.npz"
    whole = file.read_bytes()
    for at in [
        *rng.integers(0, len(whole), 300),
        *range(40),
        *range(len(whole) - 60, len(whole)),
    ]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        fresh = Store(tmp_path).progress("k")
        if "0" in fresh.done():
            arrays, meta = fresh.get("0")
            assert meta == META
            assert all(
                np.array_equal(arrays[name], value) for name, value in VALUES.items()
            ), at
        else:
            with pytest.raises(Damaged, match=r"0\.npz is not as it was written"):
                fresh.get("0")


def zipped(file: Path, **arrays: Any) -> None:
    np.savez(file, **arrays)


SHARDS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda f: f.write_bytes(b""),
    "text": lambda f: f.write_text("not a zip"),
    "no head": lambda f: zipped(f, **{"a:x": np.ones(3)}),
    "head of another shape": lambda f: zipped(f, head=np.frombuffer(b"[1, 2]", np.uint8)),
    "head without meta": lambda f: zipped(f, head=np.frombuffer(b'{"dtypes": {}}', np.uint8)),
    "an array that is not there": lambda f: zipped(f, head=np.frombuffer(b'{"dtypes": {"x": "int8"}, "meta": {}}', np.uint8)),
    "a type that is none": lambda f: zipped(
        f, head=np.frombuffer(b'{"dtypes": {"x": "finfo"}, "meta": {}}', np.uint8), **{"a:x": np.ones(3)}
    ),
    "fewer numbers than stated": lambda f: zipped(
        f,
        head=np.frombuffer(b'{"dtypes": {"x": "float64"}, "shapes": {"x": [4]}, "meta": {}}', np.uint8),
        **{"a:x": np.ones(3)},
    ),
    "objects": lambda f: zipped(f, head=np.array([object()], object)),
    "a folder": lambda f: f.unlink() or f.mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("damage", SHARDS)
def test_a_shard_of_another_shape_is_not_finished(tmp_path: Path, damage: str) -> None:
    progress = Store(tmp_path).progress("k")
    progress.add("0", VALUES)
    progress.add("1", VALUES)
    assert progress.done() == {"0", "1"}
    SHARDS[damage](Path(progress.folder) / "0.npz")
    assert progress.done() == {"1"}  # the reader that saw it whole notices too
    assert Store(tmp_path).progress("k").done() == {"1"}


def test_broken_rows_count_as_not_written(tmp_path: Path) -> None:
    progress = Store(tmp_path).progress("k")
    progress.append([{"id": i, "text": f"zwei\nΔ {i}", "crc": 1} for i in range(3)])
    progress.append([{}])
    rows = progress.rows()
    assert rows == [
        *({"id": i, "text": f"zwei\nΔ {i}", "crc": 1} for i in range(3)),
        {},
    ]
    assert len(progress.rows(("id",))) == 3
    file = Path(progress.folder) / "rows.jsonl"
    whole = file.read_bytes()
    for line in whole.splitlines():
        assert isinstance(json.loads(line), dict)
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 2
        file.write_bytes(damaged)
        assert all(row in rows for row in progress.rows()), at
    junk = [
        b"\xff\xfe",
        b"[1]",
        b"3",
        b"null",
        b'"x"',
        b"{",
        b"[" * 100_000,
        b'{"id": 9, "crc32": "00000000"}',
        b"\x00",
    ]
    file.write_bytes(b"\n".join([*junk, whole, *junk]))
    assert progress.rows() == rows


def test_rows_of_an_older_version_are_read(tmp_path: Path) -> None:
    progress = Store(tmp_path).progress("k")
    progress.append([{"id": 0}])
    with (Path(progress.folder) / "rows.jsonl").open("a") as file:
        file.write('{"id": 1}\n')
    assert [row["id"] for row in progress.rows()] == [0, 1]


def test_what_is_left_of_unfinished_entries_goes_away(tmp_path: Path) -> None:
    for name in (
        ".tmp-gone~77@1-abcdef12",
        ".tmp-odd",
        ".tmp-a-b~x",
        ".tmp-new~1@1-abcdef12",
    ):
        (tmp_path / name).mkdir()
        past = time.time() - (0 if "new" in name else 90_000)
        os.utime(tmp_path / name, (past, past))
    Store(tmp_path).publish("k", {"x": np.ones(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-new~1@1-abcdef12", "k"]


def test_a_progress_folder_that_is_a_file(tmp_path: Path) -> None:
    progress = Store(tmp_path).progress("k")
    Path(progress.folder).parent.mkdir(parents=True)
    Path(progress.folder).write_text("a file")
    assert (progress.done(), progress.rows()) == (set(), [])
    progress.clear()
    assert not Path(progress.folder).exists()
    assert isinstance(progress, Progress)
