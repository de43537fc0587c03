"""Hosts of one run: what they must have in common when it starts, and how they end
together.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sae_attr.report import tables

from . import _notes

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sae_attr", "experiments", "configs")
SHOWN = 5  # differences of one kind in a message
LOOK = 2.0  # seconds between two looks at who has ended
PATIENCE = 10.0  # seconds in which a shared file is to be seen, and others to end alike


# ---- at the start --------------------------------------------------------------------


def check_hosts(config: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Compares the hosts of a run: commit, versions, config, flags, inputs, workdir.

    Every process of the run calls it; all of them raise the same error.

    Args:
      config: plain values, nested to any depth.
      arguments: of the command line, without the program.

    Raises:
      ValueError: names what differs, on which host.
    """
    probe = _Probe.of(arguments)
    facts = {"probe": probe.write(), **_facts(config, arguments)}
    try:
        of_all = [json.loads(text) for text in _exchange("facts", facts)]
        sees = {"host": facts["host"], "sees": probe.seen(of_all[0]["probe"])}
        seen = [json.loads(text) for text in _exchange("workdir", sees)]
    finally:
        probe.remove()
    lines = differences(of_all)
    for i, other in enumerate(seen):
        if not other["sees"]:
            lines.append(
                f"{_named(i, other)} does not see the file that process 0 wrote to "
                f"{os.path.dirname(of_all[0]['probe'])}; give a --workdir on a file "
                "system that all hosts share"
            )
    if lines:
        raise ValueError("\n  ".join(["the hosts of this run differ:", *lines]))


def _exchange(name: str, facts: Mapping[str, Any]) -> list[str]:
    return _notes.notes_of_all(name, json.dumps(facts))


def differences(of_all: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line for whatever a process has otherwise than process 0.

    Args:
      of_all: facts of every process: `host`, `code`, and names with values under
        `versions`, `config` and `inputs`.
    """
    first = of_all[0]
    whose = _named(0, first)
    lines = []
    for i, other in enumerate(of_all):
        who = _named(i, other)
        if other["code"] != first["code"]:
            lines.append(
                f"{who} runs commit {other['code']}, {whose} {first['code']}; check "
                "out the same sources everywhere"
            )
        for name, here, there in _unequal(other["versions"], first["versions"]):
            lines.append(
                f"{who} has {name} {here}, {whose} {there}; install the same version"
            )
        for name, here, there in _unequal(other["config"], first["config"]):
            lines.append(
                f"{who} was started with {name}={here}, {whose} with {there}; start "
                "the same command everywhere"
            )
        for name, here, there in _unequal(other["inputs"], first["inputs"]):
            lines.append(
                f"{name}: {here} for {who}, {there} for {whose}; give every host the "
                "same data"
            )
    return lines


def _unequal(
    here: Mapping[str, str], there: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yields (name, here, there) of the first values that differ."""
    names = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
    for name in names[:SHOWN]:
        yield name, here.get(name, "(absent)"), there.get(name, "(absent)")


def _named(index: int, facts: Mapping[str, Any]) -> str:
    return f"process {index} on {facts['host']}"


def _facts(config: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Returns what this host has, as plain values."""
    values = dict(_leaves(config))
    inputs = {}
    for name, value in values.items():
        if isinstance(value, str) and value not in ("", "."):
            inputs[f"{name}={value}"] = _size_text(value)
    shown = {name: json.dumps(value, default=str) for name, value in values.items()}
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if not flag.startswith(("--config", "-config")):
            shown[flag] = value
    versions = tables.versions()
    return {
        "host": ascii(socket.gethostname())[1:-1],
        "code": code_of(ROOT),
        "versions": versions,
        "config": shown,
        "inputs": {name: text for name, text in inputs.items() if text},
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "config.") -> Iterator[Any]:
    """Yields (dotted name, value) of nested settings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _size_text(path: str) -> str:
    """Returns the bytes of a file or of all files of a folder; "" where there is none."""
    try:
        place = Path(path)
        if place.is_file():
            return f"{place.stat().st_size:,} bytes"
        if not place.is_dir():
            return ""
        sizes = [file.stat().st_size for file in place.rglob("*") if file.is_file()]
        return f"{sum(sizes):,} bytes in {len(sizes)} files"
    except (OSError, ValueError):
        return ""


@functools.cache
def code_of(root: Path) -> str:
    """Returns the commit of a checkout and a digest of its sources; of an install, the
    digest alone.
    """
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = done.stdout.strip()
    except OSError:
        commit = ""
    return f"{commit} (sources {digest.hexdigest()[:12]})".strip()


class _Probe:
    """A file that process 0 writes beside or above the workdir, and that the others must
    see.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.path: Path | None = None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> _Probe:
        """Returns the probe of a command line; of a bucket, which all hosts reach, or
        without a workdir, one that is nowhere.
        """
        values = [a.partition("=")[2] for a in arguments if "workdir=" in a]
        if not values or "://" in values[-1]:
            return cls(None)
        folder = Path(values[-1]).absolute()
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return cls(folder)

    def write(self) -> str:
        """Writes the file on process 0; returns its path, or "" where there is none."""
        if self.folder is None or _notes.process_number() != 0:
            return ""
        path = self.folder / f".hosts-{uuid.uuid4().hex}"
        try:
            path.touch()
        except OSError:  # the run itself will say that it cannot write there
            return ""
        self.path = path
        return str(path)

    def seen(self, path: str) -> bool:
        """Looks for the file of process 0; a network disk may take a while."""
        end = time.monotonic() + PATIENCE
        while path and not os.path.exists(path):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def remove(self) -> None:
        """Removes the file again."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


# ---- at the end ----------------------------------------------------------------------

_ENDED = "ended"
_ending = threading.Event()  # this process is about to end by itself


def watch_others() -> None:
    """Ends this process as soon as another one of the run has ended with an error: it
    would wait for it in a collective for ever.
    """
    threading.Thread(target=_watch, name="other processes", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(LOOK)
        for index, text in _notes.notes_so_far(_ENDED).items():
            if index != _notes.process_number():
                _leave_with_others(index, json.loads(text))


def _leave_with_others(index: int, record: Mapping[str, Any]) -> None:
    # Where all refuse the same input, each says so itself.
    if _ending.wait(LOOK):
        return
    say(
        f"process {index} on {record['host']} ended: {record['message']}\n"
        f"process {_notes.process_number()} ends too, since the run needs all"
    )
    # What ended it is no fault of this process.
    _exit_now(record["status"])


def end_with_others(message: str, status: int) -> NoReturn:
    """Ends this process of a run, and lets the others know: at once where they go on,
    orderly where they end alike.

    Args:
      message: what the others show.
      status: exit status of all.
    """
    _ending.set()
    host = ascii(socket.gethostname())[1:-1]
    record = {"host": host, "message": message, "status": status}
    _notes.add_note(_ENDED, json.dumps(record))
    # Process 0 keeps the notes, and goes last.
    last = _notes.process_number() == 0
    end = time.monotonic() + (PATIENCE if last else PATIENCE / 2)
    while time.monotonic() < end:
        if len(_notes.notes_so_far(_ENDED)) == _notes.processes_of_run():
            sys.exit(status)
        time.sleep(0.1)
    _exit_now(status)


def say(message: str, kind: str = "error") -> None:
    """Prints why a run ends."""
    print(f"{kind}: {message}", file=sys.stderr, flush=True)


def _exit_now(status: int) -> NoReturn:
    # Not sys.exit: jax would wait at the exit for processes that never come.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
