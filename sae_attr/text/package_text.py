"""English text that every machine has: docstrings of the standard library and of
installed packages, as a corpus of texts and conversations.

It is what an SAE is trained on where no other text is at hand. It is technical prose, so
an SAE trained on it describes other text less well; corpora of one's own are better.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_attr.store import digest

# Users' questions about a name; every second record is such a conversation.
QUESTIONS = (
    "What does {} do?",
    "Can you explain {} to me?",
    "How is {} used?",
    "Tell me about {}, please.",
    "I don't understand {}. What is it for?",
    "Please describe {}.",
)


@dataclass(frozen=True)
class Docstring:
    """A docstring.

    Args:
      name: dotted, of the module, class or function.
      text: without its indentation.
    """

    name: str
    text: str


def required_packages(distribution: str) -> tuple[str, ...]:
    """Returns the installed distributions that one needs, its needs' needs among them,
    by name; extras are left out.
    """
    needed: set[str] = set()
    left = [distribution]
    while left:
        try:
            lines = metadata.requires(left.pop()) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform, or not installed
        for line in lines:
            requirement, _, marker = line.partition(";")
            name = re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]
            if "extra" not in marker and name not in needed:
                needed.add(name)
                left.append(name)
    return tuple(sorted(needed))


def source_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yields dotted module names and .py files: of the standard library, then of the
    installed distributions of these names.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if not {"site-packages", "test", "tests", "idlelib"} & set(inside.parts):
            yield _module(inside), path
    for package in packages:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in sorted(files):
            if file.suffix == ".py" and "tests" not in file.parts:
                yield _module(Path(file)), Path(str(file.locate()))


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def docstrings(
    files: Iterable[tuple[str, Path]], *, least: int = 200
) -> Iterator[Docstring]:
    """Yields the docstrings of sources, each text once; the sources are parsed, never
    imported.

    Args:
      files: dotted module names and paths; what does not parse is passed over.
      least: characters of the shortest.
    """
    texts: set[str] = set()
    for module, path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in other people's code
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for name, text in _documented(tree, module):
            if len(text) >= least and text not in texts:
                texts.add(text)
                yield Docstring(name, text)


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    waiting: list[tuple[str, Any]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        text = ast.get_docstring(node)
        if text is not None:
            yield name, text
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                waiting.append((f"{name}.{child.name}", child))


def corpus_records(documents: Iterable[Docstring]) -> list[dict[str, Any]]:
    """Returns records of a corpus, by turns a text and a conversation about it, in an
    order drawn by a hash of each text.
    """
    # Packages come one after the other in the files: training would see them so too.
    mixed = sorted(documents, key=lambda document: digest(document.text))
    records: list[dict[str, Any]] = []
    for number, document in enumerate(mixed):
        if number % 2:
            question = QUESTIONS[number // 2 % len(QUESTIONS)].format(document.name)
            records.append(
                {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": document.text},
                    ]
                }
            )
        else:
            records.append({"text": document.text})
    return records
