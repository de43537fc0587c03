"""What a run says never ends it: closed pipes, terminals without Δ, bars in log files,
signals, libraries that are missing.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from experiments import _common, _terminal, attribute
from tests.experiments._demo import RESULTS, config, copied


def stream(
    encoding: str = "utf-8", bars: str = "move"
) -> tuple[_terminal.Stream, io.BytesIO]:
    raw = io.BytesIO()
    return _terminal.Stream(
        io.TextIOWrapper(raw, encoding=encoding, write_through=True), bars
    ), raw


def test_a_terminal_without_delta_shows_its_escape() -> None:
    out, raw = stream("ascii")
    print("Δ of latent 7: +0.5 × ā", file=out)
    assert raw.getvalue() == b"\\u0394 of latent 7: +0.5 \\xd7 \\u0101\n"


def test_a_closed_pipe_ends_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    out = _terminal.Stream(os.fdopen(write, "w"))
    for _ in range(3):
        print("x" * 100_000, file=out)
        out.flush()
    out.close()


def test_bars_leave_a_line_a_minute_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: now[0])
    out, raw = stream(bars="lines")
    for second in range(0, 200, 10):
        now[0] = float(second)
        out.write(f"\rgradients: {second}/200")
    out.write("\n\x1b[A")
    out.write("\n")
    out.write("12:00:00 the next stage\n")
    text = raw.getvalue().decode()
    assert "\r" not in text
    assert text.splitlines() == [
        "gradients: 70/200",
        "gradients: 140/200",
        "12:00:00 the next stage",
    ]


def test_quiet_shows_no_bar_at_all() -> None:
    out, raw = stream(bars="none")
    out.write("\rgradients: 1/2")
    out.write("\n")
    assert raw.getvalue() == b""


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        _common.guarded(main)([])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), 130, "Ctrl-C"), (_common.Stopped(), 143, "SIGTERM")],
)
def test_a_signal_ends_with_the_command_that_goes_on(
    error: BaseException,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["attribute", "--config.lm=a b", "--workdir=w"])
    code, text = ended(error, capsys)
    assert code == status
    assert f"stopped by {said}; the same command goes on where it was: python" in text
    assert shlex.split(text.strip())[-2:] == ["--config.lm=a b", "--workdir=w"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("openai", r"pip install 'sae_attr[judge]'"),
        ("pyarrow.parquet", r"pip install 'sae_attr[data]'"),
        ("tiktoken", "pip install tiktoken"),
    ],
)
def test_a_missing_library_comes_with_the_line_that_installs_it(
    name: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = ended(
        ModuleNotFoundError(f"No module named {name!r}", name=name), capsys
    )
    assert code == 1
    assert text.startswith("error: ")
    assert line in text


def test_files_are_written_before_anything_is_printed(
    done: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = copied(done, tmp_path / "w")
    for name in (*RESULTS, "result.json"):
        (workdir / name).unlink()

    def broken(*args: Any) -> None:
        raise UnicodeEncodeError("ascii", "Δ", 0, 1, "no such character")

    monkeypatch.setattr(attribute, "report_text", broken)
    with pytest.raises(UnicodeEncodeError):
        attribute.start(config(miniature), epath.Path(workdir))
    assert all((workdir / name).is_file() for name in RESULTS)
    assert json.loads((workdir / "result.json").read_text())["primary"] == "faithful"
