"""Tokenizer folders: BOS at most once, offsets of the original text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from sae_attr.text.tokenizer import (
    adds_bos,
    check_ids,
    decode,
    encode,
    encode_many,
    token_strings,
)
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_tokenizer


def test_ids_and_special_tokens(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path))
    assert (tok.bos_id, tok.eos_id, tok.pad_id) == (0, 1, None)
    assert tok.special_ids == frozenset({0, 1, 2, 3})
    assert tok.vocab_size == tok.backend.get_vocab_size()
    ids, offsets = encode(tok, "hé</s>", add_bos=False)
    assert ids[-1] == 1
    assert offsets == [(0, 1), (1, 2), (2, 6)]
    assert decode(tok, ids).replace(" ", "") == "hé</s>"
    assert token_strings(tok, [*ids, 9999]) == ["h", "é", "</s>", "<id 9999>"]


@pytest.mark.parametrize(
    ("post", "stated", "expected"),
    [(False, None, False), (True, None, True), (True, False, False)],
)
def test_adds_bos_follows_the_configuration_then_the_post_processor(
    tmp_path: Path, post: bool, stated: bool | None, expected: bool
) -> None:
    config = {} if stated is None else {"add_bos_token": stated}
    tok = load_tokenizer(write_tokenizer(tmp_path, post=post, **config))
    assert adds_bos(tok) is expected
    assert (
        encode(tok, "a", add_bos=False)[0] == encode(tok, "a", add_bos=True)[0][1:]
    )  # never by the post-processor


def test_bos_of_id_zero_is_a_bos(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, add_bos_token=True))
    assert adds_bos(tok)
    ids, offsets = encode(tok, "ab", add_bos=True)
    assert ids[0] == 0
    assert offsets == [(0, 0), (0, 1), (1, 2)]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("text", ["<s>ab", "<s><s>ab"])
def test_at_most_one_bos(tmp_path: Path, text: str, add_bos: bool) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, post=True))
    ids, offsets = encode(tok, text, add_bos=add_bos)
    assert ids.count(0) == 1
    assert ids[0] == 0
    assert [text[a:b] for a, b in offsets] == ["<s>", "a", "b"]
    assert encode_many(tok, [text, "ab"], add_bos=add_bos)[0] == ids


def test_bos_is_found_in_the_post_processor_where_no_file_names_it(
    tmp_path: Path,
) -> None:
    folder = write_tokenizer(tmp_path, post=True)
    (folder / "tokenizer_config.json").unlink()
    tok = load_tokenizer(folder)
    assert tok.bos_id == 0
    assert adds_bos(tok)
    assert tok.chat_template is None


def test_special_tokens_map_is_read_and_the_config_wins(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, pad_token=None)
    names = {
        "bos_token": "</s>",
        "pad_token": "<|im_end|>",
        "additional_special_tokens": ["a"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    tok = load_tokenizer(folder)
    assert (tok.bos_id, tok.pad_id) == (0, 3)
    assert tok.backend.token_to_id("a") in tok.special_ids


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    assert len(encode(load_tokenizer(folder), "abcd", add_bos=False)[0]) == 4


def test_a_missing_tokenizer_names_what_is_there_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"no tokenizer.json \(found: tokenizer.model\).*AutoTokenizer.*save_pretrained",
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"found: nothing"):
        load_tokenizer(tmp_path / "absent")


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is not JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a list"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"tokenizer.json: the tokenizers library cannot read it"
    ):
        load_tokenizer(folder)


def test_a_named_bos_must_exist(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"names bos_token '<bos>' but tokenizer.json has no such token",
    ):
        load_tokenizer(write_tokenizer(tmp_path, bos_token="<bos>"))
    tok = load_tokenizer(write_tokenizer(tmp_path, bos_token=None))
    assert tok.bos_id is None
    assert not adds_bos(tok)
    with pytest.raises(
        ValueError, match=r"the tokenizer has none; set prepend_bos=False"
    ):
        encode(tok, "a", add_bos=True)


def test_stories_tokenizer(shared: Path) -> None:
    tok = load_tokenizer(shared / "models/stories260K")
    assert (tok.bos_id, tok.eos_id, tok.vocab_size, tok.special_ids) == (
        1,
        2,
        512,
        frozenset({0, 1, 2}),
    )
    assert adds_bos(tok)
    text = "Once upon a time, hé 你"
    ids, offsets = encode(tok, text, add_bos=True)
    assert ids == tok.backend.encode(text).ids
    assert all(0 <= a <= b <= len(text) for a, b in offsets)
    assert (
        "".join(text[a:b] for a, b in offsets[:5]) == "Once upon a time"
    )  # the prepended space is in no offset
    assert token_strings(tok, ids[:4]) == ["<s>", " Once", " upon", " a"]
    assert decode(tok, ids[1:]) == text


def test_pythia_has_bos_zero_and_untrimmed_offsets(
    shared: Path, tmp_path: Path
) -> None:
    shutil.copy(
        shared / "tokenizers/pythia_tokenizer.json", tmp_path / "tokenizer.json"
    )
    config = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"add_bos_token": False})
    )
    tok = load_tokenizer(tmp_path)
    assert (tok.bos_id, tok.eos_id, tok.vocab_size) == (0, 0, 50277)
    assert not adds_bos(tok)
    text = "a  b \n  c"
    ids, offsets = encode(tok, text, add_bos=True)
    assert ids[0] == 0
    assert "".join(text[a:b] for a, b in offsets) == text
    assert encode(tok, "<|endoftext|>" + text, add_bos=True)[0] == ids


def changed(folder: Path, change: dict[str, Any]) -> Path:
    """The miniature tokenizer with parts of its tokenizer.json replaced."""
    file = write_tokenizer(folder) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


GROWING = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}]
    * 40,
}
POST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<q>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "normalizer": {
                    "type": "Precompiled",
                    "precompiled_charsmap": "//////8AAAAAAA==",
                }
            },
            "charsmap is damaged",
        ),  # aborts
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
            "charsmap is not base64",
        ),
        (
            {"normalizer": GROWING},
            "make a text 1,099,511,627,776 times as long",
        ),  # hangs
        (
            {"post_processor": POST},
            "the tokenizers library cannot read it",
        ),  # panics, past `except Exception`
        (
            {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}},
            "the tokenizers library cannot read it",
        ),
        (
            {
                "model": {
                    "type": "WordLevel",
                    "vocab": {"a": 2**32 - 1},
                    "unk_token": "a",
                }
            },
            "has the id 4294967295",
        ),
        ({"added_tokens": [{"id": -1, "content": "x"}]}, "has the id -1"),
    ],
)
def test_a_tokenizer_that_would_end_or_hang_the_process(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"tokenizer.json.*{message}") as raised:
        load_tokenizer(changed(tmp_path / "t", change))
    assert "\n" not in str(raised.value)


def test_a_pattern_that_runs_away_is_one_line(tmp_path: Path) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    tok = load_tokenizer(changed(tmp_path / "t", {"pre_tokenizer": split}))
    with pytest.raises(
        ValueError, match=r"cannot read it, or a text with it: .*retry-limit"
    ):
        encode(tok, "a" * 40 + "!", add_bos=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"chat_template": 3}', "chat_template is neither a text nor a list"),
        (
            '{"chat_template": [{"name": "a"}]}',
            "chat_template is neither a text nor a list",
        ),
        ('{"bos_token": 7}', "names the special token 7; expected its text"),
    ],
)
def test_a_configuration_of_other_types(
    tmp_path: Path, text: str, message: str
) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_ids_beyond_any_integer_type_and_a_bos_that_the_model_lacks(
    tmp_path: Path,
) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, bos_token="z"), embedding_rows=50)
    for token in (10**20, 2**31, 2**32 + 1):
        with pytest.raises(
            ValueError,
            match=f"token id {token} is beyond the model's embedding of 50 rows",
        ):
            check_ids(tok, [1, token])
    beyond = rf"token id {tok.bos_id} \('z'\) is beyond the model's embedding"
    with pytest.raises(ValueError, match=beyond):
        encode(tok, "1", add_bos=True)
    with pytest.raises(ValueError, match=beyond):
        encode_many(tok, ["1"], add_bos=True)
