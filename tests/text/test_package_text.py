"""Docstrings of what is installed, as a corpus."""

import json

from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.package_text import (
    Docstring,
    corpus_records,
    docstrings,
    required_packages,
    source_files,
)

SOURCE = '''"""The module: it says what is in it, in enough words to be taken."""

raise RuntimeError("a source is parsed and never run")


class Pump:
    """Moves water, and says so in enough words to be taken as a text."""

    def stop(self):
        """Too short."""


def pump():
    """Moves water, and says so in enough words to be taken as a text."""
'''


def test_sources_are_parsed_and_texts_taken_once(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(SOURCE)
    bad.write_text("def (")
    files = [("a.good", good), ("a.bad", bad), ("a.gone", tmp_path / "gone.py")]
    documents = list(docstrings(files, least=40))
    assert sorted(document.name for document in documents) in (
        ["a.good", "a.good.Pump"],
        ["a.good", "a.good.pump"],
    )


def test_records_are_a_corpus_of_texts_and_conversations(tmp_path):
    documents = [Docstring(f"a.f{i}", f"Computes the {i}th thing.") for i in range(9)]
    records = corpus_records(documents)
    assert records == corpus_records(documents[::-1])
    assert sum("text" in record for record in records) == 5
    chats = [record["messages"] for record in records if "messages" in record]
    assert [turn["role"] for turn in chats[0]] == ["user", "assistant"]
    name = chats[0][1]["content"].removeprefix("Computes the ")[0]
    assert f"a.f{name}" in chats[0][0]["content"]
    texts = [record for record in records if "text" in record]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in texts))
    assert len(list(read_corpus(file))) == 5


def test_packages_that_a_package_needs():
    packages = required_packages("sae_attr")
    assert {"jax", "numpy"} <= set(packages)
    assert "pytest" not in packages  # of an extra
    names = [name for name, _ in source_files(("absl-py",))]
    assert {"absl.flags", "json.decoder"} <= set(names)
