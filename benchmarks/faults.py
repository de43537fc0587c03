"""Kills a case study at random moments and compares what it ends with to a run that was left alone.

Command: python -m benchmarks.faults --config=configs/organism.py --kills=20        # or: make faults
Prints every kill, and the files that differ; a difference ends it with status 1. Parts of the page that
hold times are left out of the comparison. Takes two runs of the config and what the kills cost.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def contents(workdir: Path) -> dict[str, bytes]:
    """Every file of a run but those of the store, without what tells times."""
    out = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_file() and not name.startswith(("store", ".")):
            out[name] = re.sub(rb"<summary>Stages and their time.*?</details>", b"", path.read_bytes(), flags=re.DOTALL)
    return out


def stages(workdir: Path) -> int:
    """Stages that are stored."""
    return len(list((workdir / "store").glob("*/manifest.json")))


def run(command: list[str], seconds: float | None = None, **options: object) -> bool:
    """Runs a command, killed after so many seconds; whether it came to its end. RuntimeError where it fails by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"the run failed: {errors.decode(errors='replace')[-2000:]}")
    return True


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/organism.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root, draw = Path(tempfile.mkdtemp(prefix="faults_")), random.Random(args.seed)
    command = lambda workdir: [
        sys.executable,
        "-m",
        "experiments.case_study",
        f"--config={args.config}",
        f"--workdir={workdir}",
    ]
    began = time.monotonic()
    run(command(root / "calm"))
    length = time.monotonic() - began
    print(f"left alone: {length:.0f} s", flush=True)
    kills = 0
    while kills < args.kills:  # each life is a share of the whole, so that the kills lie all over it
        ended = run(command(root / "killed"), draw.uniform(0.3, 2) * length / args.kills + 4)
        kills += not ended
        print(f"{'ended' if ended else f'kill {kills}'}: {stages(root / 'killed')} entries stored", flush=True)
        if ended:
            break
    run(command(root / "killed"))
    calm, killed = contents(root / "calm"), contents(root / "killed")
    differ = sorted(name for name in calm.keys() | killed.keys() if calm.get(name) != killed.get(name))
    print(f"{kills} kills; {len(calm)} files, {len(differ)} differ: {', '.join(differ) or 'none'}")
    shutil.rmtree(root)
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
