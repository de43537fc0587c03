"""The ids that end a turn, from every file that says so, and that each sampler uses
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_attr.lm.end_tokens import ending_ids, turn_ends
from sae_attr.text.chat import assistant_end
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.miniatures import write_tokenizer

EOS, END = 1, 3  # "</s>" and "<|im_end|>" of the miniature tokenizer
# What each public template writes after an assistant's turn, with the tokenizer's own
# tokens for those it names.
WRITTEN = {
    "alpaca": "</s>", "chatml": "<|im_end|>", "gemma-it": "<end_of_turn>", "granite-3.0-instruct": "<|end_of_text|>",
    "llama-2-chat": "</s>", "llama-3-instruct": "<|eot_id|>", "mistral-instruct": "</s>", "openchat-3.5": "<|end_of_turn|>",
    "phi-3": "<|end|>", "phi-3-small": "<|end|>", "qwen2.5-instruct": "<|im_end|>", "saiga": "</s>", "vicuna": "</s>",
    "zephyr": "</s>",
}  # fmt: skip
NONE = {"amberchat", "chatqa", "falcon-instruct", "solar-instruct"}


def with_added(
    folder: Path, template: str, *tokens: str, special: bool = True
) -> Tokenizer:
    """The miniature tokenizer with further added tokens."""
    write_tokenizer(folder, chat_template=template)
    stored = json.loads((folder / "tokenizer.json").read_text())
    for token in tokens:
        number = len(stored["model"]["vocab"])
        if token not in stored["model"]["vocab"]:
            stored["model"]["vocab"][token] = number
            made = {"id": number, "content": token, "special": special}
            stored["added_tokens"].append(stored["added_tokens"][0] | made)
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return load_tokenizer(folder)


def test_the_token_that_every_public_template_ends_a_turn_with(
    shared: Path, tmp_path: Path
) -> None:
    files = {
        file.stem: file.read_text()
        for file in (shared / "tokenizers/chat_templates").glob("*.jinja")
    }
    assert set(files) == set(WRITTEN) | NONE
    for name, source in files.items():
        tok = with_added(
            tmp_path / name, source, *set(WRITTEN.values()), special=name != "phi-3"
        )
        end = assistant_end(tok)
        assert (None if end is None else tok.backend.id_to_token(end)) == WRITTEN.get(
            name
        ), name


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}", None],
)
def test_a_template_that_tells_no_end(tmp_path: Path, source: str | None) -> None:
    assert (
        assistant_end(load_tokenizer(write_tokenizer(tmp_path, chat_template=source)))
        is None
    )


def test_a_template_that_demands_a_system_message(tmp_path: Path) -> None:
    demand = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    template = demand + "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert (
        assistant_end(load_tokenizer(write_tokenizer(tmp_path, chat_template=template)))
        == END
    )


def test_a_template_with_tokens_that_the_model_lacks_refuses_no_model(
    tmp_path: Path,
) -> None:
    """Only prompts that are written through it use them."""
    with_added(
        tmp_path,
        "{% for m in messages %}<extra>{{ m.content }}<|im_end|>{% endfor %}",
        "<extra>",
    )
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 60}))
    ends = turn_ends(tmp_path, load_tokenizer(tmp_path, embedding_rows=60), vocab=60)
    assert ends == {"tokenizer": (EOS,), "template": (END,)}


def test_ends_of_all_sources(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    tok = load_tokenizer(write_tokenizer(tmp_path, chat_template=template))
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 120, "eos_token_id": 7})
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [9, 7]})
    )
    ends = turn_ends(tmp_path, tok, vocab=120)
    assert ends == {"model": (9, 7), "tokenizer": (EOS,), "template": (END,)}
    assert ending_ids(ends, vocab=120) == (9, 7, EOS, END)
    assert ending_ids(ends, [5, 5], vocab=120) == (5,)
    assert ending_ids(ends, [], vocab=120) == ()
    assert turn_ends(tmp_path, tok, vocab=3) == {
        "tokenizer": (EOS,)
    }  # a token without a row is never drawn


@pytest.mark.parametrize("token", [120, -1, True, 1.0, "3"])
def test_a_given_stop_that_is_no_id(token: Any) -> None:
    with pytest.raises(ValueError, match=r"stop_ids has .*0 to 119"):
        ending_ids({"model": (1,)}, [token], vocab=120)
