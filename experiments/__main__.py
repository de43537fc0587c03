"""The command `sae_attr NAME ...` of an install, which is `python -m experiments NAME
...` in a checkout: lists the experiments, or starts one.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from sae_attr import __version__

HERE = Path(__file__).resolve().parent
PACKAGE = str(__package__)
USAGE = (
    "usage: sae_attr NAME [--FLAG=VALUE ...] [--config.KEY=VALUE ...]\n"
    "       sae_attr NAME --help     its flags and keys with defaults and meaning\n"
    "       sae_attr --version"
)


def experiments() -> dict[str, str]:
    """Returns the name of every experiment with a sentence about it.

    The sources are parsed and not imported: a list should not wait for jax.
    """
    sentences = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        paragraph = " ".join(text.split("\n\n")[0].split())
        sentences[path.stem] = paragraph.partition("; see ")[0].rstrip(".")
    return sentences


def list_text() -> str:
    """Returns the usage and the list of experiments."""
    sentences = experiments()
    width = max(len(name) for name in sentences)
    lines = [f"  {name:<{width}}  {sentences[name]}" for name in sentences]
    return "\n".join([USAGE, "", "experiments:", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the experiments, or runs one as `python -m` would.

    Args:
      argv: without the program's name; None: the command line's.

    Returns:
      The exit status, where no experiment is started: one that starts ends with its
      own.
    """
    arguments = sys.argv[1:] if argv is None else argv
    name, *rest = arguments or [""]
    if name in ("", "-h", "--help", "help"):
        print(list_text())
        return 0
    if name == "--version":
        print(f"sae_attr {__version__}")
        return 0
    names = list(experiments())
    if name not in names:
        near = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(
            f"error: there is no experiment {name!r}; {hint}There are "
            f"{', '.join(names)}",
            file=sys.stderr,
        )
        return 1
    sys.argv = [name, *rest]
    runpy.run_module(f"{PACKAGE}.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
