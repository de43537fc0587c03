"""A workdir has one writer: dead holders are taken over, on other hosts after a
silence, and one that was away stops.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sae_attr.store import LockLost, Store, lock_workdir, own_workdir, write_atomic
from sae_attr.store import lease as leases
from tests._processes import limited

SILENCE = 1.0  # seconds; touched eight times within
HOLD = """
import socket, sys, time
socket.gethostname = lambda: sys.argv[2]
from sae_attr.store import Store, lock_workdir
with lock_workdir(sys.argv[1], silence=float(sys.argv[3])):
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        Store(sys.argv[1]).progress("k").append([{"writer": sys.argv[2]}])
"""


@contextmanager
def holder(
    folder: Path, host: str, silence: float = SILENCE
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder and writes there twenty times a second, on a host
    of that name.
    """
    command = [sys.executable, "-c", HOLD, str(folder), host, str(silence)]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with limited(run):
            assert run.stdout is not None
            assert run.stdout.readline().strip() == "ready"
        yield run
    finally:
        run.kill()
        run.communicate()


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ".lock").read_text())


def test_a_run_of_a_dead_host_is_taken_over_after_its_silence_and_not_before(
    tmp_path: Path,
) -> None:
    with holder(tmp_path, "pod-7") as run:
        run.kill()
        run.wait()
        message = r"process \d+ on pod-7, heard 0 s ago.*silent for 1 s"
        with pytest.raises(RuntimeError, match=message), lock_workdir(tmp_path):
            pass
        began = time.monotonic()
        with lock_workdir(tmp_path, wait=True):
            assert record(tmp_path)["host"] == socket.gethostname()
        assert 0.5 * SILENCE < time.monotonic() - began < 20 * SILENCE


def test_a_live_run_of_another_host_is_not_taken_over_however_old_its_start(
    tmp_path: Path,
) -> None:
    with holder(tmp_path, "pod-7", silence=1.6):
        time.sleep(2.4)
        for wait in (False, True):
            with (
                pytest.raises(RuntimeError, match=r"in use by process .* on pod-7"),
                lock_workdir(tmp_path, wait=wait),
            ):
                pass


def test_a_run_that_was_away_for_too_long_writes_nothing_when_it_comes_back(
    tmp_path: Path,
) -> None:
    with holder(tmp_path, "pod-7") as away:
        away.send_signal(signal.SIGSTOP)
        with lock_workdir(tmp_path, wait=True):
            rows = Store(tmp_path).progress("k").rows()
            away.send_signal(signal.SIGCONT)
            _, errors = away.communicate(timeout=60)
            assert Store(tmp_path).progress("k").rows() == rows
            assert record(tmp_path)["host"] == socket.gethostname()
        assert away.returncode == 1
        assert "LockLost" in errors
        assert f"was taken over by process {os.getpid()}" in errors


def test_every_kind_of_write_asks_who_holds_the_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RECENT", 0.0)
    store = Store(tmp_path / "w/store")
    progress = store.progress("k")
    with lock_workdir(tmp_path / "w"):
        progress.append([{"id": 1}])
        (
            tmp_path / "w/.lock"
        ).unlink()  # by hand: nobody else came, so that it is written again
        progress.append([{"id": 2}])
        other = record(tmp_path / "w") | {"host": "elsewhere", "token": "0"}
        (tmp_path / "w/.lock").write_text(json.dumps(other))
        for write in (
            lambda: progress.append([{"id": 3}]),
            lambda: progress.add("0", {}),
            progress.clear,
            lambda: store.publish("k", {}),
            lambda: write_atomic(tmp_path / "w/result.json", "{}"),
        ):
            with pytest.raises(
                LockLost, match=r"taken over by process .* on elsewhere"
            ):
                write()
        write_atomic(tmp_path / "beside.json", "{}")  # not of that workdir
    assert record(tmp_path / "w") == other  # the other's lock stays
    assert [row["id"] for row in progress.rows()] == [1, 2]


OTHERS = {
    "nothing": "",
    "no number": json.dumps({"host": "elsewhere"}),
    "a number that is text": json.dumps(
        {"host": "elsewhere", "pid": "12", "born": "1", "silence": 60}
    ),
    "a list": "[1]",
    "cut short": '{"host": "elsewhere", "pi',
    "bytes": "\x00\xff",
    "deep": "[" * 100_000,
    "a number beyond all": json.dumps(
        {"host": socket.gethostname(), "pid": 10**30, "born": "1"}
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_lock_that_names_no_process_is_no_lock(tmp_path: Path, kind: str) -> None:
    (tmp_path / ".lock").write_text(OTHERS[kind])
    with lock_workdir(tmp_path):
        assert record(tmp_path)["pid"] == os.getpid()


def test_a_folder_in_the_place_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock/inside").mkdir(parents=True)
    with lock_workdir(tmp_path):
        assert record(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("stated", [None, "x", -1, float("nan"), float("inf"), True])
def test_a_lock_that_states_no_silence_holds_for_a_day(
    tmp_path: Path, stated: Any
) -> None:
    old = {"host": "elsewhere", "pid": 5, "born": "1"} | (
        {} if stated is None else {"silence": stated}
    )
    (tmp_path / ".lock").write_text(json.dumps(old))
    hour = time.time() - 3600
    os.utime(tmp_path / ".lock", (hour, hour))
    with (
        pytest.raises(RuntimeError, match="on elsewhere, heard 3600 s ago"),
        lock_workdir(tmp_path),
    ):
        pass
    os.utime(tmp_path / ".lock", (hour - 86_400, hour - 86_400))
    with lock_workdir(tmp_path):
        pass


def test_a_process_of_another_container_of_this_host_is_not_asked_by_number(
    tmp_path: Path,
) -> None:
    with lock_workdir(tmp_path):
        mine = record(tmp_path)
    (tmp_path / ".lock").write_text(json.dumps(mine | {"pid": 2**22 - 1, "born": "1"}))
    with lock_workdir(tmp_path):
        pass  # a dead process of this one
    (tmp_path / ".lock").write_text(
        json.dumps(mine | {"pid": 2**22 - 1, "born": "1", "machine": "another"})
    )
    with (
        pytest.raises(RuntimeError, match="it was silent for 120 s"),
        lock_workdir(tmp_path),
    ):
        pass


RACE = """
import sys, time
from sae_attr.store import lock_workdir
try:
    with lock_workdir(sys.argv[1]):
        print("in", flush=True)
        sys.stdin.read()
except RuntimeError:
    print("out", flush=True)
"""


def test_of_several_that_start_together_one_gets_it(tmp_path: Path) -> None:
    past = time.time() - 1000
    (tmp_path / ".lock").write_text(
        json.dumps({"host": "gone", "pid": 5, "born": "1", "silence": 60})
    )
    os.utime(tmp_path / ".lock", (past, past))
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    runs = [subprocess.Popen(command, **pipes) for _ in range(4)]
    said = sorted(run.stdout.readline().strip() for run in runs if run.stdout)
    for run in runs:
        run.communicate()
    assert said == ["in", "out", "out", "out"]


def test_a_damaged_config_of_a_workdir_is_written_again(tmp_path: Path) -> None:
    for damage in ('{"seed": ', "[]", "\x00"):
        (tmp_path / "config.json").write_text(damage)
        with (
            pytest.warns(RuntimeWarning, match="config.json is damaged"),
            own_workdir(tmp_path, {"seed": 1}),
        ):
            pass
        assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
