"""The store: stable names, entries that are whole or absent, progress that survives a
kill, one run at a time.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sae_attr.store import (
    Damaged,
    Progress,
    Result,
    Store,
    claim_workdir,
    digest,
    fingerprint,
    lock_workdir,
    own_workdir,
    run_stage,
    write_atomic,
)
from sae_attr.store import files as store_files
from sae_attr.store.files import to_json
from tests._processes import limited


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5


# --- names


def test_digest_is_the_same_in_every_version_and_process() -> None:
    """Recorded once: a change of this value makes every stored artefact unreachable."""
    value = {
        "a": [1, 2.5, None, True, "Δ"],
        "b": np.arange(3, dtype=np.int32),
        "c": Point(1),
    }
    assert digest(value) == "51e26ac4c3446187c3c9c1321be3ce24"


def test_digest_ignores_order_and_container_kind() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert digest((1, 2)) == digest([1, 2])
    assert digest({1, 2, 3}) == digest({3, 2, 1})
    assert digest(np.float64(0.1)) == digest(0.1)
    assert digest(np.arange(6)[::2]) == digest(np.array([0, 2, 4]))


DIFFERENT = [
    None, 0, 0.0, -0.0, False, "0", b"0", [], {}, "", [0], [[0]], [0, 0], {"0": 0}, {0: 0}, "None", 1e-7, 1.0000001e-7,
    np.zeros(2, np.float32), np.zeros(2, np.int32), np.zeros((2, 1), np.float32), np.zeros(2, ml_dtypes.bfloat16),
    Point(0), Point(1), {"x": 0, "y": 0.5}, [["a"], "b"], ["a", ["b"]], ["ab"], ["a", "b"],
]  # fmt: skip


def test_digest_tells_different_values_apart() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("value", [lambda: 0, object(), np.array([object()])])
def test_digest_refuses_what_has_no_contents(value: Any) -> None:
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\] is a"):
        digest({"a": [0, value]})


def test_fingerprint_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "m/sub").mkdir(parents=True)
    (tmp_path / "m/a").write_text("one")
    (tmp_path / "m/sub/b").write_text("two")
    before = fingerprint(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    (tmp_path / "copy/.cache").write_text("hidden files do not count")
    assert fingerprint(tmp_path / "copy") == before
    (tmp_path / "m/sub/b").rename(tmp_path / "m/sub/c")
    assert fingerprint(tmp_path / "m") != before
    assert fingerprint(tmp_path / "m/a") == fingerprint(tmp_path / "copy/a")
    with pytest.raises(FileNotFoundError, match="nothing lies at"):
        fingerprint(tmp_path / "none")


def test_fingerprint_samples_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_WHOLE": 100, "_SAMPLES": 4, "_SAMPLE": 10}.items():
        monkeypatch.setattr(f"sae_attr.store.names.{name}", value)
    data = bytearray(range(200))
    names = []
    for at in (None, 0, 199, 15):  # 15 lies between the pieces 0-9 and 63-72
        changed = bytearray(data)
        if at is not None:
            changed[at] ^= 1
        (tmp_path / "f").write_bytes(changed)
        names.append(fingerprint(tmp_path / "f"))
    assert names[0] not in names[1:3]
    assert names[0] == names[3]
    (tmp_path / "f").write_bytes(data + b"x")
    assert fingerprint(tmp_path / "f") not in names


# --- entries

ARRAYS = {
    "scores/pn": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bf16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "f8": np.array([1.5, -2], ml_dtypes.float8_e4m3fn),
    "text": np.array(["a", "βγ"]),
    "empty": np.zeros((0, 4)),
    "scalar": np.float64(3.0),
    "big endian": np.array([1, 2], ">i4"),
}


def assert_same(got: dict[str, np.ndarray], want: dict[str, Any] = ARRAYS) -> None:
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == np.asarray(array).dtype, name
        np.testing.assert_array_equal(np.asarray(got[name]), array, err_msg=name)


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not store.has("k")
    with pytest.raises(KeyError, match="no entry k"):
        store.load("k")
    meta = {
        "n": np.int64(3),
        "list": np.arange(2),
        "path": tmp_path,
        "text": "Δ",
        "point": Point(1),
    }
    store.publish(
        "k",
        ARRAYS,
        meta,
        lambda folder: (folder / "more.txt").write_text("more") and None,
    )
    arrays, read = store.load("k")
    assert_same(arrays)
    assert read == {
        "n": 3,
        "list": [0, 1],
        "path": str(tmp_path),
        "text": "Δ",
        "point": {"x": 1, "y": 0.5},
    }
    assert (store.path("k") / "more.txt").read_text() == "more"
    assert isinstance(arrays["scores/pn"], np.memmap)
    assert not arrays["scores/pn"].flags.writeable
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["k"]


def test_a_process_that_is_not_the_writer_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", writer=False)
    store.publish("k", ARRAYS)
    store.progress("k").add("0", ARRAYS)
    store.progress("k").append([{"id": 1}])
    result = run_stage(store, "s", 1, {}, {}, lambda _: ({"x": np.ones(2)}, {"n": 1}))
    assert not result.cached
    assert result.meta == {"n": 1}
    assert not (tmp_path / "store").exists()


def test_objects_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(TypeError, match="Python objects"):
        store.publish("k", {"x": np.array([object()])})
    with pytest.raises(TypeError, match="JSON cannot say"):
        store.publish("k", {}, {"x": object()})
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "array cut short": lambda folder: cut(folder / "x.npy"),
    "array changed": lambda folder: flip(folder / "x.npy"),
    "array gone": lambda folder: (folder / "x.npy").unlink(),
    "meta cut short": lambda folder: cut(folder / "meta.json"),
    "manifest cut short": lambda folder: cut(folder / "manifest.json"),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_noticed_and_built_again(
    tmp_path: Path, damage: str
) -> None:
    store, calls = Store(tmp_path), []

    def fn(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        calls.append(1)
        return {"x": np.arange(5)}, {"a": 1}

    first = run_stage(store, "stage", 1, {"f": 1}, {}, fn)
    DAMAGES[damage](Path(store.path(first.key)))
    with pytest.raises(Damaged):
        store.load(first.key)
    with pytest.warns(RuntimeWarning, match=r"it is computed again"):
        again = run_stage(store, "stage", 1, {"f": 1}, {}, fn)
    assert (len(calls), again.cached, again.key) == (2, False, first.key)
    np.testing.assert_array_equal(again.arrays["x"], np.arange(5))
    assert run_stage(store, "stage", 1, {"f": 1}, {}, fn).cached


def test_publish_replaces_a_damaged_entry_and_keeps_a_good_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish("k", {"x": np.zeros(3)})
    store.publish("k", {"x": np.ones(3)})
    np.testing.assert_array_equal(store.load("k")[0]["x"], np.zeros(3))
    cut(Path(store.path("k")) / "x.npy")
    store.publish("k", {"x": np.ones(3)})
    np.testing.assert_array_equal(store.load("k")[0]["x"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def start(code: str, *args: Any) -> subprocess.Popen[str]:
    """A Python process of its own that has said "ready"."""
    run = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with limited(run):
        said = run.stdout.readline().strip()
    if said != "ready":
        kill(run)
    assert said == "ready"
    return run


def kill(run: subprocess.Popen[str]) -> None:
    run.send_signal(signal.SIGKILL)
    run.communicate()


PUBLISH_SLOWLY = """
import sys, time, numpy as np
from sae_attr.store import Store
def write(folder):
    (folder / "half").write_text("half of it")
    print("ready", flush=True)
    time.sleep(60)
