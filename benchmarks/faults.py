"""Kills a case study in stage after stage and compares what it ends with to a run that
was left alone.

Command: python -m benchmarks.faults --config=configs/organism.py --kills=20        #
  or: make faults
Prints every kill, and the files and stored entries that differ; a difference ends it
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
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = (
    "seconds",
    "wall_seconds",
    "timings",
    "tokens_per_second",
)  # fields of records, at any depth
_DURATION = re.compile(
    rb"\b\d[\d.,]* (?:s|min|h)\b(?: \d+ (?:s|min)\b)?"
)  # as the page writes them
_LARGE = 1 << 16  # bytes from which a file stands as its checksum
_POLL = 0.05  # seconds between two looks at what is stored


def contents(workdir: Path) -> dict[str, bytes]:
    """Every file of a run by name, those of the store's entries included, without what
    tells times.
    """
    out = {}
    for path in sorted(workdir.rglob("*")):
        parts = path.relative_to(workdir).parts
        hidden = any(part.startswith(".") for part in parts)
        # A manifest holds checksums of files with times in them; progress and judged
        # are of a run under way.
        if (
            path.is_file()
            and not hidden
            and path.name != "manifest.json"
            and parts[:2] != ("store", "progress")
        ):
            out["/".join(parts)] = _data(path)
    return out


def _data(path: Path) -> bytes:
    """Contents of a file without times; a large one as its checksum."""
    name, data = urllib.parse.unquote(path.name), path.read_bytes()
    if name.endswith(".json"):
        data = json.dumps(_timeless(json.loads(data)), ensure_ascii=False).encode()
    elif name.endswith(".jsonl"):
        data = b"\n".join(
            sorted(data.split(b"\n"))
        )  # of answers that arrive side by side any may be first
    elif name.endswith((".html", ".html.npy", ".json.npy")):
        data = _untimed_text(data)
    return data if len(data) < _LARGE else hashlib.sha256(data).digest()


def _untimed_text(data: bytes) -> bytes:
    """A page, or the array that holds one, whose header states its length."""
    text = _DURATION.sub(b"(time)", data)
    return re.sub(rb"^(\x93NUMPY.*?)\n", b"", text, flags=re.DOTALL)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Stored:
    """A stored entry: its name, and the seconds that it took in the run left alone."""

    name: str
    seconds: float


def stored(workdir: Path, began: float) -> list[Stored]:
    """The entries of a run in the order in which they were made."""
    manifests = [
        (path.stat().st_mtime, path.parent.name)
        for path in (workdir / "store").glob("*/manifest.json")
    ]
    out, before = [], began
    for ended, key in sorted(manifests):
        out.append(Stored(key.rpartition("-")[0], max(ended - before, 0.0)))
        before = ended
    return out


def spread(count: int, kills: int) -> list[int]:
    """Which entry is being made at each kill: all over `0..count - 1`, in order."""
    return [round(i * (count - 1) / max(kills - 1, 1)) for i in range(kills)]


def count(workdir: Path) -> int:
    """Entries that are stored."""
    return len(list((workdir / "store").glob("*/manifest.json")))


def run(
    command: Sequence[str],
    workdir: Path,
    *,
    reach: int | None = None,
    then: float = 0.0,
) -> bool:
    """Runs a command to its end, or kills it so many seconds after `reach` entries are
    stored; whether it ended.

    Raises:
      RuntimeError: it fails by itself.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while reach is not None and process.poll() is None:
            if count(workdir) >= reach:
                time.sleep(then)
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


def compared(calm: Path, killed: Path) -> list[str]:
    """Names of what differs between two runs."""
    left, right = contents(calm), contents(killed)
    return sorted(
        name for name in left.keys() | right.keys() if left.get(name) != right.get(name)
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/organism.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args, more = parser.parse_known_args()
    root, draw = Path(tempfile.mkdtemp(prefix="faults_")), random.Random(args.seed)
    calm, killed = root / "calm", root / "killed"
    start = [
        sys.executable,
        "-m",
        "experiments.case_study",
        f"--config={args.config}",
        *more,
    ]
    began = time.time()
    run([*start, f"--workdir={calm}"], calm)
    stages = stored(calm, began)
    print(f"left alone: {time.time() - began:.0f} s, {len(stages)} entries", flush=True)
    kills = 0
    for number in spread(
        len(stages) - 1, args.kills
    ):  # not in the last, which may be over before it can be killed
        wait = draw.uniform(0.0, 0.9) * stages[number].seconds
        if run([*start, f"--workdir={killed}"], killed, reach=number, then=wait):
            break
        kills += 1
        done = count(killed)
        print(
            f"kill {kills} in {stages[min(done, len(stages) - 1)].name}: {done} "
            "entries stored",
            flush=True,
        )
    run([*start, f"--workdir={killed}"], killed)
    differ = compared(calm, killed)
    print(
        f"{kills} kills; {len(contents(calm))} files, {len(differ)} differ: "
        f"{', '.join(differ) or 'none'}"
    )
    if differ:
        sys.exit(f"both runs are left in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
