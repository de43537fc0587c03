"""Rows, batches and masks: how pairs and corpora are split, which positions count."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers

from sae_attr.text.batching import batches, corpus_batches
from sae_attr.text.chat import render
from sae_attr.text.corpus_files import read_corpus
from sae_attr.text.encoding import encode_pairs
from sae_attr.text.masks import Masks
from sae_attr.text.pairs import Pair, read_pairs
from sae_attr.text.rows import (
    ASSISTANT,
    BOS,
    COMPLETION,
    LAST,
    ROLES,
    SPECIAL,
    SYSTEM,
    TEMPLATE,
    USER,
    TokenRow,
    corpus_mask,
    scope_mask,
    shown_tokens,
)
from sae_attr.text.tokenizer import Tokenizer, decode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import CHATML, write_tokenizer


def small_tokenizer(folder: Path, *, post: bool = True, **config: Any) -> Tokenizer:
    """One token a character, except "xy" and "\\n " that are one token each; BOS has id
    0.
    """
    return load_tokenizer(
        write_tokenizer(
            folder,
            post=post,
            pieces=("xy", "\n "),
            **({"chat_template": CHATML} | config),
        )
    )


@pytest.fixture
def tok(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path / "tokenizer")


def pair_of(
    prompt: Any = "ab", positive: Any = "cd", negative: Any = (), **fields: Any
) -> Pair:
    positives = (positive,) if isinstance(positive, str) else tuple(positive)
    negatives = (negative,) if isinstance(negative, str) else tuple(negative)
    return Pair(
        id="p",
        prompt=prompt,
        positives=positives,
        negatives=negatives,
        line=7,
        **fields,
    )


def rows_of(tok: Tokenizer, *pairs: Pair, **options: Any) -> list[TokenRow]:
    return encode_pairs(
        pairs, tok, **({"context": 512, "path": "pairs.jsonl"} | options)
    ).rows


def random_rows(count: int, seed: int = 0, longest: int = 200) -> list[TokenRow]:
    """Ragged rows with distinct contents."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        prompt, completion = (int(n) for n in rng.integers(1, longest // 2, 2))
        roles = np.full(prompt + completion, USER, np.int8)
        roles[prompt:] = COMPLETION
        ids = rng.integers(1, 99, prompt + completion).astype(np.int32)
        rows.append(
            TokenRow(
                ids, prompt, roles, np.zeros(len(ids), bool), k // 2, 1 - 2 * (k % 2), 0
            )
        )
    return rows


# ---- encoding ------------------------------------------------------------------------


def test_plain_prompt(tok: Tokenizer) -> None:
    positive, negative = rows_of(tok, pair_of("ab</s>c", "de", "f"))
    assert decode(tok, positive.ids).replace(" ", "") == "<s>ab</s>cde"
    assert positive.roles.tolist() == [
        BOS,
        USER,
        USER,
        SPECIAL,
        LAST,
        COMPLETION,
        COMPLETION,
    ]
    assert positive.special.tolist() == [True, False, False, True, False, False, False]
    assert (positive.n_prompt, positive.pair, positive.side, positive.completion) == (
        5,
        0,
        1,
        0,
    )
    assert (negative.n_prompt, negative.side, len(negative.ids)) == (5, -1, 6)
    assert positive.ids.dtype == np.int32
    assert positive.roles.dtype == np.int8


@pytest.mark.parametrize(
    ("prepend_bos", "expected"), [(None, 1), (True, 1), (False, 0)]
)
def test_bos_of_a_plain_prompt(
    tok: Tokenizer, prepend_bos: bool | None, expected: int
) -> None:
    (row,) = rows_of(tok, pair_of("ab"), prepend_bos=prepend_bos)
    assert (row.ids == 0).sum() == expected
    assert (row.roles == BOS).sum() == expected


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_template_and_tokenizer_never_give_two_bos(
    tok: Tokenizer, prepend_bos: bool | None
) -> None:
    (row,) = rows_of(
        tok, pair_of(({"role": "user", "content": "hi"},)), prepend_bos=prepend_bos
    )
    assert row.ids[0] == 0
    assert (row.ids == 0).sum() == 1