Store(sys.argv[1]).publish("k", {"x": np.zeros(10)}, {}, write)
"""


def test_a_kill_while_publishing_leaves_no_entry(tmp_path: Path) -> None:
    run = start(PUBLISH_SLOWLY, tmp_path)
    store = Store(tmp_path)
    assert not store.has("k")
    store.publish("other", {"x": np.ones(1)})
    assert (
        len(list(tmp_path.glob(".tmp-*"))) == 1
    )  # the other process is alive: its folder stays
    kill(run)
    assert not store.has("k")
    store.publish("k", {"x": np.ones(2)})
    np.testing.assert_array_equal(store.load("k")[0]["x"], np.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k", "other"]


def test_of_processes_that_publish_the_same_the_first_is_kept(tmp_path: Path) -> None:
    store, reading = Store(tmp_path), []

    def overtaken(_: Any) -> None:
        Store(tmp_path).publish("k", {"x": np.zeros(3)})
        reading.append(os.stat(tmp_path / "k").st_ino)

    store.publish("k", {"x": np.zeros(3)}, {}, overtaken)
    # Who reads it already is not to find it gone, were it for a moment.
    assert [os.stat(tmp_path / "k").st_ino] == reading
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def overtake(monkeypatch: pytest.MonkeyPatch, root: Path, renames: int) -> None:
    """Lets another process publish "k" just before some rename of this one."""
    rename, left = os.rename, [renames]

    def overtaken(folder: Any, final: Any) -> None:
        left[0] -= 1
        if not left[0]:
            monkeypatch.setattr(os, "rename", rename)
            Store(root).publish("k", {"x": np.zeros(3)})
        rename(folder, final)

    monkeypatch.setattr(os, "rename", overtaken)


@pytest.mark.parametrize("renames", [1, 2])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_process_that_comes_first_at_the_last_moment_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, damaged: bool
) -> None:
    if damaged:
        Store(tmp_path).publish("k", {"x": np.ones(3)})
        (tmp_path / "k/manifest.json").unlink()
    overtake(monkeypatch, tmp_path, renames)
    Store(tmp_path).publish("k", {"x": np.zeros(3)})
    np.testing.assert_array_equal(Store(tmp_path).load("k")[0]["x"], np.zeros(3))
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_damaged_entry_that_another_process_moved_away_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k/half").write_text("half of it")
    rename = os.rename

    def moved(folder: Any, final: Any) -> None:
        if os.fspath(folder) == str(tmp_path / "k"):
            monkeypatch.setattr(os, "rename", rename)
            shutil.rmtree(tmp_path / "k")
        rename(folder, final)

    monkeypatch.setattr(os, "rename", moved)
    Store(tmp_path).publish("k", {"x": np.zeros(3)})
    np.testing.assert_array_equal(Store(tmp_path).load("k")[0]["x"], np.zeros(3))


def test_a_bucket_has_no_rename_but_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_files, "is_local", lambda path: False)
    store = Store(tmp_path)

    def fails(folder: Any) -> None:
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        store.publish("k", {"x": np.zeros(3)}, {}, fails)
    assert not store.has("k")
    store.publish("k", ARRAYS)
    assert_same(store.load("k")[0])
    progress = store.progress("k")
    progress.append([{"id": 0}])
    progress.append([{"id": 1}])
    progress.add("0", ARRAYS)
    assert (progress.rows(), progress.done()) == ([{"id": 0}, {"id": 1}], {"0"})
    with lock_workdir(tmp_path):
        pass


# --- stages


def test_a_stage_runs_again_only_for_what_it_depends_on(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def stage(version: int = 1, rubric: str = "a", **inputs: str) -> Result:
        return run_stage(
            store,
            "grade",
            version,
            {"rubric": rubric},
            inputs,
            lambda _: ({"x": np.ones(1)}, {}),
        )

    first = stage()
    assert not first.cached
    assert first.key.startswith("grade-")
    assert stage().cached
    assert stage().key == first.key
    assert (
        len(
            {
                first.key,
                stage(version=2).key,
                stage(rubric="b").key,
                stage(sample="k").key,
            }
        )
        == 4
    )


def test_all_processes_follow_the_first(tmp_path: Path) -> None:
    calls: list[int] = []

    def fn(progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        calls.append(1)
        return {}, {}

    for _ in range(2):
        run_stage(Store(tmp_path), "s", 1, {}, {}, fn, agree=lambda found: False)
    assert len(calls) == 2


def test_a_stage_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    store, computed = Store(tmp_path), []

    def fn(progress: Progress, stop: int = 99) -> tuple[dict[str, Any], dict[str, Any]]:
        for i in range(4):
            if str(i) not in progress.done():
                if i == stop:
                    raise KeyboardInterrupt
                computed.append(i)
                progress.add(str(i), {"x": np.full(2, i)})
        return {"x": np.stack([progress.get(str(i))[0]["x"] for i in range(4)])}, {}

    with pytest.raises(KeyboardInterrupt):
        run_stage(store, "s", 1, {}, {}, lambda p: fn(p, stop=2))
    result = run_stage(store, "s", 1, {}, {}, fn)
    assert computed == [0, 1, 2, 3]
    np.testing.assert_array_equal(result.arrays["x"][:, 0], np.arange(4))
    assert store.progress(result.key).done() == set()


# --- progress


def test_shards_come_back_and_a_half_written_one_is_ignored(tmp_path: Path) -> None:
    progress = Store(tmp_path).progress("k")
    assert progress.done() == set()
    progress.add("layer/0.1", ARRAYS, {"n": np.int64(2)})
    arrays, meta = progress.get("layer/0.1")
    assert_same(arrays)
    assert meta == {"n": 2}
    progress.add("1", {})
    cut_at = Path(progress.folder) / "1.npz"
    cut_at.write_bytes(cut_at.read_bytes()[:-30])
    (Path(progress.folder) / ".2.npz.abc").write_bytes(b"being written")
    assert progress.done() == {"layer/0.1"}
    with pytest.raises(KeyError, match="'2' is not finished"):
        progress.get("2")


def test_rows_survive_a_line_cut_short(tmp_path: Path) -> None:
    progress = Store(tmp_path).progress("k")
    assert progress.rows() == []
    progress.append([{"id": 0}, {"id": 1, "text": "zwei\nlines Δ"}])
    file = Path(progress.folder) / "rows.jsonl"
    with file.open("ab") as handle:
        handle.write(
            '{"id": 2, "text": "Δ'.encode()[:-1]
        )  # in the middle of a character
    assert [row["id"] for row in progress.rows()] == [0, 1]
    progress.append([{"id": 2}])
    assert [row["id"] for row in progress.rows()] == [0, 1, 2]
    assert progress.rows()[1]["text"] == "zwei\nlines Δ"


APPEND_FOR_EVER = """
import sys, itertools, numpy as np
from sae_attr.store import Store
progress = Store(sys.argv[1]).progress("k")
start = len(progress.rows())
for i in itertools.count(start):
    progress.append([{"id": i, "text": "x" * 1000}])
    progress.add(str(i), {"x": np.full(1000, i)})
    if i == start + 3: print("ready", flush=True)
