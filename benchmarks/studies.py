"""Time of every smaller study on the organism, without the organism.

Command: python -m benchmarks.studies --only=transition,directions
Measured: each study's command in a new workdir: seconds on the clock and of processor
time, those of the stages that make the organism (as the store records them), and the
rest. `dense_latents` reads a finished study; --study=runs/demo names one, and without
it the benchmark leaves that study out.
Expect: less than 120 seconds for the rest of each, on two CPU cores that do nothing else;
the status is 1 where one takes longer. A quarter of an hour in all.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds
ORGANISM = "organism-"  # what the names of its stages begin with
STUDIES = ("crosscoders", "directions", "transition", "dense_latents")


def of_organism(workdir: Path) -> float:
    """Returns the seconds that the stages of the organism took, as the store has them."""
    total = 0.0
    for file in workdir.glob(f"store/{ORGANISM}*/meta.json"):
        total += json.loads(file.read_text(encoding="utf-8")).get("seconds", 0.0)
    return total


def timed(name: str, flags: Sequence[str], workdir: Path) -> dict[str, Any]:
    """Runs a study; returns its name and seconds.

    Raises:
      RuntimeError: the study failed; with the end of what it wrote.
    """
    command = [sys.executable, "-m", f"experiments.{name}", f"--config={name}"]
    before, start = _processor_seconds(), time.perf_counter()
    ended = subprocess.run(
        [*command, f"--workdir={workdir}", *flags], capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(
            f"{name} ended with {ended.returncode}: {ended.stderr[-800:]}"
        )
    organism = of_organism(workdir)
    return {
        "study": name,
        "seconds": wall,
        "cpu_seconds": _processor_seconds() - before,
        "organism_seconds": organism,
        "rest_seconds": wall - organism,
    }


def _processor_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Prints a line for each study; ends with status 1 where one takes too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(STUDIES), help="between commas")
    parser.add_argument(
        "--study", help="workdir of a finished study, for dense_latents"
    )
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = sorted(set(names) - set(STUDIES))
    if unknown:
        parser.error(f"no study {unknown[0]!r}; there are {', '.join(STUDIES)}")
    rows = []
    for name in names:
        flags = []
        if name == "dense_latents":
            if not args.study:
                print("dense_latents is left out: --study names no finished study")
                continue
            flags = [f"--config.study={args.study}"]
        with tempfile.TemporaryDirectory() as folder:
            row = timed(name, flags, Path(folder) / "run")
        rows.append(row)
        print(
            f"{name:<14} {row['seconds']:6.0f} s  {row['cpu_seconds']:6.0f} cpu s  "
            f"organism {row['organism_seconds']:5.0f} s  rest {row['rest_seconds']:5.0f} s",
            flush=True,
        )
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"rows": rows}, file, indent=1)
    sys.exit(int(any(row["rest_seconds"] > LIMIT for row in rows)))


if __name__ == "__main__":
    main()
