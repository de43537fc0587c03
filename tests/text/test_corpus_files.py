"""Corpora: formats, blocks of plain text, mistakes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_attr.files import text as text_files
from sae_attr.store import fingerprint
from sae_attr.text import corpus_items, corpus_readers
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import CHATML, write_lines, write_tokenizer


def test_corpus_formats(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(
        json.dumps(["one", {"text": "two", "id": 3}, "  "])
    )
    write_lines(tmp_path / "c.jsonl", {"text": "one\u2028x"}, "", '"two"')
    (tmp_path / "c.txt").write_text(
        "word " * 1000 + "\n\n" + "x" * 2500, encoding="utf-8-sig"
    )
    assert list(read_corpus(tmp_path / "c.json")) == ["one", "two"]
    assert list(read_corpus(tmp_path / "c.jsonl")) == ["one\u2028x", "two"]
    blocks = list(read_corpus(tmp_path / "c.txt"))
    assert [len(block) for block in blocks] == [1999, 1999, 999, 2000, 500]
    assert "".join("".join(blocks).split()) == "word" * 1000 + "x" * 2500
    assert all(block[-1] == "d" for block in blocks[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.csv",
            b"x",
            r"ends in .json, .jsonl, .txt, .parquet, .arrow, not in '.csv'",
        ),
        ("c.json", b"[]", "has no text"),
        ("c.json", b'{"text": "x"}', "holds a dict where a list"),
        ("c.json", b"[", "is not JSON"),
        ("c.json", b"[1]", "text 0 is int"),
        ("c.json", b"", "is not JSON"),
        ("c.json", b'"x"', "holds a str where a list"),
        ("c.json", b'["\\udc00"]', "text 0: character 0 is half of a surrogate"),
        (
            "c.jsonl",
            b'\n{"story": "x"}',
            r"c.jsonl:2 is an object with the fields story",
        ),
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


@pytest.mark.parametrize("read", [1, 7, 4096])
def test_files_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    items = ["é" * 30, "", {"text": 'a, [b] "c"', "n": [1, {"x": 2}]}, "  x  "]
    (tmp_path / "c.json").write_text(
        json.dumps(items, indent=2, ensure_ascii=False), encoding="utf-8-sig"
    )
    text = ("wörd " * 700 + "\n\n" + "x" * 4500 + " ") * 2
    (tmp_path / "c.txt").write_text(text, encoding="utf-8-sig")
    whole = list(read_corpus(tmp_path / "c.txt"))
    monkeypatch.setattr(corpus_readers, "_READ", read)
    assert list(read_corpus(tmp_path / "c.json")) == ["é" * 30, 'a, [b] "c"', "  x  "]
    assert list(read_corpus(tmp_path / "c.txt")) == whole
    assert "".join("".join(whole).split()) == "".join(text.split())
    (tmp_path / "bad.txt").write_bytes("é".encode() * 9 + b"\xff")
    with pytest.raises(ValueError, match="byte 18 is not UTF-8"):
        list(read_corpus(tmp_path / "bad.txt"))


@pytest.mark.parametrize(
    "content", ['["a" "b"]', '["a", "b"', '["a", "b"] x', '["a",]']
)
def test_a_list_that_breaks_off_is_not_read_as_shorter(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match="is not JSON"):
        list(read_corpus(tmp_path / "c.json"))


def test_the_field_of_the_text_can_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"story": "x"})
    assert list(read_corpus(path, column="story")) == ["x"]
    with pytest.raises(ValueError, match=r'fields story where a string or \{"body"'):
        read_corpus(path, column="body")


# ---- tables and folders --------------------------------------------------------------


def write_parquet(path: Path, **columns: list[object]) -> None:
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="parquet needs pyarrow, the extra `data`"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), path)


def write_arrow(path: Path, texts: list[str], *, stream: bool = True) -> None:
    pa = pytest.importorskip(
        "pyarrow", reason="arrow files need pyarrow, the extra `data`"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": texts})
    open_file = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, open_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_parquet(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(600)]
    write_parquet(tmp_path / "c.parquet", body=[*texts, None, " "], n=[*range(602)])
    assert list(read_corpus(tmp_path / "c.parquet", column="body")) == texts
    with pytest.raises(ValueError, match=r"no column 'text'; it has body, n: name one"):
        read_corpus(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"column 'n' holds int64 where text"):
        read_corpus(tmp_path / "c.parquet", column="n")


@pytest.mark.parametrize("stream", [True, False])
def test_arrow(tmp_path: Path, stream: bool) -> None:
    texts = [f"text {i}" for i in range(300)]
    write_arrow(tmp_path / "c.arrow", texts, stream=stream)
    assert list(read_corpus(tmp_path / "c.arrow")) == texts
    with pytest.raises(ValueError, match="no column 'body'"):
        read_corpus(tmp_path / "c.arrow", column="body")


def test_a_saved_dataset(tmp_path: Path) -> None:
    for split in ("train", "test"):
        names = [
            f"data-{i:05d}-of-00002.arrow" for i in (1, 0)
        ]  # the order that the folder states
        for name in names:
            write_arrow(tmp_path / split / name, [f"{split} {name[5:10]}"])
        (tmp_path / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": n} for n in names]})
        )
        (tmp_path / split / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert list(read_corpus(tmp_path / "train")) == ["train 00001", "train 00000"]
    assert list(read_corpus(tmp_path, split="test")) == ["test 00001", "test 00000"]
    with pytest.raises(ValueError, match=r"no split was named; it has train, test"):
        read_corpus(tmp_path)


def test_a_folder_as_on_the_hub(tmp_path: Path) -> None:
    for i in (0, 1):
        write_parquet(
            tmp_path / f"data/train-{i:05d}-of-00002.parquet", text=[f"train {i}"]
        )
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", text=["test"])
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert list(read_corpus(tmp_path, split="train")) == ["train 0", "train 1"]
    with pytest.raises(
        ValueError, match=r"split 'dev' is not there; it has test, train"
    ):
        read_corpus(tmp_path, split="dev")


def test_folders_of_text(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"files of one kind .* but holds no such file"
    ):
        read_corpus(tmp_path)
    write_lines(tmp_path / "b.jsonl", '"b"')
    (tmp_path / "a").mkdir()
    write_lines(tmp_path / "a/z.jsonl", '"a"')
    assert list(read_corpus(tmp_path)) == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"split 'train' is not there; it has no splits"
    ):
        read_corpus(tmp_path, split="train")
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds files ending in .jsonl and .txt"):
        read_corpus(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'sae_attr\[data\]'"):
        read_corpus(tmp_path / "c.parquet")


def test_the_wikitext_corpus_reads(shared: Path) -> None:
    blocks = list(read_corpus(shared / "corpora/wikitext2_valid.txt"))
    text = (shared / "corpora/wikitext2_valid.txt").read_text(encoding="utf-8")
    assert "".join("".join(blocks).split()) == "".join(text.split())
    assert max(map(len, blocks)) <= 2000


# ---- conversations -------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
WRITTEN = "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(
        write_tokenizer(tmp_path_factory.mktemp("tok"), chat_template=CHATML)
    )


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"messages": MESSAGES, "n": 1}, {}),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "ho"},
                ]
            },
            {},
        ),
        ({"text": MESSAGES}, {}),
        ({"chat": MESSAGES, "messages": []}, {"column": "chat"}),
        ({"prompt": MESSAGES[:1], "completion": "ho"}, {}),
        (
            {
                "prompt": [MESSAGES[0], MESSAGES[1] | {"content": "h"}],
                "completion": "o",
            },
            {},
        ),
        ({"prompt": "hi", "completion": MESSAGES[1:]}, {}),
        (MESSAGES, {}),
        ({"messages": [m | {"tool_calls": None} for m in MESSAGES]}, {}),
    ],
)
def test_conversations_are_written_with_the_models_template(
    tmp_path: Path, tok: Tokenizer, record: Any, options: dict[str, Any]
) -> None:
    path = write_lines(tmp_path / "c.jsonl", record, '"plain"')
    assert list(read_corpus(path, tok=tok, **options)) == [WRITTEN, "plain"]
    (tmp_path / "c.json").write_text(json.dumps([record, "plain"]))
    assert list(read_corpus(tmp_path / "c.json", tok=tok, **options)) == [
        WRITTEN,
        "plain",
    ]


def test_conversations_of_tables(tmp_path: Path, tok: Tokenizer) -> None:
    write_parquet(
        tmp_path / "a.parquet", messages=[MESSAGES, None, MESSAGES], n=[1, 2, 3]
    )
    assert list(read_corpus(tmp_path / "a.parquet", tok=tok)) == [WRITTEN, WRITTEN]
    columns = {
        "role": ["user", "assistant"],
        "content": ["hi", "ho"],
    }  # as older data sets store a list of objects
    write_parquet(tmp_path / "b.parquet", talk=[columns])
    assert list(read_corpus(tmp_path / "b.parquet", column="talk", tok=tok)) == [
        WRITTEN
    ]
    write_parquet(tmp_path / "c.parquet", prompt=["a", "b"], completion=[" c", None])
    assert list(read_corpus(tmp_path / "c.parquet")) == ["a c"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "hi"}, None),
        (
            {"messages": [1]},
            r"c.jsonl:1: message 0 needs the strings role and content; it has neither",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            r"message 0 needs the strings",
        ),
        (
            {"messages": [{"role": "us\ud800er", "content": "x"}]},
            r"c.jsonl:1.* half of a surrogate pair",
        ),
        (
            {"messages": {"a": 1}},
            r"c.jsonl:1 is a dict where a text or a list of messages",
        ),
        (
            {"messages": [], "text": None},
            "has no text; a corpus needs at least one text",
        ),
    ],
)
def test_conversations_that_are_none(
    tmp_path: Path, tok: Tokenizer, record: Any, message: str | None
) -> None:
    path = write_lines(tmp_path / "c.jsonl", record)
    if message is None:
        assert list(read_corpus(path, tok=tok)) == ["hi"]
        return
    with pytest.raises(ValueError, match=message):
        read_corpus(path, tok=tok)


def test_a_conversation_needs_a_template(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"messages": MESSAGES})
    with pytest.raises(
        ValueError,
        match=r"c.jsonl:1 is a conversation, which needs a model's chat template",
    ):
        read_corpus(path)
    with pytest.raises(
        ValueError, match=r"c.jsonl:1: .* the tokenizer has no chat template"
    ):
        read_corpus(path, tok=load_tokenizer(write_tokenizer(tmp_path / "tok")))


# ---- what never ends, or is damaged --------------------------------------------------


@pytest.mark.parametrize("ending", ["json", "jsonl", "txt", "parquet"])
def test_devices_and_pipes_are_refused_at_once(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"zero.{ending}").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / f"pipe.{ending}")
    for name in ("zero", "pipe"):
        path = tmp_path / f"{name}.{ending}"
        with pytest.raises(
            ValueError, match=rf"{name}.{ending} is a device, pipe or socket"
        ):
            read_corpus(path)
        with pytest.raises(ValueError, match="is a device, pipe or socket"):
            fingerprint(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'"a"\n' + b"[" * 100_000, "c.jsonl:2 is nested too deeply"),
        ("c.json", b"[" * 100_000, "c.json is nested too deeply"),
        ("c.jsonl", b'"a"\n"' + b"b" * 200, "c.jsonl:2 is longer than 100 bytes"),
        ("c.json", b'["' + b"b" * 200, "c.json has an item longer than 100"),
        (
            "c.jsonl",
            gzip.compress(b'"a"', mtime=0),
            "c.jsonl:1: the file is compressed by gzip; unpack it",
        ),
        ("c.jsonl", b'"a\x00b"', "c.jsonl:1 is not JSON"),
        ("c.txt", "a b".encode("utf-16-le"), "c.txt holds a NUL character"),
        ("c.txt", "a b".encode("utf-16"), "byte 0 is not UTF-8"),
        (
            "c.jsonl",
            b'"a"\n"\\ud800"',
            "c.jsonl:2: character 0 is half of a surrogate pair",
        ),
        ("c.parquet", b"PAR1", "c.parquet cannot be read as a table"),
        ("c.arrow", b"ARROW1", "c.arrow cannot be read as a table"),
        (
            "state.json",
            b'{"_data_files": [{"filename": "../c.json"}]}',
            "names the file '../c.json', which is none of",
        ),
        ("state.json", b"[1]", "state.json has no list '_data_files'"),
        ("dataset_dict.json", b'{"splits": [1]}', "names splits that are no folders"),
        (
            "dataset_dict.json",
            b'{"splits": [".."]}',
            "names splits that are no folders",
        ),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(
        text_files, "LINE", 100 if "longer" in message else text_files.LINE
    )
    for module in (corpus_items, corpus_readers):
        monkeypatch.setattr(module, "LINE", text_files.LINE)
    (tmp_path / name).write_bytes(content)
    path = tmp_path if name.startswith(("state", "dataset")) else tmp_path / name
    with pytest.raises(ValueError, match=message) as raised:
        list(read_corpus(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["c.jsonl", "c.json", "c.txt", "c.parquet", "c.arrow", "folder/c.txt"]
)
def test_a_pointer_in_the_place_of_a_file_is_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    corpus = path.parent if "/" in name else path
    with pytest.raises(
        ValueError, match=r"c\.\w+ is a Git LFS pointer, not the file itself"
    ):
        list(read_corpus(corpus))


def test_nulls_are_blank_in_lines_as_in_tables(tmp_path: Path, tok: Tokenizer) -> None:
    path = write_lines(
        tmp_path / "c.jsonl",
        {"text": None},
        {"text": "a"},
        {"prompt": "b", "completion": None},
    )
    assert list(read_corpus(path, tok=tok)) == ["a"]


def test_other_spellings_of_a_prefill_are_gone_on_with(
    tmp_path: Path, tok: Tokenizer
) -> None:
    given = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "h"}]
    path = write_lines(tmp_path / "c.jsonl", {"prompt": given, "completion": "o"})
    assert list(read_corpus(path, tok=tok)) == [WRITTEN]
