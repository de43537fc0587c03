"""Pairs, corpora, batches and masks: what is read, how it is split, which positions count."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from sae_attr.data import (
    BOS,
    COMPLETION,
    LAST,
    ROLES,
    TEMPLATE,
    USER,
    Pair,
    Row,
    batches,
    corpus_batches,
    corpus_mask,
    encode_pairs,
    read_corpus,
    read_pairs,
    scope_mask,
    shown_tokens,
)
from sae_attr.tokenizer import Tokenizer, decode, load_tokenizer, render

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def small_tokenizer(folder: Path, *, post: bool = True, **config: Any) -> Tokenizer:
    """One token a character, except "xy" and "\\n " that are one token each; BOS has id 0."""
    characters = sorted(set(string.printable) - {"?"})
    vocab = {token: i for i, token in enumerate((*SPECIAL, "?", *characters, "xy", "\n "))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"xy|\n |[\s\S]"), "isolated")
    backend.add_special_tokens(list(SPECIAL))
    if post:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.fixture
def tok(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path / "tokenizer")


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def pair_of(prompt: Any = "ab", positive: Any = "cd", negative: Any = (), **fields: Any) -> Pair:
    positives = (positive,) if isinstance(positive, str) else tuple(positive)
    negatives = (negative,) if isinstance(negative, str) else tuple(negative)
    return Pair(id="p", prompt=prompt, positives=positives, negatives=negatives, line=7, **fields)


def rows_of(tok: Tokenizer, *pairs: Pair, **options: Any) -> list[Row]:
    return encode_pairs(pairs, tok, **({"context": 512, "path": "pairs.jsonl"} | options)).rows


def random_rows(count: int, seed: int = 0, longest: int = 200) -> list[Row]:
    """Ragged rows with distinct contents."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        prompt, completion = (int(n) for n in rng.integers(1, longest // 2, 2))
        roles = np.full(prompt + completion, USER, np.int8)
        roles[prompt:] = COMPLETION
        ids = rng.integers(1, 99, prompt + completion).astype(np.int32)
        rows.append(Row(ids, prompt, roles, np.zeros(len(ids), bool), k // 2, 1 - 2 * (k % 2), 0))
    return rows


# ---- reading pairs -----------------------------------------------------------------------------------------------


def test_read_pairs(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": "x"}]
    path = write_lines(
        tmp_path / "pairs.jsonl",
        {
            "id": "a",
            "prompt": "p",
            "positive": "c",
            "negative": ["d", "e"],
            "sampler": "m",
            "scores": [1],
            "note": None,
        },
        "",
        {"prompt": messages, "positive": ["c"], "negative": None},
        {"id": 5, "prompt_ids": [1, 2], "positive_ids": [3], "negative_ids": [[4], [5, 6]]},
    )
    first, second, third = read_pairs(path)
    assert (first.id, first.positives, first.negatives, first.sampler, first.line) == ("a", ("c",), ("d", "e"), "m", 1)
    assert first.extra == {"scores": [1], "note": None}
    assert (second.id, second.prompt, second.negatives, second.line) == ("line-3", tuple(messages), (), 3)
    assert (third.id, third.prompt, third.prompt_ids) == ("5", "", (1, 2))
    assert (third.positive_ids, third.negative_ids) == (((3,),), ((4,), (5, 6)))


GOOD = {"prompt": "p", "positive": "c"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a list where an object"),
        ({"positive": "c", "x": 1}, r"'prompt' is missing \(found: positive, x\)"),
        ({"prompt": "p", "negative": "c"}, "'positive' is missing"),
        (GOOD | {"prompt": 3}, "'prompt' is 3; it must be a string or a list of messages"),
        (GOOD | {"prompt": []}, "'prompt' is .*not empty"),
        (GOOD | {"prompt": [{"role": "user"}]}, "message 0 of 'prompt' .* needs the strings role and content"),
        (GOOD | {"prompt": ["hi"]}, "message 0 of 'prompt'"),
        (GOOD | {"positive": 1}, "'positive' is 1; it must be a string or a list of strings"),
        (GOOD | {"negative": ["a", 2]}, "'negative' is .*list of strings"),
        (GOOD | {"positive": ""}, "'positive' is empty or holds an empty completion"),
        (GOOD | {"positive": []}, "'positive' is empty"),
        (GOOD | {"negative": ["a", ""]}, "'negative' is empty or holds"),
        (GOOD | {"id": True}, "'id' is True"),
        (GOOD | {"id": [1]}, "'id' is"),
        (GOOD | {"id": "first"}, "id 'first' stands on line 1 too"),
        (GOOD | {"sampler": 3}, "'sampler' is 3"),
        ('{"prompt": "p\\ud800", "positive": "c"}', "half of a surrogate pair"),
        (GOOD | {"prompt_ids": [1.5], "positive_ids": [1]}, "'prompt_ids' must be a list of token ids"),
        (GOOD | {"positive_ids": [True]}, "'positive_ids' must be"),
        (GOOD | {"positive_ids": [-1]}, "'positive_ids' must be"),
        (GOOD | {"positive_ids": []}, "empty list of token ids"),
        (GOOD | {"positive_ids": [[1], []]}, "empty list of token ids"),
        (GOOD | {"prompt_ids": [[1], [2]], "positive_ids": [1]}, "2 lists but a record has one prompt"),
        (GOOD | {"positive_ids": [[1], [2]]}, "1 texts in 'positive' but 2 in 'positive_ids'"),
        (GOOD | {"prompt_ids": [1]}, "'positive' is text only .* add 'positive_ids'"),
        (GOOD | {"negative": "d", "positive_ids": [1]}, "'negative' is text only"),
    ],
)
def test_bad_pairs_are_named_with_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", GOOD | {"id": "first"}, "", line)
    with pytest.raises(ValueError, match=rf"pairs.jsonl:3.*{message}"):
        read_pairs(path)


def test_empty_and_undecodable_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.jsonl has no records"):
        read_pairs(write_lines(tmp_path / "pairs.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "p", "positive": "c"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin.jsonl:2: byte 12 is not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


# ---- encoding ----------------------------------------------------------------------------------------------------


def test_plain_prompt(tok: Tokenizer) -> None:
    positive, negative = rows_of(tok, pair_of("ab</s>c", "de", "f"))
    assert decode(tok, positive.ids).replace(" ", "") == "<s>ab</s>cde"
    assert positive.roles.tolist() == [BOS, USER, USER, TEMPLATE, LAST, COMPLETION, COMPLETION]
    assert positive.special.tolist() == [True, False, False, True, False, False, False]
    assert (positive.n_prompt, positive.pair, positive.side, positive.completion) == (5, 0, 1, 0)
    assert (negative.n_prompt, negative.side, len(negative.ids)) == (5, -1, 6)
    assert positive.ids.dtype == np.int32
    assert positive.roles.dtype == np.int8


@pytest.mark.parametrize(("prepend_bos", "expected"), [(None, 1), (True, 1), (False, 0)])
def test_bos_of_a_plain_prompt(tok: Tokenizer, prepend_bos: bool | None, expected: int) -> None:
    (row,) = rows_of(tok, pair_of("ab"), prepend_bos=prepend_bos)
    assert (row.ids == 0).sum() == expected
    assert (row.roles == BOS).sum() == expected


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_template_and_tokenizer_never_give_two_bos(tok: Tokenizer, prepend_bos: bool | None) -> None:
    (row,) = rows_of(tok, pair_of(({"role": "user", "content": "hi"},)), prepend_bos=prepend_bos)
    assert row.ids[0] == 0
    assert (row.ids == 0).sum() == 1


def test_a_chat_template_decides_about_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path, chat_template=CHATML.removeprefix("{{ bos_token }}"))
    chat = pair_of(({"role": "user", "content": "hi"},))
    assert (rows_of(tok, chat)[0].ids == 0).sum() == 0
    assert (rows_of(tok, chat, prepend_bos=True)[0].ids == 0).sum() == 1


def test_roles_of_a_chat_prompt_character_by_character(tok: Tokenizer) -> None:
    contents = ["system", "user", " assistant\n\nok ", "hi <there>"]
    roles = ["system", "user", "assistant", "user"]
    messages = tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))
    (row,) = rows_of(tok, pair_of(messages, "yes"))
    expected = [BOS]
    for role, content in zip(roles, contents, strict=True):
        expected += [TEMPLATE] * (1 + len(role) + 1) + [USER] * len(content.strip()) + [TEMPLATE] * 2
    expected += [TEMPLATE] * (1 + len("assistant")) + [LAST] + [COMPLETION] * 3
    assert row.roles.tolist() == expected
    assert "".join(tok.backend.id_to_token(i) for i in row.ids) == render(tok, messages) + "yes"


def test_a_straddling_token_belongs_to_the_completion(tok: Tokenizer) -> None:
    encoded = encode_pairs([pair_of("abx", "yc", "zc"), pair_of("ab", "xy")], tok, context=16, path="pairs.jsonl")
    assert encoded.straddling == 1
    assert [row.n_prompt for row in encoded.rows] == [3, 4, 3]
    assert [len(row.ids) - row.n_prompt for row in encoded.rows] == [2, 2, 1]
    assert encoded.rows[0].roles.tolist() == [BOS, USER, LAST, COMPLETION, COMPLETION]


def test_given_ids_win(tok: Tokenizer) -> None:
    a, b, x, y, c = (tok.backend.token_to_id(t) for t in "abxyc")
    given = pair_of("abx", "y", prompt_ids=(0, a, b, x), positive_ids=((y, 1),), negative_ids=((c,), (c, c)))
    rows = rows_of(tok, given)
    assert [row.ids.tolist() for row in rows] == [[0, a, b, x, y, 1], [0, a, b, x, c], [0, a, b, x, c, c]]
    assert rows[0].roles.tolist() == [BOS, USER, USER, LAST, COMPLETION, COMPLETION]
    assert [(row.side, row.completion) for row in rows] == [(1, 0), (-1, 0), (-1, 1)]


def test_given_completion_ids_follow_the_encoded_prompt(tok: Tokenizer) -> None:
    y = tok.backend.token_to_id("y")
    (row,) = rows_of(tok, pair_of("abx", (), positive_ids=((y,),)))
    assert row.n_prompt == 4
    assert row.roles.tolist() == [BOS, USER, USER, LAST, COMPLETION]


def test_given_prompt_ids_take_the_roles_of_the_prompt_they_encode(tok: Tokenizer) -> None:
    messages = ({"role": "user", "content": "hi"},)
    (text_row,) = rows_of(tok, pair_of(messages, "c"))
    ids = tuple(text_row.ids[: text_row.n_prompt].tolist())
    (row,) = rows_of(tok, pair_of(messages, (), prompt_ids=ids, positive_ids=((9,),)))
    assert row.roles.tolist() == text_row.roles.tolist()
    (other,) = rows_of(tok, pair_of("something else", (), prompt_ids=ids, positive_ids=((9,),)))
    assert set(other.roles[1:-2]) == {USER, TEMPLATE}
    assert (other.roles == TEMPLATE).sum() == other.special.sum() - 1


def test_given_prompt_ids_get_bos_only_when_asked(tok: Tokenizer) -> None:
    bare = pair_of("", (), prompt_ids=(8,), positive_ids=((9,),))
    assert rows_of(tok, bare)[0].ids.tolist() == [8, 9]
    assert rows_of(tok, bare, prepend_bos=True)[0].ids.tolist() == [0, 8, 9]
    begun = pair_of("", (), prompt_ids=(0, 8), positive_ids=((9,),))
    assert rows_of(tok, begun, prepend_bos=True)[0].ids.tolist() == [0, 8, 9]


def test_bos_alone_is_a_prompt(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of("", "cd"))
    assert row.roles.tolist() == [BOS, COMPLETION, COMPLETION]


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (pair_of("a" * 9, "b" * 6), {"context": 15}, "positive completion 0 has 16 tokens .* the context is 15"),
        (pair_of("a", "b", "c" * 15), {"context": 15}, "negative completion 0 has 17 tokens"),
        (pair_of("", "b"), {"prepend_bos": False}, "no token to predict from; set prepend_bos=True"),
        (pair_of("", (), prompt_ids=(1,), positive_ids=((999,),)), {}, "token id 999 is beyond .* vocabulary of 106"),
        (pair_of("", (), prompt_ids=(999,), positive_ids=((1,),)), {}, "token id 999 is beyond"),
        (pair_of("", (), prompt_ids=(0, 0, 5), positive_ids=((1,),)), {}, "begins with BOS .0. more than once"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(
    tok: Tokenizer, pair: Pair, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^pairs.jsonl:7: .*{message}"):
        rows_of(tok, pair, **options)


def test_a_completion_that_gives_no_token(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path)
    tok.backend.normalizer = tokenizers.normalizers.Strip(left=False, right=True)
    with pytest.raises(ValueError, match=r"pairs.jsonl:7: positive completion 0 gives no token"):
        rows_of(tok, pair_of("ab", "  "))


def test_messages_need_a_template_and_bos_a_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path, post=False, chat_template=None, bos_token=None)
    with pytest.raises(ValueError, match=r"pairs.jsonl:7: .*no chat template"):
        rows_of(tok, pair_of(({"role": "user", "content": "hi"},)))
    with pytest.raises(ValueError, match=r"pairs.jsonl:7: BOS is asked for|pairs.jsonl:7: .*the tokenizer has none"):
        rows_of(tok, pair_of("ab"), prepend_bos=True)
    assert rows_of(tok, pair_of("ab"))[0].roles.tolist() == [USER, LAST, COMPLETION, COMPLETION]


def test_the_stories_pairs(shared: Path) -> None:
    tok = load_tokenizer(shared / "models/stories260K")
    path = shared / "pairs/stories_sad_vs_happy.jsonl"
    pairs = read_pairs(path)
    encoded = encode_pairs(pairs, tok, context=512, path=path)
    assert len(pairs) == 48
    assert len(encoded.rows) == 96
    assert encoded.straddling == 0
    for row in encoded.rows:
        pair = pairs[row.pair]
        completion = pair.positives[0] if row.side > 0 else pair.negatives[0]
        assert decode(tok, row.ids[1:]) == f"{pair.prompt}{completion}"
        assert decode(tok, row.ids[1 : row.n_prompt]) == pair.prompt
        assert (row.ids == tok.bos_id).sum() == 1


def test_a_token_of_spaces_across_the_border(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "tokenizers/pythia_tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    tok = load_tokenizer(tmp_path)
    pairs = [pair_of("a\n", " \nb"), pair_of("a: ", "b"), pair_of("a:\n", "   b")]
    encoded = encode_pairs(pairs, tok, context=16, path="p", prepend_bos=True)
    first, second, third = encoded.rows
    assert first.ids[0] == second.ids[0] == 0
    assert first.roles[0] == second.roles[0] == BOS
    assert encoded.straddling == 2
    assert decode(tok, first.ids[first.n_prompt :]) == "\n \nb"  # "\n " is one token; trimmed, it would end at "\n"
    assert decode(tok, second.ids[second.n_prompt :]) == " b"
    assert decode(tok, third.ids[third.n_prompt :]) == "   b"


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 61, 200])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_batches_cover_every_row_exactly_once(count: int, batch_size: int) -> None:
    rows = random_rows(count)
    out = batches(rows, batch_size=batch_size)
    seen = np.concatenate([index for _, index in out])
    assert sorted(seen[seen >= 0]) == list(range(count))
    assert (seen < 0).sum() == -count % batch_size
    assert all((index >= 0).all() for _, index in out[:-1])
    assert len({(batch.tokens_bt.shape, batch.target_bc.shape) for batch, _ in out}) <= 4
    for batch, index in out:
        for k, i in enumerate(index):
            check_batch_row(batch, k, rows[i] if i >= 0 else None)


def check_batch_row(batch: Any, k: int, row: Row | None) -> None:
    ids = [] if row is None else row.ids.tolist()
    n_prompt = 0 if row is None else row.n_prompt
    assert batch.tokens_bt[k][batch.valid_bt[k]].tolist() == ids
    assert batch.valid_bt[k].sum() == batch.valid_bt[k][: len(ids)].sum()
    assert not batch.tokens_bt[k, len(ids) :].any()
    assert np.flatnonzero(batch.completion_bt[k]).tolist() == list(range(n_prompt, len(ids)))
    assert batch.target_bc[k][batch.target_valid_bc[k]].tolist() == list(range(n_prompt, len(ids)))
    assert not batch.target_bc[k][~batch.target_valid_bc[k]].any()


def test_batch_shapes_are_rounded_and_deterministic() -> None:
    rows = random_rows(50)
    first, second = batches(rows, batch_size=4), batches(rows, batch_size=4)
    for (a, index_a), (b, index_b) in zip(first, second, strict=True):
        assert a.tokens_bt.shape[1] % 32 == 0
        assert a.target_bc.shape[1] % 8 == 0
        np.testing.assert_array_equal(index_a, index_b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    widths = [batch.tokens_bt.shape[1] for batch, _ in first]
    assert widths == sorted(widths)


def test_batches_do_not_grow_beyond_the_context() -> None:
    rows = random_rows(20, longest=80)
    longest = max(len(row.ids) for row in rows)
    assert max(b.tokens_bt.shape[1] for b, _ in batches(rows, batch_size=4, multiple=64, context=longest)) == longest


def test_no_rows_no_batches_and_a_batch_is_a_pytree() -> None:
    assert batches([], batch_size=4) == []
    ((batch, _),) = batches(random_rows(3), batch_size=4)
    assert len(jax.tree.leaves(batch)) == 5


# ---- corpora -----------------------------------------------------------------------------------------------------


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


def test_corpus_batches_keep_order_and_cut(tok: Tokenizer) -> None:
    texts = ["a" * 20, "bc", "<s>d</s>", "e", "f"]
    out = list(corpus_batches(texts, tok, context=16, batch_size=2))
    assert [tokens.shape for tokens, _, _ in out] == [(2, 16), (2, 4), (2, 2)]
    assert [valid.sum(1).tolist() for _, valid, _ in out] == [[16, 3], [3, 2], [2, 0]]
    tokens, valid, special = out[1]
    assert special.tolist() == [[True, False, True, False], [True, False, False, False]]
    assert corpus_mask(tokens, valid, special, tok, exclude=frozenset()).tolist() == valid.tolist()
    bos = corpus_mask(tokens, valid, special, tok, exclude=frozenset({"bos"}))
    assert bos.tolist() == [[False, True, True, False], [False, True, False, False]]
    both = corpus_mask(tokens, valid, special, tok, exclude=frozenset({"special"}))
    assert both.tolist() == [[False, True, False, False], [False, True, False, False]]


@pytest.mark.parametrize("limit", [1, 17, 18, 100])
def test_corpus_batches_stop_at_max_tokens(tok: Tokenizer, limit: int) -> None:
    texts = ["a" * 20, "bc", "d" * 5]
    total = sum(valid.sum() for _, valid, _ in corpus_batches(texts, tok, context=16, batch_size=2, max_tokens=limit))
    assert total == min(limit, 16 + 3 + 6)


def test_corpus_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path, add_bos_token=False)
    counts = [
        sum(
            int(valid.sum()) for _, valid, _ in corpus_batches(["ab", "c"], tok, context=8, batch_size=4, prepend_bos=b)
        )
        for b in (None, False, True)
    ]
    assert counts == [3, 3, 5]


def test_the_story_corpus_has_413717_positions(shared: Path) -> None:
    tok = load_tokenizer(shared / "models/stories260K")
    texts = read_corpus(shared / "corpora/tinystories_1000.json")
    golden = np.load(shared / "fixtures/acts/golden.npz")
    total, row = 0, 0
    wanted = {900 + k: (a, b) for k, (a, b) in enumerate(zip(golden["story_offsets"], golden["story_offsets"][1:]))}
    for tokens_bt, valid_bt, _ in corpus_batches(texts, tok, context=512, batch_size=64):
        total += int(valid_bt.sum())
        for ids, valid in zip(tokens_bt, valid_bt, strict=True):
            if row in wanted:
                start, end = wanted[row]
                np.testing.assert_array_equal(ids[valid], golden["story_tokens"][start:end])
            row += 1
    assert total == 413717


def test_the_wikitext_corpus_reads(shared: Path) -> None:
    blocks = list(read_corpus(shared / "corpora/wikitext2_valid.txt"))
    text = (shared / "corpora/wikitext2_valid.txt").read_text(encoding="utf-8")
    assert "".join("".join(blocks).split()) == "".join(text.split())
    assert max(map(len, blocks)) <= 2000


# ---- masks -------------------------------------------------------------------------------------------------------


def test_scope_masks(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of("a</s>b", "c</s>"))
    masks = {scope: scope_mask(row, scope).tolist() for scope in ("prompt", "completion", "all")}
    assert masks == {"prompt": [True] * 4 + [False] * 2, "completion": [False] * 4 + [True] * 2, "all": [True] * 6}
    assert scope_mask(row, "prompt", exclude=frozenset({"bos"})).tolist() == [False, True, True, True, False, False]
    assert scope_mask(row, "all", exclude=frozenset({"special"})).tolist() == [False, True, False, True, True, False]


def test_scope_mask_of_arrays_leaves_padding_out() -> None:
    roles = np.array([[1, 3, 4, 5, 0]])
    special = np.array([[True, False, False, False, False]])
    assert scope_mask((roles, special), "all").tolist() == [[True, True, True, True, False]]
    assert scope_mask((roles, special), "prompt").tolist() == [[True, True, True, False, False]]


def test_scope_mask_does_not_know_other_words(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of())
    with pytest.raises(ValueError, match="scope 'answer' is unknown; choose one of prompt, completion, all"):
        scope_mask(row, "answer")
    with pytest.raises(ValueError, match="exclude 'eos' is unknown"):
        scope_mask(row, "all", exclude=frozenset({"eos"}))


def test_shown_tokens(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of("a\n", "c"))
    lines = shown_tokens(row, tok, exclude=frozenset({"bos"})).splitlines()
    assert lines[0] == "pair 0 positive 0: 4 tokens, 3 of the prompt; masked: bos"
    assert [line.split()[-1] for line in lines[2:]] == ["masked", "all", "all", "all"]
    assert lines[2].split()[:4] == ["0", "0", "'<s>'", "bos"]
    assert lines[4].split() == ["2", str(row.ids[2]), "'\\n'", "last", "prompt", "all"]
    assert lines[5].split()[2:] == ["'c'", "completion", "completion", "all"]


def test_roles_are_codes_by_position() -> None:
    assert ROLES == ("pad", "bos", "template", "user", "last", "completion")
    assert (BOS, TEMPLATE, USER, LAST, COMPLETION) == (1, 2, 3, 4, 5)
