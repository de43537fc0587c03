"""Chat templates: rendered in the sandbox as transformers does, and where the contents
stand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_attr.text.chat import (
    in_template,
    message_spans,
    options_read,
    prompt_text,
    render,
    template_ids,
    with_options,
)
from sae_attr.text.tokenizer import Tokenizer, encode
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import CHATML, write_tokenizer

TURNS = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " assistant\nHi  "},
    {"role": "user", "content": "What is <b>1 & 2</b>?"},
]


def test_chat_template_sources(tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"},
    ]
    folder = write_tokenizer(tmp_path, chat_template=named)
    assert render(load_tokenizer(folder), TURNS) == "D"
    (folder / "chat_template.jinja").write_text(
        "{%- generation %}J{% endgeneration -%}"
    )
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
    text = render(
        tok, [{"role": "user", "content": "<é&'>"}, *TURNS], add_generation_prompt=False
    )
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
def test_hostile_and_refusing_templates(
    tmp_path: Path, source: str, message: str
) -> None:
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
    messages = [
        {"role": "assistant", "content": "<think>x</think>yes"},
        {"role": "user", "content": "Hi"},
    ]
    text = render(tok, messages)
    assert text == "[assistant]yes[user]Hi!"
    assert [text[a:b] for a, b in message_spans(tok, messages, text)] == ["yes", "Hi"]


def test_every_public_chat_template(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "tokenizers/chat_templates").glob("*.jinja"))
    assert len(files) == 18
    system = [{"role": "system", "content": "Be brief."}]
    for file in files:
        tok = load_tokenizer(
            write_tokenizer(
                tmp_path / file.stem, post=True, chat_template=file.read_text()
            )
        )
        for messages in (TURNS, system + TURNS):
            text = render(tok, messages)
            found = [text[a:b].strip() for a, b in message_spans(tok, messages, text)]
            assert found == [m["content"].strip() for m in messages], file.stem
            ids, offsets = encode(tok, text, add_bos=True)
            assert ids[0] == 0, file.stem
            assert ids[1] != 0, file.stem
            assert offsets[-1][1] == len(text), file.stem


def test_public_chat_templates_reject_roles_out_of_turn(
    shared: Path, tmp_path: Path
) -> None:
    source = (shared / "tokenizers/chat_templates/gemma-it.jinja").read_text()
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    with pytest.raises(
        ValueError, match=r"roles user, user: Conversation roles must alternate"
    ):
        render(tok, [TURNS[0], TURNS[0]])


# ---- options and the day -------------------------------------------------------------

DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') "
    "%}{% endif %}Today is {{ date_string }}."
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages "
    "%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking "
    "%}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def dated(folder: Path, **options: Any) -> Tokenizer:
    return with_options(
        load_tokenizer(write_tokenizer(folder, chat_template=DATED)), options
    )


def test_options_reach_the_template_and_are_recorded(tmp_path: Path) -> None:
    tok = dated(
        tmp_path,
        date="2025-01-31",
        enable_thinking=False,
        tools='[{"name": "f"}]',
        thinking=None,
    )
    text = render(tok, TURNS)
    assert text.startswith('Today is 31 Jan 2025.[{"name": "f"}]<|im_start|>user')
    assert text.endswith("assistant\n<think>\n\n</think>\n\n")
    assert options_read(tok) == {
        "date": "2025-01-31",
        "enable_thinking": False,
        "tools": [{"name": "f"}],
    }
    given = dated(tmp_path, date="2025-01-31", more='{"date_string": "a day"}')
    assert render(given, TURNS).startswith("Today is a day.")


def test_a_template_without_a_date_does_not_depend_on_the_day(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=CHATML))
    assert options_read(with_options(tok, {"date": "2025-01-31"})) == {}
    assert options_read(load_tokenizer(write_tokenizer(tmp_path / "none"))) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinkin": False}, "'enable_thinkin', which the chat template .* does not read; it reads .*enable_thinking"),
        ({"date": "31.1.2025"}, r"date is '31\.1\.2025'; write it as 2025-01-31"),
        ({"date": 5}, "date is 5"),
        ({"tools": "[{]"}, "tools is not JSON"),
        ({"tools": "{}"}, "tools is a dict; give a list"),
        ({"tools": "absent.json"}, "tools is not JSON: .*absent.json"),
        ({"more": "[1]"}, "more is a list; give a dict"),
        ({"messages": []}, "'messages', which the chat template"),
        ({"more": '{"strftime_now": 1}'}, "'strftime_now', which the chat template"),
        ({"enable_thinking": True, "more": '{"enable_thinking": false}'}, "'enable_thinking' itself and in more"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dated(tmp_path, **options)


def test_options_without_a_template_to_read_them(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path))
    assert (
        with_options(tok, {"date": "2025-01-31", "tools": None}).chat_template is None
    )
    with pytest.raises(
        ValueError,
        match=r"'enable_thinking', but .* has no chat template that could read it",
    ):
        with_options(tok, {"enable_thinking": False})


# ---- a last assistant message --------------------------------------------------------

PREFILL = [TURNS[0], {"role": "assistant", "content": "Sure, I"}]


def test_a_last_assistant_message_is_continued(tmp_path: Path) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=CHATML))
    text, spans = prompt_text(tok, PREFILL)
    assert text == "<s><|im_start|>user\nuser<|im_end|>\n<|im_start|>assistant\nSure, I"
    assert [text[a:b] for a, b in spans] == ["user", "Sure, I"]
    assert prompt_text(tok, TURNS)[0] == render(tok, TURNS)
    empty, _ = prompt_text(tok, [TURNS[0], {"role": "assistant", "content": " "}])
    assert empty == render(tok, TURNS[:1])


def test_a_prefill_that_the_template_rewrites_is_refused_with_both(
    tmp_path: Path,
) -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}!{% endfor %}"
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=source))
    with pytest.raises(
        ValueError,
        match=r"writes the last assistant message '<think>x</think>yes' as 'yes'",
    ):
        prompt_text(
            tok, [TURNS[0], {"role": "assistant", "content": "<think>x</think>yes"}]
        )


def test_every_public_template_continues_a_prefill(
    shared: Path, tmp_path: Path
) -> None:
    for file in sorted((shared / "tokenizers/chat_templates").glob("*.jinja")):
        tok = load_tokenizer(
            write_tokenizer(tmp_path / file.stem, chat_template=file.read_text())
        )
        for content in ("Sure, I", "Sure,\nI think"):
            text, _ = prompt_text(
                tok, [TURNS[0], {"role": "assistant", "content": content}]
            )
            assert text.endswith(content), file.stem
            # As raw files some of these templates indent an answer otherwise than the
            # prompt for one.
            squeezed = [
                "".join(part.split()) for part in (text, render(tok, TURNS[:1]))
            ]
            assert squeezed[0].startswith(squeezed[1]), file.stem


def test_what_the_template_writes_is_told_from_what_a_message_repeats(
    tmp_path: Path,
) -> None:
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=CHATML))
    written = template_ids(tok)
    special = frozenset(tok.special_ids)
    (user,) = encode(tok, "u", add_bos=False)[0]
    opening = encode(tok, "<|im_start|>user\n", add_bos=False)[0]
    assert user in written
    assert in_template(opening, written, special)
    assert in_template(opening[:1], written, special)
    # The same letters in a text, without the special token before them.
    assert not in_template(opening[1:], written, special)
    other = encode(tok, "<|im_start|>zu", add_bos=False)[0]
    assert not in_template(other, written, special)
    bare = replace(tok, chat_template=None)
    assert template_ids(bare) == frozenset()
