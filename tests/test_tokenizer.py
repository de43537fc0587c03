"""Tokenizer folders: BOS at most once, offsets of the original text, chat templates in the sandbox."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from sae_attr.tokenizer import (
    adds_bos,
    decode,
    encode,
    encode_many,
    load_tokenizer,
    message_spans,
    render,
    token_strings,
)

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " assistant\nHi  "},
    {"role": "user", "content": "What is <b>1 & 2</b>?"},
]


def write_tokenizer(folder: Path, *, post: bool = False, **config: Any) -> Path:
    """A character tokenizer (one token a character, four special tokens, BOS id 0) as a Hugging Face folder."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, "?", *sorted(set(string.printable) - {"?"}), "é"))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.add_special_tokens(list(SPECIAL))
    if post:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


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
    ("post", "stated", "expected"), [(False, None, False), (True, None, True), (True, False, False)]
)
def test_adds_bos_follows_the_configuration_then_the_post_processor(
    tmp_path: Path, post: bool, stated: bool | None, expected: bool
) -> None:
    config = {} if stated is None else {"add_bos_token": stated}
    tok = load_tokenizer(write_tokenizer(tmp_path, post=post, **config))
    assert adds_bos(tok) is expected
    assert encode(tok, "a", add_bos=False)[0] == encode(tok, "a", add_bos=True)[0][1:]  # never by the post-processor


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


def test_bos_is_found_in_the_post_processor_where_no_file_names_it(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, post=True)
    (folder / "tokenizer_config.json").unlink()
    tok = load_tokenizer(folder)
    assert tok.bos_id == 0
    assert adds_bos(tok)
    assert tok.chat_template is None


def test_special_tokens_map_is_read_and_the_config_wins(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, pad_token=None)
    names = {"bos_token": "</s>", "pad_token": "<|im_end|>", "additional_special_tokens": ["a"]}
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
        ValueError, match=r"no tokenizer.json \(found: tokenizer.model\).*AutoTokenizer.*save_pretrained"
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
    with pytest.raises(ValueError, match=r"tokenizer.json: the tokenizers library cannot read it"):
        load_tokenizer(folder)


def test_a_named_bos_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names bos_token '<bos>' but tokenizer.json has no such token"):
        load_tokenizer(write_tokenizer(tmp_path, bos_token="<bos>"))
    tok = load_tokenizer(write_tokenizer(tmp_path, bos_token=None))
    assert tok.bos_id is None
    assert not adds_bos(tok)
    with pytest.raises(ValueError, match=r"the tokenizer has none; set prepend_bos=False"):
        encode(tok, "a", add_bos=True)


def test_chat_template_sources(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = write_tokenizer(tmp_path, chat_template=named)
    assert render(load_tokenizer(folder), TURNS) == "D"
    (folder / "chat_template.jinja").write_text("{%- generation %}J{% endgeneration -%}")
    assert render(load_tokenizer(folder), TURNS) == "J"
    rag = [{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]
    with pytest.raises(ValueError, match=r"tool_use, rag and none called default"):
        load_tokenizer(write_tokenizer(tmp_path / "rag", chat_template=rag))


def test_render_behaves_as_transformers_does(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}\n"
        "    {% if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "{{ m | tojson }}\n"
        "{% endfor %}\n"
        "{{ bos_token + eos_token + strftime_now('%%') }}{{ tools is none }}"
    )
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    text = render(tok, [{"role": "user", "content": "<é&'>"}, *TURNS], add_generation_prompt=False)
    assert text == '{"role": "user", "content": "<é&\'>"}\n<s></s>%True'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "chat template refused"),
        (
            "{{ raise_exception('System role not supported') }}",
            "roles user, assistant, user: System role not supported",
        ),
        ("{{ 'a' + 1 }}", "chat template refused"),
    ],
)
def test_hostile_and_refusing_templates(tmp_path: Path, source: str, message: str) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    with pytest.raises(ValueError, match=message):
        render(tok, TURNS)


def test_messages_without_template_or_without_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no chat template; add chat_template.jinja"):
        render(load_tokenizer(write_tokenizer(tmp_path)), TURNS)
    with pytest.raises(ValueError, match=r"empty list of messages"):
        render(load_tokenizer(write_tokenizer(tmp_path, chat_template=CHATML)), [])


def test_message_spans_tell_contents_from_equal_template_text(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=CHATML))
    text = render(tok, TURNS)
    spans = message_spans(tok, TURNS, text)
    assert [text[a:b] for a, b in spans] == [m["content"].strip() for m in TURNS]
    assert spans[0][0] == len("<s><|im_start|>user\n")


def test_message_spans_of_a_template_that_rewrites_a_content(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}"
        "{% if 'Hi' in m.content %}!{% endif %}{% endfor %}"
    )
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    messages = [{"role": "assistant", "content": "<think>x</think>yes"}, {"role": "user", "content": "Hi"}]
    text = render(tok, messages)
    assert text == "[assistant]yes[user]Hi!"
    assert [text[a:b] for a, b in message_spans(tok, messages, text)] == ["yes", "Hi"]


def test_stories_tokenizer(shared: Path) -> None:
    tok = load_tokenizer(shared / "models/stories260K")
    assert (tok.bos_id, tok.eos_id, tok.vocab_size, tok.special_ids) == (1, 2, 512, frozenset({0, 1, 2}))
    assert adds_bos(tok)
    text = "Once upon a time, hé 你"
    ids, offsets = encode(tok, text, add_bos=True)
    assert ids == tok.backend.encode(text).ids
    assert all(0 <= a <= b <= len(text) for a, b in offsets)
    assert "".join(text[a:b] for a, b in offsets[:5]) == "Once upon a time"  # the prepended space is in no offset
    assert token_strings(tok, ids[:4]) == ["<s>", " Once", " upon", " a"]
    assert decode(tok, ids[1:]) == text


def test_pythia_has_bos_zero_and_untrimmed_offsets(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "tokenizers/pythia_tokenizer.json", tmp_path / "tokenizer.json")
    config = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    tok = load_tokenizer(tmp_path)
    assert (tok.bos_id, tok.eos_id, tok.vocab_size) == (0, 0, 50277)
    assert not adds_bos(tok)
    text = "a  b \n  c"
    ids, offsets = encode(tok, text, add_bos=True)
    assert ids[0] == 0
    assert "".join(text[a:b] for a, b in offsets) == text
    assert encode(tok, "<|endoftext|>" + text, add_bos=True)[0] == ids


def test_every_public_chat_template(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "tokenizers/chat_templates").glob("*.jinja"))
    assert len(files) == 18
    system = [{"role": "system", "content": "Be brief."}]
    for file in files:
        tok = load_tokenizer(write_tokenizer(tmp_path / file.stem, post=True, chat_template=file.read_text()))
        for messages in (TURNS, system + TURNS):
            text = render(tok, messages)
            found = [text[a:b].strip() for a, b in message_spans(tok, messages, text)]
            assert found == [m["content"].strip() for m in messages], file.stem
            ids, offsets = encode(tok, text, add_bos=True)
            assert ids[0] == 0, file.stem
            assert ids[1] != 0, file.stem
            assert offsets[-1][1] == len(text), file.stem


def test_public_chat_templates_reject_roles_out_of_turn(shared: Path, tmp_path: Path) -> None:
    source = (shared / "tokenizers/chat_templates/gemma-it.jinja").read_text()
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    with pytest.raises(ValueError, match=r"roles user, user: Conversation roles must alternate"):
        render(tok, [TURNS[0], TURNS[0]])
