"""Where a chain of stages is, in one line a stage; and what the end of a run says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etils import epath

from experiments import _progress
from sae_attr.store import Result, Status
from sae_attr.store.metrics_log import read_metrics


def result(**meta: Any) -> Result:
    return Result({}, meta, "key", 0.0, False, epath.Path("key"))


def test_a_line_names_the_place_the_time_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        _progress.logging, "info", lambda text, *values: lines.append(text % values)
    )
    now = [0.0]
    names = ("rude.sample", "rude.steer.away", "kind.sample", "kind.steer.away")
    states = [
        Status(name, "done" if name == "rude.sample" else "missing", "")
        for name in names
    ]
    course = _progress.StageProgress(states, clock=lambda: now[0])
    for status, seconds in zip(states, (30.0, 100.0, 40.0, 90.0), strict=True):
        course.start(status)
        now[0] += 0.0 if status.state == "done" else seconds
        course.end(status, result(seconds=seconds))
    assert lines == [
        "stage 2 of 4: rude.steer.away; 0 s spent, more than 30 s left",
        "stage 3 of 4: kind.sample; 2 min spent, about 2 min left",
        "stage 4 of 4: kind.steer.away; 2 min spent, about 2 min left",
    ]


def test_every_stage_that_is_done_has_one_line_of_metrics(tmp_path: Path) -> None:
    keys = {"a.sample": "a.sample-1", "a.pair": "a.pair-1"}
    states = [Status(name, "missing", key) for name, key in keys.items()]
    results = [
        Result({}, meta, status.key, 0.0, False, epath.Path("key"))
        for status, meta in zip(
            states,
            (
                {"seconds": 2.5, "tokens": 7, "name": "x", "worst": float("nan")},
                {"seconds": 0.5, "counts": {"pairs": 35}},
            ),
            strict=True,
        )
    ]
    _progress.StageMetrics(tmp_path, keys).end(states[0], results[0])
    # Killed after the second stage was stored and before its line was written.
    again = _progress.StageMetrics(tmp_path, keys)
    for status, loaded in zip(states, results, strict=True):
        again.end(status, loaded)
    expected = [
        {"stage": "a.sample", "key": "a.sample-1", "seconds": 2.5, "tokens": 7},
        {"stage": "a.pair", "key": "a.pair-1", "seconds": 0.5, "counts.pairs": 35},
    ]
    assert read_metrics(tmp_path) == expected
    # Another config makes another entry: the line of the old one goes.
    keys["a.pair"] = "a.pair-2"
    other = Result({}, {"seconds": 9.0}, "a.pair-2", 0.0, False, epath.Path("key"))
    _progress.StageMetrics(tmp_path, keys).end(states[1], other)
    lines = read_metrics(tmp_path)
    assert lines[0] == expected[0]
    assert lines[1:] == [{"stage": "a.pair", "key": "a.pair-2", "seconds": 9.0}]


def test_the_end_says_what_was_found_where_it_lies_and_how_it_goes_on() -> None:
    states = [Status("rude.pair", "done", ""), Status("rude.attribute", "missing", "")]
    text = _progress.ending(
        states,
        {"rude.pair": result(counts={"pairs": 35})},
        [],
        "runs/w",
        "python -m x --workdir=runs/w",
    )
    assert "rude.pair: pairs 35" in text
    assert (
        "1 of 2 stages are done; next is rude.attribute: python -m x --workdir=runs/w"
        in text
    )
    assert "wrote to runs/w" in text
    whole = _progress.ending(states[:1], {}, ["report.html"], "runs/w", "")
    assert "open runs/w/report.html in a browser" in whole
    assert "stages are done" not in whole


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "4 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _progress.rounded_time(seconds) == text
