"""Corpora: formats, blocks of plain text, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_attr.textfiles import read_corpus
from tests.miniatures import write_lines


def test_corpus_formats(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(["one", {"text": "two", "id": 3}, "  "]))
    write_lines(tmp_path / "c.jsonl", {"text": "one\u2028x"}, "", '"two"')
    (tmp_path / "c.txt").write_text("word " * 1000 + "\n\n" + "x" * 2500, encoding="utf-8-sig")
    assert list(read_corpus(tmp_path / "c.json")) == ["one", "two"]
    assert list(read_corpus(tmp_path / "c.jsonl")) == ["one\u2028x", "two"]
    blocks = list(read_corpus(tmp_path / "c.txt"))
    assert [len(block) for block in blocks] == [1999, 1999, 999, 2000, 500]
    assert "".join("".join(blocks).split()) == "word" * 1000 + "x" * 2500
    assert all(block[-1] == "d" for block in blocks[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"x", r"ends in .json, .jsonl or .txt, not in '.csv'"),
        ("c.json", b"[]", "has no text"),
        ("c.json", b'{"text": "x"}', "holds a dict where a list"),
        ("c.json", b"[", "is not JSON"),
        ("c.json", b"[1]", "text 0 is int"),
        ("c.json", b'["\\udc00"]', "text 0: character 0 is half of a surrogate"),
        ("c.jsonl", b'\n{"story": "x"}', r"c.jsonl:2 is an object with the fields story"),
        ("c.jsonl", b"x", "c.jsonl:1 is not JSON"),
        ("c.jsonl", b'"\xff"', "c.jsonl:1: byte 1 is not UTF-8"),
        ("c.txt", b"abc\xff", "byte 3 is not UTF-8"),
        ("c.txt", b" \n ", "has no text"),
    ],
)
def test_bad_corpora(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / name)


def test_the_wikitext_corpus_reads(shared: Path) -> None:
    blocks = list(read_corpus(shared / "corpora/wikitext2_valid.txt"))
    text = (shared / "corpora/wikitext2_valid.txt").read_text(encoding="utf-8")
    assert "".join("".join(blocks).split()) == "".join(text.split())
    assert max(map(len, blocks)) <= 2000
