"""Kills a case study in stage after stage and compares what it ends with to a run that
was left alone.

Command: python -m benchmarks.faults --config=configs/organism.py --kills=20, or `make
faults`. Prints every kill, and the files and stored entries that differ; a difference ends it
with status 1 and leaves both folders. Compared are the data: every array, table and
record, without the fields that hold times, and the page without its durations. Takes
two runs of the config and what the kills cost. Further flags go to
experiments.case_study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Fields of records that hold times, at any depth.
TIMES = ("seconds", "wall_seconds", "timings", "tokens_per_second")
# Durations as the page writes them.
_DURATION = re.compile(rb"\b\d[\d.,]* (?:s|min|h)\b(?: \d+ (?:s|min)\b)?")
_LARGE = 1 << 16  # bytes from which a file counts as its checksum
_POLL = 0.05  # seconds between two looks at what is stored


def contents(workdir: Path) -> dict[str, bytes]:
    """Returns every file of a run by name, those of the store's entries included,
    without times.
    """
    files = {}
    for path in sorted(workdir.rglob("*")):
        parts = path.relative_to(workdir).parts
        hidden = any(part.startswith(".") for part in parts)
        in_progress = parts[:2] == ("store", "progress")
        # A manifest holds checksums of files with times in them.
        manifest = path.name == "manifest.json"
        if path.is_file() and not (hidden or in_progress or manifest):
            files["/".join(parts)] = _data(path)
    return files


def _data(path: Path) -> bytes:
    """Returns the contents of a file without times; a large one as its checksum."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = _timeless_json(data)
    elif path.suffix == ".jsonl":
        # Of answers that arrive side by side any may be first.
        data = b"\n".join(sorted(map(_timeless_json, data.splitlines())))
    elif path.suffix == ".html":
        data = _DURATION.sub(b"(time)", data)
    return data if len(data) < _LARGE else hashlib.sha256(data).digest()


def _timeless_json(data: bytes) -> bytes:
    return json.dumps(_timeless(json.loads(data)), ensure_ascii=False).encode()


def _timeless(value: Any) -> Any:
    """Returns plain values without the fields `TIMES`."""
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_timeless(part) for part in value]
    return value


@dataclass(frozen=True)
class StoredEntry:
    """A stored entry: its name, and the seconds that it took in the run left alone."""

    name: str
    seconds: float


def stored_entries(workdir: Path, began: float) -> list[StoredEntry]:
    """Returns the entries of a run in the order in which they were published."""
    published = []
    for manifest in (workdir / "store").glob("*/manifest.json"):
        published.append((manifest.stat().st_mtime, manifest.parent.name))
    entries, before = [], began
    for ended, key in sorted(published):
        name = key.rpartition("-")[0]
        entries.append(StoredEntry(name, max(ended - before, 0.0)))
        before = ended
    return entries


def spread(count: int, kills: int) -> list[int]:
    """Returns which entry is being computed at each kill: spread over `0..count - 1`."""
    return [round(i * (count - 1) / max(kills - 1, 1)) for i in range(kills)]


def entry_count(workdir: Path) -> int:
    """Counts the entries that are stored."""
    return len(list((workdir / "store").glob("*/manifest.json")))


def run(
    command: Sequence[str],
    workdir: Path,
    *,
    reach: int | None = None,
    then: float = 0.0,
) -> bool:
    """Runs a command to its end, or kills it `then` seconds after `reach` entries are
    stored; returns True if it ended.

    Raises:
      RuntimeError: it fails by itself.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while reach is not None and process.poll() is None:
            if entry_count(workdir) >= reach:
                _wait(workdir, reach, then)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(_POLL)
        if process.wait() == -signal.SIGKILL and reach is not None:
            return False
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(
                f"the run failed: {errors.read().decode(errors='replace')[-2000:]}"
            )
    return True


def _wait(workdir: Path, reach: int, seconds: float) -> None:
    """Waits, but not beyond the entry under way: this run may be much faster than the one
    that was timed, and would end before its kill.
    """
    end = time.time() + seconds
    while time.time() < end and entry_count(workdir) <= reach:
        time.sleep(_POLL)


def compared(calm: Path, killed: Path) -> list[str]:
    """Returns the names of what differs between two runs."""
    left, right = contents(calm), contents(killed)
    return sorted(
        name for name in left.keys() | right.keys() if left.get(name) != right.get(name)
    )


def main() -> None:
    """Runs the config twice and compares; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/organism.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args, more = parser.parse_known_args()
    command = [
        sys.executable,
        "-m",
        "experiments.case_study",
        f"--config={args.config}",
        *more,
    ]
    root = Path(tempfile.mkdtemp(prefix="faults_"))
    calm, killed = root / "calm", root / "killed"
    began = time.time()
    run([*command, f"--workdir={calm}"], calm)
    entries = stored_entries(calm, began)
    print(
        f"left alone: {time.time() - began:.0f} s, {len(entries)} entries", flush=True
    )
    kills = kill_often([*command, f"--workdir={killed}"], killed, entries, args)
    run([*command, f"--workdir={killed}"], killed)
    differing = compared(calm, killed)
    print(
        f"{kills} kills; {len(contents(calm))} files, {len(differing)} differ: "
        f"{', '.join(differing) or 'none'}"
    )
    if not kills:
        sys.exit("no run was killed, so nothing was tried")
    if differing:
        sys.exit(f"both runs are left in {root}")
    shutil.rmtree(root)


def kill_often(
    command: Sequence[str],
    workdir: Path,
    entries: Sequence[StoredEntry],
    args: argparse.Namespace,
) -> int:
    """Kills a run in entry after entry, each time going on with what is stored; returns
    how often.

    Args:
      entries: of a run that was left alone.
      args: `kills` and `seed` of the command.
    """
    draw = random.Random(args.seed)
    kills = 0
    # Not in the last entry, which may be over before the run can be killed.
    for number in spread(len(entries) - 1, args.kills):
        wait = draw.uniform(0.0, 0.9) * entries[number].seconds
        if run(command, workdir, reach=number, then=wait):
            break
        kills += 1
        done = entry_count(workdir)
        name = entries[min(done, len(entries) - 1)].name
        print(f"kill {kills} in {name}: {done} entries stored", flush=True)
    return kills


if __name__ == "__main__":
    main()
