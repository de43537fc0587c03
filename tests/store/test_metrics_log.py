"""Metrics as lines of JSON and as TensorBoard's events, however often a run is killed."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_attr.store import LockLost, fence, metrics_log
from sae_attr.store.metrics_log import MetricsLog, MetricsOptions, read_metrics

QUIET = MetricsOptions(tensorboard=False)


def record(step: int) -> dict[str, float]:
    return {"step": step, "loss": 4.0 / step, "lr": 1e-3}


HISTORY = [record(step) for step in range(1, 7)]


def followed(log: MetricsLog, first: int, stop: int) -> None:
    """A run from one record to another, without its end."""
    log.start(HISTORY[:first])
    for count in range(first + 1, stop + 1):
        log.follow(HISTORY[:count])


def test_a_run_that_goes_on_repeats_and_lacks_no_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "calm", QUIET) as log:
        followed(log, 0, 6)
    calm = (tmp_path / "calm/metrics.jsonl").read_bytes()
    assert [json.loads(line) for line in calm.splitlines()] == HISTORY
    killed = tmp_path / "killed"
    followed(MetricsLog(killed, QUIET), 0, 5)  # two ahead of the last checkpoint
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert read_metrics(killed) == HISTORY[:5]
    followed(MetricsLog(killed, QUIET), 3, 6)
    assert (killed / "metrics.jsonl").read_bytes() == calm


def test_a_new_run_leaves_nothing_of_one_before_it(tmp_path: Path) -> None:
    followed(MetricsLog(tmp_path, QUIET), 0, 4)
    MetricsLog(tmp_path, QUIET).start()
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, QUIET)
    log.start()
    log.follow([{"step": 1, "loss": math.nan, "norm": math.inf}])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None, "norm": None}]


def test_without_a_folder_nothing_is_written() -> None:
    with MetricsLog(None, MetricsOptions(tensorboard=None)) as log:
        followed(log, 0, 3)


def test_nothing_is_added_in_a_workdir_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path, QUIET)
    log.start()

    def lost() -> None:
        raise LockLost("taken over")

    monkeypatch.setitem(fence.HELD, fence.absolute(tmp_path), lost)
    with pytest.raises(LockLost):
        log.follow(HISTORY[:1])
    assert read_metrics(tmp_path) == []


# ---- TensorBoard ---------------------------------------------------------------------


class Writer:
    """What `tensorboardX.SummaryWriter` is asked for."""

    calls: list[tuple[Any, ...]]

    def __init__(self, folder: str, purge_step: int, filename_suffix: str) -> None:
        assert len(filename_suffix) > 1
        Writer.calls.append(("open", Path(folder).name, purge_step))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        Writer.calls.append((name, value, step))

    def flush(self) -> None:
        Writer.calls.append(("flush",))

    def close(self) -> None:
        Writer.calls.append(("close",))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of a writer in place of tensorboardX's."""
    Writer.calls = []
    package = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setattr(metrics_log.importlib, "import_module", lambda name: package)
    monkeypatch.setattr(metrics_log.importlib.util, "find_spec", lambda name: package)
    return Writer.calls


def test_events_say_from_where_on_older_ones_do_not_count(
    tmp_path: Path, stub: list[tuple[Any, ...]]
) -> None:
    with MetricsLog(tmp_path) as log:
        followed(log, 0, 2)
        log.flush()
        log.follow([*HISTORY[:2], {"step": 3, "loss": math.nan}])
    first = ("open", "tensorboard", 0)
    scalars = [("loss", 4.0, 1), ("lr", 1e-3, 1), ("loss", 2.0, 2), ("lr", 1e-3, 2)]
    assert stub == [first, *scalars, ("flush",), ("flush",), ("close",)]
    del stub[:]
    with MetricsLog(tmp_path) as log:
        followed(log, 2, 3)
    assert stub[0] == ("open", "tensorboard", 3)
    del stub[:]
    with MetricsLog(tmp_path, QUIET) as log:
        followed(log, 0, 3)
    with MetricsLog(tmp_path) as log:  # a finished run has no new events
        followed(log, 6, 6)
    assert stub == []


def test_events_need_the_package_and_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: list[tuple[Any, ...]]
) -> None:
    wanted = MetricsOptions(tensorboard=True)
    with pytest.raises(ValueError, match="gs://bucket/run, which is a bucket"):
        MetricsLog("gs://bucket/run", wanted)
    monkeypatch.setattr(metrics_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sae_attr\[tensorboard\]'"):
        MetricsLog(tmp_path, wanted)
    with MetricsLog(tmp_path) as log:
        followed(log, 0, 2)
    assert stub == []
    assert read_metrics(tmp_path) == HISTORY[:2]


def scalars_of(folder: Path) -> list[tuple[str, int, float]]:
    """Name, step and value of every event that TensorBoard would show, read from its
    files: records of a length, a checksum, bytes and a checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    shown: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16
            if event.HasField("session_log"):
                shown = [entry for entry in shown if entry[1] < event.step]
            for value in event.summary.value:
                shown.append((value.tag, event.step, value.simple_value))
    return shown


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX"
)
def test_the_real_writer_shows_every_step_once(tmp_path: Path) -> None:
    killed = MetricsLog(tmp_path, MetricsOptions(tensorboard=True))
    followed(killed, 0, 5)
    killed.close()
    with MetricsLog(tmp_path, MetricsOptions(tensorboard=True)) as log:
        followed(log, 3, 6)
    scalars = scalars_of(tmp_path / "tensorboard")
    assert [step for name, step, _ in scalars if name == "loss"] == [1, 2, 3, 4, 5, 6]
    for name, step, value in scalars:
        assert value == pytest.approx(HISTORY[step - 1][name], rel=1e-6)
