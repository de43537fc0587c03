"""Runs all benchmarks and writes one page with their tables and plots.

Command: python -m benchmarks.report; --only=moment,collectives for some of them, --reuse
  to run again only those whose results are not in --out yet.
Hardware: that of the benchmarks; an hour on 2 cores that do nothing else. Those that
  compare with trained models of other libraries need --shared, the folder of shared
  models, are left out without it, and take longer than the others together.
Expect: runs/benchmarks/report.html, and beside it the text, numbers and record of each
  benchmark as NAME.txt, NAME.json and NAME.run.json. The status is 1 where a benchmark
  missed a limit that it states or could not run; "measured" are those that state none.
"""

from __future__ import annotations

import argparse
import ast
import html
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sae_attr.report.tables import versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# What a benchmark needs beside its name; {shared} stands for the folder of --shared.
ARGUMENTS: Mapping[str, Sequence[str]] = {
    "sae_choices": ("--shared={shared}",),
    "sae_published": ("--shared={shared}",),
    "sae_quality": ("--shared={shared}",),
}


@dataclass(frozen=True)
class Bars:
    """A plot of a benchmark's rows: a group of bars for each.

    Args:
      label: format of a row's name.
      values: its keys that are drawn, the first in colour.
      unit: of the values.
    """

    label: str
    values: tuple[str, ...]
    unit: str


PLOTS: Mapping[str, Bars] = {
    "collectives": Bars("{stage} {mesh}", ("bytes", "least_bytes"), "bytes a step"),
    "score_memory": Bars("{n:,} × {d:,} {dtype}", ("seconds", "limit"), "seconds"),
    "moment": Bars("{n:,} latents", ("score_seconds", "token_wise_seconds"), "seconds"),
}


@dataclass(frozen=True)
class Run:
    """One run of a benchmark.

    Args:
      name: of its file.
      command: as a shell reads it.
      status: exit status.
      seconds: it took.
    """

    name: str
    command: str
    status: int
    seconds: float


# ---- running -------------------------------------------------------------------------


def names() -> list[str]:
    """Returns the names of all benchmarks but this page."""
    paths = sorted(HERE.glob("[a-z]*.py"))
    return [path.stem for path in paths if path.stem != Path(__file__).stem]


def about(name: str) -> str:
    """Returns the first paragraph of a benchmark's docstring."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def run(name: str, folder: Path, shared: str) -> Run:
    """Runs a benchmark, shows and keeps what it prints, and keeps its numbers."""
    arguments = [text.format(shared=shared) for text in ARGUMENTS.get(name, ())]
    if '"--out"' in (HERE / f"{name}.py").read_text("utf-8"):
        arguments.append(f"--out={folder / name}.json")
    command = ["-m", f"benchmarks.{name}", *arguments]
    start = time.monotonic()
    with (
        (folder / f"{name}.txt").open("w", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    status, seconds = process.returncode, round(time.monotonic() - start, 1)
    done = Run(name, shlex.join(["python", *command]), status, seconds)
    (folder / f"{name}.run.json").write_text(json.dumps(asdict(done)), "utf-8")
    return done


# ---- the page ------------------------------------------------------------------------


def bars_svg(rows: Sequence[Mapping[str, Any]], bars: Bars) -> str:
    """Returns a plot of rows as SVG, with a logarithmic axis."""
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    height = 0.8 / len(bars.values)
    colours = ("C0", "0.7", "C1")
    for i, value in enumerate(bars.values):
        lengths = [float(row[value]) for row in rows]
        shift = (i - (len(bars.values) - 1) / 2) * height
        label = value.replace("_", " ")
        axes.barh(places + shift, lengths, height, label=label, color=colours[i])
    axes.set_yticks(places, [bars.label.format(**row) for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1e-2)
    axes.set_xlabel(bars.unit)
    axes.legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[2].join(("<svg", ""))


def machine() -> str:
    """Returns the machine and the versions of what numbers depend on."""
    libraries = ", ".join(f"{name} {text}" for name, text in versions().items())
    return f"{platform.platform()}, {os.cpu_count()} cores; {libraries}"


def page(runs: Sequence[Run], folder: Path) -> str:
    """Returns the page of finished runs, whose text and numbers lie in a folder."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Benchmarks of sae_attr</title>",
        "<style>body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
        "pre{overflow-x:auto;background:#f6f6f6;padding:.8em}td,th{text-align:left;"
        "padding:.1em 1em .1em 0}svg{max-width:100%;height:auto}</style>",
        f"<h1>Benchmarks</h1><p>{html.escape(machine())}</p>",
        "<table><tr><th>benchmark<th>what it states<th>seconds</tr>",
    ]
    for done in runs:
        parts.append(
            f'<tr><td><a href="#{done.name}">{done.name}</a><td>{_outcome(done)}'
            f"<td>{done.seconds:,.0f}</tr>"
        )
    parts.append("</table>")
    for done in runs:
        text = (folder / f"{done.name}.txt").read_text("utf-8")
        parts.append(
            f'<h2 id="{done.name}">{done.name}</h2><p>{html.escape(about(done.name))}</p>'
            f"<p><code>{html.escape(done.command)}</code></p>"
            f"{_plot(done.name, folder)}<pre>{html.escape(text)}</pre>"
        )
    return "\n".join(parts) + "\n"


def _outcome(run: Run) -> str:
    """Returns whether a benchmark's limits hold; "measured" where it states none."""
    if run.status:
        return f"missed (status {run.status})"
    states = "sys.exit" in (HERE / f"{run.name}.py").read_text("utf-8")
    return "holds" if states else "measured"


def _plot(name: str, folder: Path) -> str:
    """Returns the plot of a benchmark; "" where it has none, or wrote no numbers."""
    file = folder / f"{name}.json"
    if name not in PLOTS or not file.exists():
        return ""
    return bars_svg(json.loads(file.read_text("utf-8"))["rows"], PLOTS[name])


def finished(name: str, folder: Path) -> Run | None:
    """Returns a run whose results lie in a folder."""
    file = folder / f"{name}.run.json"
    return Run(**json.loads(file.read_text("utf-8"))) if file.exists() else None


def main() -> None:
    """Runs the benchmarks and writes the page after each of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/benchmarks", help="folder of the page")
    parser.add_argument("--only", default="", help="names, joined with commas")
    parser.add_argument("--shared", default="", help="folder of shared models")
    parser.add_argument("--reuse", action="store_true", help="keep finished runs")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {names()}")
    folder = Path(args.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for name in chosen:
        needs_shared = any("{shared}" in text for text in ARGUMENTS.get(name, ()))
        if needs_shared and not args.shared:
            print(f"== {name} is left out: it needs --shared=FOLDER")
            continue
        print(f"== {name}", flush=True)
        done = finished(name, folder) if args.reuse else None
        runs.append(done or run(name, folder, args.shared))
        (folder / "report.html").write_text(page(runs, folder), "utf-8")
    print(f"wrote {folder / 'report.html'}")
    sys.exit(int(any(done.status for done in runs)))


if __name__ == "__main__":
    main()
