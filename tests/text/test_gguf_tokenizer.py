"""Tokenizers of GGUF files against the tokenizer.json of the same vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from sae_attr.files.gguf_header import GgufHeader
from sae_attr.lm.hf_folder import end_ids
from sae_attr.text.copy_tokenizer import copy_tokenizer
from sae_attr.text.gguf_cuts import CUTS, pre_tokenizer
from sae_attr.text.gguf_tokenizer import tokenizer_files
from sae_attr.text.token_file import cached_tokens
from sae_attr.text.tokenizer import adds_bos, decode, encode
from sae_attr.text.tokenizer_folder import folder_template, load_tokenizer
from tests.gguf_files import byte_level_keys, convert, sentence_piece_keys, write_gguf
from tests.miniatures import write_llama

pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

TEXTS = (
    "Hello  world 1234 don't DON'T\n\n\tdef f(x):\n    return x**2  # ok",
    "日本語のテキスト、漢字。中文测试 한국어 ١٢٣ ½ ² Ⅷ",
    "😀👩‍👩‍👧‍👦🏽 café é ﬁ \u200b\u00a0 x",
    "   leading and trailing   \n  \n",
    "a\r\nb\r\n\x00\x07",
    "a▁b ▁▁ <s>not</s> <|im_end|>",
    "",
)


def header_of(keys: dict[str, Any]) -> GgufHeader:
    """What a file with these keys reads as."""
    plain = {}
    for key, value in keys.items():
        numbers = isinstance(value, list) and value and not isinstance(value[0], str)
        plain[key] = np.array(value) if numbers else value
    return GgufHeader(Path("m.gguf"), plain, {})


def written(folder: Path, keys: dict[str, Any]) -> Path:
    tensors = {"token_embd.weight": np.ones((len(keys["tokenizer.ggml.tokens"]), 4))}
    return write_gguf(folder / "m.gguf", "llama", {}, tensors, other=keys)


def test_a_byte_level_tokenizer(shared: Path, tmp_path: Path) -> None:
    folder = shared / "tokenizers/gpt2"
    vocab = json.loads((folder / "encoder.json").read_text())
    merges = (folder / "vocab.bpe").read_text().split("\n")[1:-1]
    want = Tokenizer(models.BPE(vocab, [tuple(merge.split()) for merge in merges]))
    want.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    want.add_special_tokens(["<|endoftext|>"])
    tokens = sorted(vocab, key=vocab.__getitem__)
    keys = byte_level_keys() | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    tok = load_tokenizer(written(tmp_path, keys))
    assert tok.special_ids == {len(tokens) - 1}
    text = (shared / "corpora/wikitext2_valid.txt").read_text()[:200_000]
    for line in (*TEXTS, *text.split("\n"), "x<|endoftext|>y"):
        ids, offsets = encode(tok, line, add_bos=False)
        expected = want.encode(line, add_special_tokens=False)
        assert (ids, offsets) == (expected.ids, expected.offsets)
        assert decode(tok, ids) == line


def test_a_sentence_piece_tokenizer(
    stories: Path, shared: Path, tmp_path: Path
) -> None:
    want = load_tokenizer(stories)
    vocab = want.backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    data = [token.startswith("<0x") for token in tokens]
    keys = sentence_piece_keys() | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(259 - i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *(6 if b else 1 for b in data[3:])],
    }
    tok = load_tokenizer(written(tmp_path, keys))
    assert (tok.bos_id, tok.eos_id, tok.add_bos_token) == (1, 2, True)
    texts = json.loads((shared / "corpora/tinystories_1000.json").read_text())[:100]
    for text in (*TEXTS, *texts):
        ids, offsets = encode(tok, text, add_bos=True)
        assert (ids, offsets) == encode(want, text, add_bos=True)
        assert decode(tok, ids) == decode(want, ids)


CUT_TEXTS: dict[str, tuple[str, list[str]]] = {
    "gpt-2": ("I'LL 1234 a\n\n b", ["I", "'", "LL", " 1234", " a", "\n\n", " b"]),
    "smollm": ("x 12 'll", ["x", " ", "1", "2", " '", "ll"]),
    "llama-bpe": ("I'LL 12345\n\n b", ["I", "'LL", " ", "123", "45", "\n\n", " b"]),
    "dbrx": ("(word 12345", ["(word", " ", "123", "45"]),
    "qwen2": ("I'LL 123\n\n  b", ["I", "'LL", " ", "1", "2", "3", "\n\n", " ", " b"]),
    "tekken": ("fooBar's 12/\n", ["foo", "Bar", "'s", " ", "1", "2", "/\n"]),
    "gpt-4o": ("fooBar's 12345", ["foo", "Bar's", " ", "123", "45"]),
}


@pytest.mark.parametrize("name", CUT_TEXTS)
def test_pre_tokenisers(name: str) -> None:
    text, pieces = CUT_TEXTS[name]
    backend = Tokenizer(models.BPE())
    state = json.loads(backend.to_str()) | {"pre_tokenizer": pre_tokenizer(CUTS[name])}
    backend = Tokenizer.from_str(json.dumps(state))
    assert backend.pre_tokenizer is not None
    cuts = backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in cuts] == pieces


def test_options_of_a_file() -> None:
    whole, config = tokenizer_files(header_of(byte_level_keys("qwen2")))
    assert whole["normalizer"] == {"type": "NFC"}
    assert config["add_bos_token"] is False
    _, config = tokenizer_files(header_of(byte_level_keys("llama-bpe")))
    assert config["add_bos_token"] is True
    key = {"tokenizer.ggml.add_bos_token": False}
    whole, config = tokenizer_files(header_of(byte_level_keys("llama-bpe", **key)))
    assert (config["add_bos_token"], whole["post_processor"]) == (False, None)
    assert whole["model"]["ignore_merges"] is True
    key = {"tokenizer.ggml.add_space_prefix": False}
    whole, _ = tokenizer_files(header_of(sentence_piece_keys(**key)))
    steps = whole["normalizer"]["normalizers"]
    assert [step["type"] for step in steps] == ["Replace"]


def faults() -> Iterator[tuple[dict[str, Any], str]]:
    base, pieces = byte_level_keys(), sentence_piece_keys()
    key = lambda name, value: {f"tokenizer.ggml.{name}": value}
    tokens, count = base["tokenizer.ggml.tokens"], len(pieces["tokenizer.ggml.tokens"])
    yield {}, "holds no tokenizer"
    yield base | key("model", "bert"), "of the kind 'bert' are not read"
    yield base | key("pre", "new"), "the pre-tokeniser 'new' is not read; known: dbrx"
    yield base | key("tokens", [*tokens[:-1], "<s>"]), "has the token '<s>' twice"
    yield base | key("tokens", list(range(9))), "tokens is no list of texts"
    yield base | key("token_type", [1, 2]), "does not have a number for each of the 264"
    yield base | key("merges", ["nopair"]), "has 'nopair', which is no pair"
    yield base | key("bos_token_id", 264), "bos_token_id is 264, but there are 264"
    yield base | key("eos_token_id", -1), "eos_token_id is -1, but there are 264"
    yield pieces | key("scores", None), "lacks tokenizer.ggml.scores"
    names = [f"t{i}" for i in range(count - 1)]
    yield (
        pieces | key("tokens", ["x" * 999, *names]) | key("token_type", [1] * count),
        "999",
    )


@pytest.mark.parametrize(("keys", "words"), list(faults()))
def test_faults_are_one_error(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        tokenizer_files(header_of(keys))
    assert "m.gguf" in str(caught.value)


def test_merges_of_no_tokens(tmp_path: Path) -> None:
    keys = byte_level_keys() | {"tokenizer.ggml.merges": ["q q"]}
    with pytest.raises(
        ValueError, match=r"m\.gguf: the tokenizers library cannot read"
    ):
        load_tokenizer(written(tmp_path, keys))


def test_the_tokenizer_beside_its_model(tmp_path: Path) -> None:
    file = convert(write_llama(tmp_path / "hf", vocab=264), tmp_path / "m.gguf")
    convert(tmp_path / "hf", file, **byte_level_keys())
    tok = load_tokenizer(file, embedding_rows=264)
    assert folder_template(file) == tok.chat_template
    assert (tok.bos_id, tok.eos_id, adds_bos(tok)) == (0, 1, False)
    assert end_ids(file) == (1, 2)
    copy_tokenizer(file, tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.chat_template == tok.chat_template
    assert (copy.special_ids, copy.tokens) == (tok.special_ids, tok.tokens)
    for text in TEXTS:
        ids, _ = encode(copy, text, add_bos=True)
        assert ids == encode(tok, text, add_bos=True)[0]
    assert end_ids(write_llama(tmp_path / "copy", vocab=264)) == (1, 2)
    corpus = tmp_path / "corpus.json"
    corpus.write_text('["the 123", "x"]')
    tokens = cached_tokens(str(corpus), tok, tmp_path)
    assert tokens.meta["tokens"] == 5  # th e Ġ 123, x