"""


def test_progress_survives_kills(tmp_path: Path) -> None:
    progress, reached = Store(tmp_path).progress("k"), -1
    for _ in range(3):
        run = start(APPEND_FOR_EVER, tmp_path)
        time.sleep(0.05)
        kill(run)
        ids = [row["id"] for row in progress.rows()]
        assert ids == list(range(len(ids)))
        assert len(ids) - 1 > reached
        reached = len(ids) - 1
        for shard in progress.done():
            np.testing.assert_array_equal(
                progress.get(shard)[0]["x"], np.full(1000, int(shard))
            )


# --- workdirs


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep/f", "one")
    write_atomic(tmp_path / "deep/f", b"two")
    assert (tmp_path / "deep/f").read_text() == "two"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["f"]


CONFIG = {
    "lm": "stories",
    "site": {"layer": 2},
    "tokens": (1, 2),
    "mesh": {"spec": "data=2"},
}


def test_a_workdir_belongs_to_one_config(tmp_path: Path) -> None:
    claim_workdir(tmp_path, CONFIG)
    claim_workdir(tmp_path, json.loads(json.dumps(CONFIG)))  # a tuple is a list by then
    other = CONFIG | {"site": {"layer": 3}, "seed": 1, "mesh": {"spec": "data=4"}}
    with pytest.raises(ValueError, match="another config") as error:
        claim_workdir(tmp_path, other, ignore=["mesh"])
    text = str(error.value)
    assert "site.layer: 2 → 3" in text
    assert "seed: (absent) → 1" in text
    assert "mesh" not in text
    assert "--workdir" in text
    assert "--allow_config_change" in text
    claim_workdir(tmp_path, CONFIG | {"mesh": {"spec": "data=4"}}, ignore=["mesh.spec"])
    claim_workdir(tmp_path, other, allow_change=True)
    claim_workdir(tmp_path, other)


def test_a_refused_input_leaves_the_config_of_a_workdir_as_it_was(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ValueError, match="bad input"), own_workdir(tmp_path, CONFIG):
        raise ValueError("bad input")
    assert not file.exists()
    with pytest.raises(KeyboardInterrupt), own_workdir(tmp_path, CONFIG):
        raise KeyboardInterrupt  # a run that was stopped goes on
    before = file.read_bytes()
    other = CONFIG | {"seed": 1}
    with (
        pytest.raises(ValueError, match="bad input of seed 1"),
        own_workdir(tmp_path, other, allow_change=True),
    ):
        raise ValueError(f"bad input of seed {json.loads(file.read_bytes())['seed']}")
    assert file.read_bytes() == before
    with (
        pytest.raises(ValueError, match="another config"),
        own_workdir(tmp_path, other),
    ):
        pass
    with own_workdir(tmp_path, other, writer=False):
        assert file.read_bytes() == before


HOLD = """
import sys, time
from sae_attr.store import lock_workdir
with lock_workdir(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    run = start(HOLD, tmp_path)
    with (
        pytest.raises(RuntimeError, match=rf"in use by process {run.pid} on "),
        lock_workdir(tmp_path),
    ):
        pass
    kill(run)
    with (
        lock_workdir(tmp_path),
        pytest.raises(RuntimeError, match=f"process {os.getpid()}"),
        lock_workdir(tmp_path),
    ):
        pass
    with lock_workdir(tmp_path):
        pass


def test_a_lock_of_a_process_id_used_again_is_stale_and_of_another_host_is_not(
    tmp_path: Path,
) -> None:
    with lock_workdir(tmp_path):
        mine = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(mine | {"born": "1"}))
    with lock_workdir(tmp_path):
        pass
    (tmp_path / ".lock").write_text(json.dumps(mine | {"host": "elsewhere"}))
    with pytest.raises(RuntimeError, match="on elsewhere"), lock_workdir(tmp_path):
        pass


def test_loading_is_quiet(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Store(tmp_path).publish("k", ARRAYS)
        Store(tmp_path).load("k")


def test_a_frozen_set_in_meta_is_a_sorted_list() -> None:
    # The config of an SAE that the project trained says which tokens it left out.
    assert json.loads(to_json({"exclude": frozenset({"special", "bos"})})) == {
        "exclude": ["bos", "special"]
    }
    with pytest.raises(TypeError, match="meta holds a object"):
        to_json({"x": object()})