def test_a_chat_template_decides_about_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(
        tmp_path, chat_template=CHATML.removeprefix("{{ bos_token }}")
    )
    chat = pair_of(({"role": "user", "content": "hi"},))
    assert (rows_of(tok, chat)[0].ids == 0).sum() == 0
    assert (rows_of(tok, chat, prepend_bos=True)[0].ids == 0).sum() == 1


def test_roles_of_a_chat_prompt_character_by_character(tok: Tokenizer) -> None:
    contents = ["system", "user", " assistant\n\nok ", "hi <there>"]
    roles = ["system", "user", "assistant", "user"]
    spoken = [SYSTEM, USER, ASSISTANT, USER]
    messages = tuple(
        {"role": r, "content": c} for r, c in zip(roles, contents, strict=True)
    )
    (row,) = rows_of(tok, pair_of(messages, "yes"))
    expected = [BOS]
    for role, content, code in zip(roles, contents, spoken, strict=True):
        expected += (
            [SPECIAL]
            + [TEMPLATE] * (len(role) + 1)
            + [code] * len(content.strip())
            + [SPECIAL, TEMPLATE]
        )
    expected += [SPECIAL] + [TEMPLATE] * len("assistant") + [LAST] + [COMPLETION] * 3
    assert row.roles.tolist() == expected
    assert (
        "".join(tok.backend.id_to_token(i) for i in row.ids)
        == render(tok, messages) + "yes"
    )


def test_a_straddling_token_belongs_to_the_completion(tok: Tokenizer) -> None:
    encoded = encode_pairs(
        [pair_of("abx", "yc", "zc"), pair_of("ab", "xy")],
        tok,
        context=16,
        path="pairs.jsonl",
    )
    assert encoded.straddling == 1
    assert [row.n_prompt for row in encoded.rows] == [3, 4, 3]
    assert [len(row.ids) - row.n_prompt for row in encoded.rows] == [2, 2, 1]
    assert encoded.rows[0].roles.tolist() == [BOS, USER, LAST, COMPLETION, COMPLETION]


def test_given_ids_win(tok: Tokenizer) -> None:
    a, b, x, y, c = (tok.backend.token_to_id(t) for t in "abxyc")
    given = pair_of(
        "abx",
        "y",
        prompt_ids=(0, a, b, x),
        positive_ids=((y, 1),),
        negative_ids=((c,), (c, c)),
    )
    rows = rows_of(tok, given)
    assert [row.ids.tolist() for row in rows] == [
        [0, a, b, x, y, 1],
        [0, a, b, x, c],
        [0, a, b, x, c, c],
    ]
    assert rows[0].roles.tolist() == [BOS, USER, USER, LAST, COMPLETION, COMPLETION]
    assert [(row.side, row.completion) for row in rows] == [(1, 0), (-1, 0), (-1, 1)]


def test_given_completion_ids_follow_the_encoded_prompt(tok: Tokenizer) -> None:
    y = tok.backend.token_to_id("y")
    (row,) = rows_of(tok, pair_of("abx", (), positive_ids=((y,),)))
    assert row.n_prompt == 4
    assert row.roles.tolist() == [BOS, USER, USER, LAST, COMPLETION]


def test_given_prompt_ids_take_the_roles_of_the_prompt_they_encode(
    tok: Tokenizer,
) -> None:
    messages = ({"role": "user", "content": "hi"},)
    (text_row,) = rows_of(tok, pair_of(messages, "c"))
    ids = tuple(text_row.ids[: text_row.n_prompt].tolist())
    (row,) = rows_of(tok, pair_of(messages, (), prompt_ids=ids, positive_ids=((9,),)))
    assert row.roles.tolist() == text_row.roles.tolist()
    (other,) = rows_of(
        tok, pair_of("something else", (), prompt_ids=ids, positive_ids=((9,),))
    )
    assert set(other.roles[1:-2]) == {USER, SPECIAL}
    assert (other.roles == SPECIAL).sum() == other.special.sum() - 1


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
        (
            pair_of("a" * 9, "b" * 6),
            {"context": 15},
            "positive completion 0 has 16 tokens .* the context is 15",
        ),
        (
            pair_of("a", "b", "c" * 15),
            {"context": 15},
            "negative completion 0 has 17 tokens",
        ),
        (
            pair_of("", "b"),
            {"prepend_bos": False},
            "no token to predict from; set prepend_bos=True",
        ),
        (
            pair_of("", (), prompt_ids=(1,), positive_ids=((999,),)),
            {},
            "token id 999 is beyond .* vocabulary of 107",
        ),
        (
            pair_of("", (), prompt_ids=(999,), positive_ids=((1,),)),
            {},
            "token id 999 is beyond",
        ),
        (
            pair_of("", (), prompt_ids=(0, 0, 5), positive_ids=((1,),)),
            {},
            "begins with BOS .0. more than once",
        ),
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
    with pytest.raises(
        ValueError, match=r"pairs.jsonl:7: positive completion 0 gives no token"
    ):
        rows_of(tok, pair_of("ab", "  "))


