"""Records as rows: what is learnt of them, what is refused, and packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_attr.text.chat import with_options
from sae_attr.text.example_records import Example
from sae_attr.text.examples import Examples, read_examples, shown_example
from sae_attr.text.packing import pack, packed_arrays
from sae_attr.text.token_file import write_tokens
from sae_attr.text.tokenizer import Tokenizer, decode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import CHATML, write_lines, write_tokenizer

CHAT = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": "assistant",
        },  # the word that the template writes, too
        {"role": "assistant", "content": "yes, user"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": " no "},  # which the template trims
    ]
}


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(
        write_tokenizer(tmp_path_factory.mktemp("tok"), chat_template=CHATML)
    )


def read(
    tmp_path: Path, tok: Tokenizer, *records: Any, context: int = 400, **options: Any
) -> Examples:
    return read_examples(
        write_lines(tmp_path / "rows.jsonl", *records), tok, context=context, **options
    )


def trained_on(row: Example, tok: Tokenizer) -> list[str]:
    """The stretches of tokens that the loss counts as text."""
    borders = np.flatnonzero(np.diff(np.r_[0, row.loss_mask, 0]))
    return [
        decode(tok, row.ids[a:b]).replace(" ", "") for a, b in borders.reshape(-1, 2)
    ]


def test_of_a_chat_the_assistants_words_and_what_ends_them(
    tmp_path: Path, tok: Tokenizer
) -> None:
    found = read(tmp_path, tok, CHAT)
    (row,) = found.rows
    assert trained_on(row, tok) == ["yes,user<|im_end|>", "no<|im_end|>"]
    assert row.ids[0] == tok.bos_id
    assert (row.ids == tok.bos_id).sum() == 1
    assert found.unended == 0
    text = decode(tok, row.ids).replace(" ", "")
    assert text.endswith("<|im_start|>assistant\nno<|im_end|>\n")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": CHAT["messages"][:2], "completion": "yes, user"},
        {"prompt": CHAT["messages"][:2], "completion": [CHAT["messages"][2]]},
        {"messages": CHAT["messages"][:3], "other": 1},
    ],
)
def test_other_spellings_of_a_chat(
    tmp_path: Path, tok: Tokenizer, record: dict[str, Any]
) -> None:
    (row,) = read(tmp_path, tok, record).rows
    assert trained_on(row, tok) == ["yes,user<|im_end|>"]


def test_a_turn_without_an_end_token_is_counted(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", chat_template=plain))
    found = read(tmp_path, tok, CHAT)
    assert trained_on(found.rows[0], tok) == ["yes,user", "no"]
    assert found.counts["turns_without_end_token"] == 2


def test_spaces_before_the_end_token_are_learnt(tmp_path: Path) -> None:
    spaced = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' \n' + eos_token + '!' }}{% endfor %}"
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", chat_template=spaced))
    (row,) = read(tmp_path, tok, {"messages": CHAT["messages"][:3]}).rows
    assert trained_on(row, tok) == ["yes,user\n</s>"]


def test_of_texts_the_completion_and_the_eos(tmp_path: Path, tok: Tokenizer) -> None:
    record = {"prompt": "one two", "completion": " three"}
    (row,) = read(tmp_path, tok, record).rows
    assert trained_on(row, tok) == ["three</s>"]
    assert row.loss_mask.sum() == 7
    (row,) = read(tmp_path, tok, record, append_eos=False).rows
    assert trained_on(row, tok) == ["three"]


def test_a_token_across_the_border_is_learnt(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", pieces=("lo w",)))
    (row,) = read(tmp_path, tok, {"prompt": "hello", "completion": " world"}).rows
    assert trained_on(row, tok)[0].startswith("low")


def test_stories_of_the_real_tokenizer(
    tmp_path: Path, stories: Path, shared: Path
) -> None:
    tok = load_tokenizer(stories)
    (row,) = read(
        tmp_path,
        tok,
        {"prompt": "Once upon a time, there was", "completion": " a little girl."},
    ).rows
    assert decode(tok, row.ids[row.loss_mask]).strip() == "a little girl.</s>"
    assert row.ids[0] == tok.bos_id


TEMPLATES = (
    "alpaca",
    "chatml",
    "gemma-it",
    "llama-2-chat",
    "llama-3-instruct",
    "phi-3",
    "qwen2.5-instruct",
    "zephyr",
    "vicuna",
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_real_templates(tmp_path: Path, shared: Path, name: str) -> None:
    source = (shared / f"tokenizers/chat_templates/{name}.jinja").read_text("utf-8")
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", chat_template=source))
    chat = {
        "messages": [
            m | {"content": m["content"].strip()} for m in CHAT["messages"][1:]
        ]
    }
    (row,) = read(tmp_path, tok, chat).rows
    stretches = trained_on(row, tok)
    assert [s.replace("</s>", "").replace("<|im_end|>", "") for s in stretches] == [
        "yes,user",
        "no",
    ]


# ---- bad input -----------------------------------------------------------------------

NO_ANSWER = {"messages": CHAT["messages"][:2]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            NO_ANSWER,
            r"rows.jsonl:2: no message is the assistant's \(roles: system, user\)",
        ),
        (
            {"messages": []},
            r"rows.jsonl:2: no message is the assistant's \(roles: none\)",
        ),
        (
            {"messages": "hello"},
            r"rows.jsonl:2: 'messages' is to be a text or a list of messages, not a str",
        ),
        (
            {"messages": [{"role": "assistant"}]},
            r"a message has 'role' and 'content', both text; this one has role",
        ),
        (
            {"messages": [{"role": "assistant", "content": " "}]},
            r"rows.jsonl:2: an assistant message has no text",
        ),
        (
            {"prompt": "a"},
            r"rows.jsonl:2: a record has 'messages', or 'prompt' and 'completion'; this one is the fields",
        ),
        (["a"], r"this one is a list"),
        (
            {"prompt": "", "completion": "b"},
            r"rows.jsonl:2: the completion's first token has nothing before it",
        ),
        ("{", r"rows.jsonl:2 is not JSON"),
        (
            {"prompt": "a", "completion": "\ud800"},
            r"rows.jsonl:2: character 0 is half of a surrogate pair",
        ),
        (
            {"prompt": "a" * 500, "completion": "b"},
            r"rows.jsonl:2: the row has 502 tokens but the context is 400",
        ),
    ],
)
def test_records_that_are_refused(
    tmp_path: Path, tok: Tokenizer, record: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, tok, {"prompt": "a", "completion": "b"}, record)


def test_a_template_that_rewrites_the_answer(tmp_path: Path) -> None:
    upper = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper + '!\n' }}{% endfor %}"
    tok = load_tokenizer(write_tokenizer(tmp_path / "tok", chat_template=upper))
    with pytest.raises(
        ValueError, match=r"rewrites the assistant message 'yes, user' to 'YES, USER'"
    ):
        read(tmp_path, tok, CHAT)


def test_an_empty_file_and_no_eos(tmp_path: Path, tok: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match=r"rows.jsonl gives nothing to learn: it has no records"
    ):
        read(tmp_path, tok)
    bare = load_tokenizer(write_tokenizer(tmp_path / "bare", eos_token=None))
    with pytest.raises(
        ValueError, match=r"EOS is asked for but the tokenizer has none"
    ):
        read(tmp_path, bare, {"prompt": "a", "completion": "b"}, append_eos=True)


def test_rows_are_cut_only_if_asked_and_counted(tmp_path: Path, tok: Tokenizer) -> None:
    records = [{"prompt": "a" * n, "completion": "b" * 4} for n in (2, 10, 30)]
    found = read(tmp_path, tok, *records, context=12, truncate=True)
    assert [len(row.ids) for row in found.rows] == [7, 12]
    assert (found.truncated, found.dropped, found.cut_tokens) == ((2, 3), (3,), 3 + 23)
    assert found.counts["rows_truncated"] == 2
    assert found.counts["rows_dropped"] == 1
    with pytest.raises(ValueError, match=r"all 1 rows lost their targets at 12 tokens"):
        read(tmp_path, tok, records[2], context=12, truncate=True)


def test_what_is_shown(tmp_path: Path, tok: Tokenizer) -> None:
    (row,) = read(tmp_path, tok, {"prompt": "a", "completion": "b"}).rows
    lines = shown_example(row, tok).splitlines()
    assert lines[0] == "line 1: 3 tokens, 2 in the loss"
    assert [line.endswith("loss") for line in lines[1:]] == [False, True, True]


# ---- packing -------------------------------------------------------------------------


def test_packs_hold_every_row_once_and_fit() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    packs = pack(lengths, 64, seed=3)
    assert sorted(i for members in packs for i in members) == list(range(200))
    sums = [sum(lengths[i] for i in members) for members in packs]
    assert max(sums) <= 64
    assert len(packs) <= 1.15 * sum(lengths) / 64
    assert pack(lengths, 64, seed=3) == packs
    assert pack(lengths, 64, seed=4) != packs
    with pytest.raises(
        ValueError, match=r"row 1 has 65 tokens and cannot be packed into 64"
    ):
        pack([1, 65], 64)


def test_arrays_of_a_pack() -> None:
    rows = [Example(np.arange(n, dtype=np.int32), np.arange(n) >= 2, n) for n in (3, 4)]
    got = packed_arrays(rows, [[1, 0], []], width=9, targets=4)
    assert got["tokens_bt"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0] * 9]
    assert got["pos_bt"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0] * 9]
    assert got["segment_bt"].tolist() == [[0, 0, 0, 0, 1, 1, 1, -1, -1], [-1] * 9]
    assert got["target_bc"].tolist() == [[2, 3, 6, 0], [0] * 4]
    assert got["target_valid_bc"].tolist() == [[True, True, True, False], [False] * 4]


# ---- what generation will see --------------------------------------------------------

# As in the Qwen 3 family: a thought is opened, or closed where thinking is off; answers
#   before the last lose theirs.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and "
    "loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking "
    "%}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As in the R1 family: generation begins inside a thought, rows have none.
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking is not "
    "defined %}<think>\n{% endif %}{% endif %}"
)
ROW = {"messages": CHAT["messages"][1:3]}


def tok_with(folder: Path, template: str, **options: Any) -> Tokenizer:
    return with_options(
        load_tokenizer(write_tokenizer(folder, chat_template=template)), options
    )


def test_what_stands_between_generation_prompt_and_answer_is_learnt(
    tmp_path: Path,
) -> None:
    (row,) = read(tmp_path, tok_with(tmp_path / "a", THINKING), ROW).rows
    assert trained_on(row, tok_with(tmp_path / "a", THINKING)) == [
        "<think>\n\n</think>\n\nyes,user<|im_end|>"
    ]
    off = tok_with(tmp_path / "b", THINKING, enable_thinking=False)
    found = read(tmp_path, off, ROW)
    assert trained_on(found.rows[0], off) == ["yes,user<|im_end|>"]
    assert found.unlike == ()


def test_a_row_unlike_generation_is_refused_with_both_shown(tmp_path: Path) -> None:
    tok = tok_with(tmp_path / "a", OPENED)
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl:2: generation begins an answer after '.*<think>\\n', but in the row .*"
        r"assistant\\n'; set template_options",
    ):
        read(tmp_path, tok, "", ROW)
    found = read(tmp_path, tok, ROW, unlike="warn")
    assert found.unlike == (1,)
    assert trained_on(found.rows[0], tok) == ["yes,user<|im_end|>"]
    assert (
        read(tmp_path, tok_with(tmp_path / "b", OPENED, thinking=False), ROW).unlike
        == ()
    )


def test_an_earlier_answer_unlike_generation_is_told_and_learnt(tmp_path: Path) -> None:
    off = tok_with(tmp_path / "a", THINKING, enable_thinking=False)
    found = read(tmp_path, off, {"messages": CHAT["messages"][1:]})
    assert found.unlike == (1,)
    assert "<think>" in found.unlike_shown


def test_a_prompt_that_ends_with_the_assistants_words_is_gone_on_with(
    tmp_path: Path, tok: Tokenizer
) -> None:
    given = [CHAT["messages"][1], {"role": "assistant", "content": "Sure, "}]
    (row,) = read(tmp_path, tok, {"prompt": given, "completion": "user"}).rows
    text = decode(tok, row.ids).replace(" ", "")
    assert text.endswith("<|im_start|>assistant\nSure,user<|im_end|>\n")
    assert text.count("<|im_start|>") == 2
    assert trained_on(row, tok) == ["user<|im_end|>"]  # the given words are not
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl:1: 'prompt' ends with an assistant message, .* 'completion' as a text",
    ):
        read(tmp_path, tok, {"prompt": given, "completion": [CHAT["messages"][2]]})
    with pytest.raises(ValueError, match=r"rows.jsonl:1: the completion has no text"):
        read(tmp_path, tok, {"prompt": given, "completion": " "})


def test_the_shared_templates_learn_what_generation_sees(
    tmp_path: Path, shared: Path
) -> None:
    for file in sorted((shared / "tokenizers/chat_templates").glob("*.jinja")):
        tok = tok_with(tmp_path / file.stem, file.read_text("utf-8"))
        (row,) = read(tmp_path, tok, ROW).rows
        assert "".join(trained_on(row, tok)[0].split()).startswith("yes,user"), (
            file.stem
        )


def test_an_eos_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, eos_token="z"), embedding_rows=40)
    assert (
        len(
            read(
                tmp_path, tok, {"prompt": "1", "completion": "2"}, append_eos=False
            ).rows
        )
        == 1
    )
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl:1: token id \d+ \('z'\) is beyond the model's embedding of 40 rows",
    ):
        read(tmp_path, tok, {"prompt": "1", "completion": "2"})
    with pytest.raises(
        ValueError,
        match=r"token id \d+ \('z'\) is beyond the model's embedding of 40 rows",
    ):
        write_tokens(["1"], tok, tmp_path / "tokens", append_eos=True)
