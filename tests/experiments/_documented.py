"""Reads every command that the documentation shows, as its program would; prints those
that are not understood.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from absl import flags
from absl.testing import flagsaver

from experiments import _command

REPO = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```\w*\n(.*?)```", re.S)
START = re.compile(r"python -m experiments\.(\w+) ?")
REQUIRED = re.compile(r"mark_flags_as_required\((\[.*?\])\)")
READERS = ("...", "…", "$")  # begin what stands for a reader's own arguments
PROGRAMS = sorted(p.stem for p in (REPO / "experiments").glob("[a-z]*.py"))


def texts() -> Iterator[tuple[str, str]]:
    """File and text of what documents commands: blocks of pages, configs' docstrings."""
    for page in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))):
        for block in BLOCK.findall(page.read_text("utf-8")):
            yield page.name, block
    for config in sorted((REPO / "configs").glob("*.py")):
        tree = ast.parse(config.read_text("utf-8"))
        yield f"configs/{config.name}", ast.get_docstring(tree) or ""


def commands() -> list[tuple[str, str, str]]:
    """File, program and arguments of every command."""
    out = []
    for file, text in texts():
        for line in text.replace("\\\n", " ").split("\n"):
            match = START.search(line)
            if match and not line.lstrip().startswith("#"):
                out.append((file, match[1], line[match.end() :]))
    return out


def faults() -> list[str]:
    """What is not understood, and programs without a flag that they require."""
    out = []
    for program in PROGRAMS:
        module = imported(program)
        source = (REPO / "experiments" / f"{program}.py").read_text("utf-8")
        match = REQUIRED.search(source)
        required = set(ast.literal_eval(match[1])) if match else set()
        lacking = required - set(_command.flags_of(module))
        out += [f"{program}: requires --{name}, which it lacks" for name in lacking]
        shown = [command for command in commands() if command[1] == program]
        for file, _, arguments in shown:
            if fault := not_understood(program, module, words(arguments)):
                out.append(f"{file}: {program} {arguments}: {fault}")
    return out


def words(arguments: str) -> list[str]:
    """Arguments as a program gets them, those in brackets too."""
    argv = shlex.split(arguments, comments=True)
    return [word.strip("[]") for word in argv if not word.startswith(READERS)]


def imported(program: str) -> ModuleType:
    """Imports a program beside others that may define a flag of the same name."""
    if "out" in flags.FLAGS:
        del flags.FLAGS.out
    return importlib.import_module(f"experiments.{program}")


def not_understood(program: str, module: ModuleType, argv: list[str]) -> str:
    """Returns why a command is not understood; "" for one that is."""
    with flagsaver.flagsaver():
        try:
            names = _command.flags_of(module)
            left = _command.read_command([program, *argv], program, names)
        except (ValueError, KeyError) as error:
            return str(error)
    return "" if left == [program] else f"{left[1:]} belongs to no flag"


if __name__ == "__main__":
    print(len(commands()), *faults(), sep="\n")