def test_messages_need_a_template_and_bos_a_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path, post=False, chat_template=None, bos_token=None)
    with pytest.raises(ValueError, match=r"pairs.jsonl:7: .*no chat template"):
        rows_of(tok, pair_of(({"role": "user", "content": "hi"},)))
    with pytest.raises(
        ValueError,
        match=r"pairs.jsonl:7: BOS is asked for|pairs.jsonl:7: .*the tokenizer has none",
    ):
        rows_of(tok, pair_of("ab"), prepend_bos=True)
    assert rows_of(tok, pair_of("ab"))[0].roles.tolist() == [
        USER,
        LAST,
        COMPLETION,
        COMPLETION,
    ]


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
    shutil.copy(
        shared / "tokenizers/pythia_tokenizer.json", tmp_path / "tokenizer.json"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    tok = load_tokenizer(tmp_path)
    pairs = [pair_of("a\n", " \nb"), pair_of("a: ", "b"), pair_of("a:\n", "   b")]
    encoded = encode_pairs(pairs, tok, context=16, path="p", prepend_bos=True)
    first, second, third = encoded.rows
    assert first.ids[0] == second.ids[0] == 0
    assert first.roles[0] == second.roles[0] == BOS
    assert encoded.straddling == 2
    assert (
        decode(tok, first.ids[first.n_prompt :]) == "\n \nb"
    )  # "\n " is one token; trimmed, it would end at "\n"
    assert decode(tok, second.ids[second.n_prompt :]) == " b"
    assert decode(tok, third.ids[third.n_prompt :]) == "   b"


# ---- batches -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 61, 200])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_batches_cover_every_row_exactly_once(count: int, batch_size: int) -> None:
    rows = random_rows(count)
    out = batches(rows, batch_size=batch_size)
    seen = np.concatenate([index for _, index in out])
    assert sorted(seen[seen >= 0]) == list(range(count))
    assert (seen < 0).sum() == -count % batch_size
    assert all((index >= 0).all() for _, index in out[:-1])
    assert (
        len({(batch.tokens_bt.shape, batch.target_bc.shape) for batch, _ in out}) <= 4
    )
    for batch, index in out:
        for k, i in enumerate(index):
            check_batch_row(batch, k, rows[i] if i >= 0 else None)


def check_batch_row(batch: Any, k: int, row: TokenRow | None) -> None:
    ids = [] if row is None else row.ids.tolist()
    n_prompt = 0 if row is None else row.n_prompt
    assert batch.tokens_bt[k][batch.valid_bt[k]].tolist() == ids
    assert batch.valid_bt[k].sum() == batch.valid_bt[k][: len(ids)].sum()
    assert not batch.tokens_bt[k, len(ids) :].any()
    assert np.flatnonzero(batch.completion_bt[k]).tolist() == list(
        range(n_prompt, len(ids))
    )
    assert batch.target_bc[k][batch.target_valid_bc[k]].tolist() == list(
        range(n_prompt, len(ids))
    )
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
    assert (
        max(
            b.tokens_bt.shape[1]
            for b, _ in batches(rows, batch_size=4, multiple=64, context=longest)
        )
        == longest
    )


def test_no_rows_no_batches_and_a_batch_is_a_pytree() -> None:
    assert batches([], batch_size=4) == []
    ((batch, _),) = batches(random_rows(3), batch_size=4)
    assert len(jax.tree.leaves(batch)) == 5


# ---- corpora -------------------------------------------------------------------------


def test_corpus_batches_keep_order_and_cut(tok: Tokenizer) -> None:
    texts = ["a" * 20, "bc", "<s>d</s>", "e", "f"]
    out = list(corpus_batches(texts, tok, context=16, batch_size=2))
    assert [tokens.shape for tokens, _, _ in out] == [(2, 16), (2, 4), (2, 2)]
    assert [valid.sum(1).tolist() for _, valid, _ in out] == [[16, 3], [3, 2], [2, 0]]
    tokens, valid, special = out[1]
    assert special.tolist() == [[True, False, True, False], [True, False, False, False]]
    assert (
        corpus_mask(tokens, valid, special, tok, masks=Masks(frozenset())).tolist()
        == valid.tolist()
    )
    bos = corpus_mask(tokens, valid, special, tok, masks=Masks(frozenset({"bos"})))
    assert bos.tolist() == [[False, True, True, False], [False, True, False, False]]
    both = corpus_mask(tokens, valid, special, tok, masks=Masks(frozenset({"special"})))
    assert both.tolist() == [[False, True, False, False], [False, True, False, False]]


@pytest.mark.parametrize("limit", [1, 17, 18, 100])
def test_corpus_batches_stop_at_max_tokens(tok: Tokenizer, limit: int) -> None:
    texts = ["a" * 20, "bc", "d" * 5]
    total = sum(
        valid.sum()
        for _, valid, _ in corpus_batches(
            texts, tok, context=16, batch_size=2, max_tokens=limit
        )
    )
    assert total == min(limit, 16 + 3 + 6)


def test_corpus_bos(tmp_path: Path) -> None:
    tok = small_tokenizer(tmp_path, add_bos_token=False)
    counts = [
        sum(
            int(valid.sum())
            for _, valid, _ in corpus_batches(
                ["ab", "c"], tok, context=8, batch_size=4, prepend_bos=b
            )
        )
        for b in (None, False, True)
    ]
    assert counts == [3, 3, 5]


def test_the_story_corpus_has_413717_positions(shared: Path) -> None:
    tok = load_tokenizer(shared / "models/stories260K")
    texts = read_corpus(shared / "corpora/tinystories_1000.json")
    golden = np.load(shared / "fixtures/acts/golden.npz")
    total, row = 0, 0
    wanted = {
        900 + k: (a, b)
        for k, (a, b) in enumerate(
            zip(golden["story_offsets"], golden["story_offsets"][1:])
        )
    }
    for tokens_bt, valid_bt, _ in corpus_batches(
        texts, tok, context=512, batch_size=64
    ):
        total += int(valid_bt.sum())
        for ids, valid in zip(tokens_bt, valid_bt, strict=True):
            if row in wanted:
                start, end = wanted[row]
                np.testing.assert_array_equal(
                    ids[valid], golden["story_tokens"][start:end]
                )
            row += 1
    assert total == 413717


# ---- masks ---------------------------------------------------------------------------


def test_scope_masks(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of("a</s>b", "c</s>"))
    masks = {
        scope: scope_mask(row, scope).tolist()
        for scope in ("prompt", "completion", "all")
    }
    assert masks == {
        "prompt": [True] * 4 + [False] * 2,
        "completion": [False] * 4 + [True] * 2,
        "all": [True] * 6,
    }
    assert scope_mask(row, "prompt", exclude=frozenset({"bos"})).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert scope_mask(row, "all", exclude=frozenset({"special"})).tolist() == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]


def test_scope_mask_of_arrays_leaves_padding_out() -> None:
    roles = np.array([[1, 3, 4, 5, 0]])
    special = np.array([[True, False, False, False, False]])
    assert scope_mask((roles, special), "all").tolist() == [
        [True, True, True, True, False]
    ]
    assert scope_mask((roles, special), "prompt").tolist() == [
        [True, True, True, False, False]
    ]


def test_scope_mask_does_not_know_other_words(tok: Tokenizer) -> None:
    (row,) = rows_of(tok, pair_of())
    with pytest.raises(
        ValueError,
        match="scope 'answer' is unknown; choose one of prompt, completion, all",
    ):
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
    assert ROLES[:6] == ("pad", "bos", "template", "user", "last", "completion")
    assert (BOS, TEMPLATE, USER, LAST, COMPLETION) == (1, 2, 3, 4, 5)
    assert ROLES[6:] == ("system", "assistant", "special")
    assert (SYSTEM, ASSISTANT, SPECIAL) == (6, 7, 8)
