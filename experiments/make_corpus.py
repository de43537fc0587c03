"""Writes a corpus of what every machine has: docstrings of the standard library and of
the packages that this one needs.

    python -m experiments.make_corpus --out=runs/corpus.jsonl

A minute; about three million tokens. Half of the records are texts, half conversations;
see sae_attr/text/package_text.py.
"""

from __future__ import annotations

import json

from absl import flags
from etils import epath

from sae_attr.store import write_atomic
from sae_attr.text.package_text import (
    corpus_records,
    docstrings,
    required_packages,
    source_files,
)

from . import _common

OUT = flags.DEFINE_string("out", "runs/corpus.jsonl", "File to write, JSONL.")
PACKAGES = flags.DEFINE_list(
    "packages",
    None,
    "Installed packages whose docstrings are taken beside the standard library's; "
    "those that sae_attr needs unless they are given.",
)


def main(argv: list[str]) -> None:
    """Writes the corpus where the flags say."""
    _common.begin(argv or [""], cluster=False)
    packages = PACKAGES.value
    if packages is None:
        packages = required_packages("sae_attr")
    records = corpus_records(docstrings(source_files(packages)))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    text = "".join(lines)
    write_atomic(epath.Path(OUT.value), text.encode("utf-8", "backslashreplace"))
    print(
        f"wrote {OUT.value}: {len(lines):,} records, {len(text) / 1e6:.1f} M characters"
    )
    print("next: it is the corpus of other commands")


if __name__ == "__main__":
    _common.run_app(main)
