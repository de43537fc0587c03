"""Chat templates as text functions, run in a process of their own within limits of
time, memory and output.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of computing, for one text; the longest conversations take milliseconds
MEMORY = 1 << 30  # bytes that the process may address
CHARACTERS = 1 << 24  # of one text
_WAIT = 60.0  # seconds until an answer on the clock, on a machine that does other things too
_SHOWN = 300  # characters of an error


class TemplateError(ValueError):
    """Says what is wrong with a template, or with what it was given, in one line."""


def render_template(source: str, variables: Mapping[str, Any], *, day: str) -> str:
    """Renders a Jinja template in the sandbox that transformers uses.

    Args:
      variables: plain JSON values by name.
      day: date in ISO format, of which `strftime_now` tells.

    Raises:
      TemplateError: a template that does not parse, rejects its variables, or passes a
        limit.
    """
    request = {
        "ask": "text",
        "source": source,
        "variables": variables,
        "day": day,
        "characters": CHARACTERS,
    }
    return _ask(request)["text"]


@lru_cache(maxsize=64)
def template_names(source: str) -> frozenset[str]:
    """Returns the names that a template reads and does not set itself; TemplateError where it does
    not parse.
    """
    return frozenset(_ask({"ask": "names", "source": source})["names"])


# ---- the process ---------------------------------------------------------------------

_lock = threading.Lock()
# With the id of the process that started it: a fork would share its pipes.
_process: tuple[int, subprocess.Popen[bytes]] | None = None


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        line = json.dumps({**request, "seconds": SECONDS}).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"what it is given is not plain JSON: {error}") from None
    with _lock:
        answer = json.loads(_exchange(line))
    if "error" in answer:
        text = " ".join(str(answer["error"]).split())
        raise TemplateError(text if len(text) <= _SHOWN else text[:_SHOWN] + " ...")
    return answer


def _exchange(line: bytes) -> bytes:
    """Returns the answer's line; the process is ended where none comes."""
    # A process, since nothing inside Python takes back memory or time from code that
    # holds them: here the sandbox limits names, and the system all else.
    process = _started()
    assert process.stdin is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return _line_of(process)
    except (BrokenPipeError, TimeoutError):
        raise TemplateError(
            f"it ran longer than {SECONDS:g} seconds of computing, or ended the process"
        ) from None
    finally:
        if process.poll() is not None or sys.exc_info()[0] is not None:
            _end()


def _line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        if not select.select([process.stdout], [], [], _WAIT)[0]:
            raise TimeoutError
        parts.append(os.read(process.stdout.fileno(), 1 << 16))
        if not parts[-1]:
            process.wait()
            raise BrokenPipeError
    return b"".join(parts)


def _started() -> subprocess.Popen[bytes]:
    global _process
    if _process is None or _process[0] != os.getpid() or _process[1].poll() is not None:
        _end()
        # -P: beside the script lie modules of this package, which must not stand for
        # others.
        command = [
            sys.executable,
            "-P",
            str(Path(__file__).with_name("_template_process.py")),
            str(MEMORY),
        ]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Sets in a template would else have another order in every run.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        _process = (os.getpid(), process)
    return _process[1]


@atexit.register
def _end() -> None:
    global _process
    if _process is not None and _process[0] == os.getpid():
        _process[1].kill()
        _process[1].communicate()
    _process = None
