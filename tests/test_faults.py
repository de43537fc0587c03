"""What the comparison of a killed run with one left alone sees, and what it overlooks:
times and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.faults import compared, contents, spread, stored_entries
from sae_attr.store import Store

PAGE = "<h1>{title}</h1><details><summary>How long it took ({time})</summary></details><p>{value} points, 12 samples"


def made(
    folder: Path,
    *,
    seconds: float,
    time: str,
    title: str = "Stages",
    value: float = 3.5,
) -> Path:
    page = PAGE.format(title=title, time=time, value=value).encode()
    store = Store(folder / "store")
    store.publish(
        "case.sample-1",
        {"tokens_rn": np.arange(3)},
        {"seconds": seconds, "rates": [value]},
    )
    store.publish(
        "case.rank-2",
        {"x": np.full(3, value)},
        {"parts": [{"seconds": seconds, "n": 1}]},
    )
    store.progress("case.rank-3").append([{"id": seconds}])
    (folder / "report.html").write_bytes(page)
    (folder / "result.json").write_text(
        json.dumps({"timings": {"a": seconds}, "value": value})
    )
    line = {"stage": "case.sample", "seconds": seconds, "tokens": value}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / ".lock").write_text(str(seconds))
    return folder


def test_times_do_not_count_whatever_stands_over_them(tmp_path: Path) -> None:
    calm = made(tmp_path / "a", seconds=1.0, time="0.31 s")
    for i, time in enumerate(("59.9 s", "3 min 20 s", "1 h 7 min", "12 min 0 s")):
        other = made(tmp_path / f"b{i}", seconds=100.0 + i, time=time)
        assert compared(calm, other) == []
    assert len(contents(calm)) == 7


def test_every_number_word_and_array_counts(tmp_path: Path) -> None:
    calm = made(tmp_path / "a", seconds=1.0, time="1.0 s")
    retitled = made(tmp_path / "b", seconds=1.0, time="1.0 s", title="Steps")
    assert compared(calm, retitled) == ["report.html"]
    other = made(tmp_path / "c", seconds=1.0, time="1.0 s", value=3.6)
    assert compared(calm, other) == sorted(
        [
            "metrics.jsonl",
            "report.html",
            "result.json",
            "store/case.sample-1/meta.json",
            "store/case.rank-2/x.npy",
        ]
    )
    (other / "more.csv").write_text("a\n1\n")
    assert "more.csv" in compared(calm, other)


def test_kills_fall_in_all_stages(tmp_path: Path) -> None:
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert sorted({*spread(30, 20)}) == spread(30, 20)
    assert (spread(30, 20)[0], spread(30, 20)[-1]) == (0, 29)
    assert {*spread(4, 20)} == {0, 1, 2, 3}
    folder = made(tmp_path, seconds=1.0, time="1 s")
    assert {entry.name for entry in stored_entries(folder, began=0.0)} == {
        "case.sample",
        "case.rank",
    }
