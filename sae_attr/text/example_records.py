"""One record as a supervised example.

A record is rendered and encoded whole, once; which tokens the loss counts follows from
characters, so that a model is trained on the very text that it will see.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.files.text import sound
from sae_attr.text.chat import (
    Message,
    continued,
    message_spans,
    prompt_text,
    render,
)
from sae_attr.text.tokenizer import (
    Span,
    Tokenizer,
    adds_bos,
    check_ids,
    encode,
)


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens.

    Args:
      ids: int32 [t].
      loss_mask: bool [t], the tokens that the loss counts; the first token, which
        nothing predicts, never is.
      line: line number in its file, from 1.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    line: int


@dataclass(frozen=True)
class UnlikeGeneration:
    """What generation begins an answer after, and what stands before it in a row;
    nothing shown where they agree.
    """

    shown: str = ""
    refused: bool = False


def record_example(
    record: Any,
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    append_eos: bool | None,
    where: str,
) -> tuple[Example, int, UnlikeGeneration]:
    """The row, how many assistant turns lack an end token, and how it differs from what
    generation will see.
    """
    content = _content(record, where)
    if isinstance(content, list):
        return _chat_example(content, line, tok, ends, _prefill(record))
    prompt, completion = content
    add_bos = adds_bos(tok)
    ids, offsets = encode(tok, prompt + completion, add_bos=add_bos)
    target = np.array([end > len(prompt) for _, end in offsets], bool)
    if tok.eos_id is not None and append_eos is not False:
        ids, target = [*ids, tok.eos_id], np.append(target, True)
        check_ids(tok, ids)
    elif append_eos:
        raise ValueError(
            f"{tok.path}: EOS is asked for but the tokenizer has none; set "
            "append_eos=False"
        )
    if not target.any():
        raise ValueError("the completion gives no token; fill it in")
    if target[0]:
        raise ValueError(
            "the completion's first token has nothing before it; give a prompt, or a "
            "tokenizer with BOS"
        )
    return Example(np.asarray(ids, np.int32), target, line), 0, UnlikeGeneration()


def _content(record: Any, where: str) -> list[Message] | tuple[str, str]:
    """A conversation, or the texts of prompt and completion; ValueError for anything
    else.
    """
    found = record if isinstance(record, dict) else {}
    if "messages" in found:
        return _messages(found["messages"], "messages", where)
    if "prompt" not in found or "completion" not in found:
        shown = (
            f"the fields {', '.join(found)}" if found else f"a {type(record).__name__}"
        )
        raise ValueError(
            "a record has 'messages', or 'prompt' and 'completion'; this one is "
            f"{shown}"
        )
    prompt, completion = found["prompt"], found["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return sound(prompt, where), sound(completion, where)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    before = _messages(prompt, "prompt", where)
    if isinstance(completion, str):
        if not completion.strip():
            raise ValueError("the completion has no text; fill it in")
        return continued(before, sound(completion, where))
    if _prefill(found):
        raise ValueError(
            "'prompt' ends with an assistant message, which the completion goes on "
            "with; give 'completion' as a text, or the "
            "whole conversation as 'messages'"
        )
    return [*before, *_messages(completion, "completion", where)]


def _prefill(record: Any) -> Message | None:
    """A prompt's last message where it is the assistant's: given, not learnt, and gone
    on with.
    """
    prompt = None if "messages" in record else record.get("prompt")
    last = prompt[-1] if isinstance(prompt, list) and prompt else {}
    return last if last.get("role") == "assistant" else None


def _messages(value: Any, name: str, where: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(
            f"{name!r} is to be a text or a list of messages, not a "
            f"{type(value).__name__}"
        )
    for m in value:
        if not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str):
            raise ValueError(
                f"{name!r}: a message has 'role' and 'content', both text; this one "
                f"has {', '.join(m)}"
            )
        sound(m["role"] + m["content"], where)
    return value


def _chat_example(
    messages: list[Message],
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    prefill: Message | None,
) -> tuple[Example, int, UnlikeGeneration]:
    """A rendered conversation; learnt are the assistant's contents with what ends them,
    of the last what follows `prefill`.
    """
    if not any(m["role"] == "assistant" for m in messages):
        roles = ", ".join(m["role"] for m in messages) or "none"
        raise ValueError(
            f"no message is the assistant's (roles: {roles}), so there is nothing to "
            "learn; add one"
        )
    text = render(tok, messages, add_generation_prompt=False)
    spans = message_spans(tok, messages, text, add_generation_prompt=False)
    ids, offsets = encode(tok, text, add_bos=False)
    target, unended, difference = np.zeros(len(ids), bool), 0, UnlikeGeneration()
    for number, (message, span) in enumerate(zip(messages, spans)):
        if message["role"] == "assistant":
            if prefill is not None and number == len(messages) - 1:
                begin, found = _begin_behind(
                    [*messages[:number], prefill], text, span[0], tok
                )
            else:
                begin, found = _begin(messages[:number], text, span[0], tok)
            learnt, ended = _turn(
                text, span, begin, message["content"], ids, offsets, ends, tok
            )
            target[learnt] = True
            unended += not ended
            # An answer that is not the last may stand after another text: templates
            #   leave old thoughts out.
            last = number == max(
                i for i, m in enumerate(messages) if m["role"] == "assistant"
            )
            if found.shown:
                refused = found.refused and last
                difference = UnlikeGeneration(
                    found.shown if refused else difference.shown or found.shown, refused
                )
    if target[0]:
        raise ValueError(
            "the chat template puts nothing before the assistant's first word; use "
            "another template"
        )
    return Example(np.asarray(ids, np.int32), target, line), unended, difference


def _begin(
    before: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, UnlikeGeneration]:
    """Where in `text` generation begins an answer whose content is at `start`, and how
    it differs from what it will see.
    """
    try:
        prompt = render(tok, before)
        opened = prompt != render(tok, before, add_generation_prompt=False)
    except (
        ValueError
    ):  # nothing before it, or nothing that the template asks for an answer to
        return start, UnlikeGeneration()
    if text[:start].startswith(prompt) and (
        opened or not text[len(prompt) : start].strip()
    ):
        return len(prompt) if opened else start, UnlikeGeneration()
    same_words = prompt.split() == text[:start].split()
    return start, UnlikeGeneration(
        _unlike(prompt, text[:start]), refused=opened and not same_words
    )


def _begin_behind(
    prompt: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, UnlikeGeneration]:
    """`_begin` of an answer whose first words the prompt's last message gives."""
    seen = prompt_text(tok, prompt)[0]
    if text.startswith(seen):
        return len(seen), UnlikeGeneration()
    return start, UnlikeGeneration(
        _unlike(seen, text[: max(start, len(seen))]), refused=True
    )


def _unlike(prompt: str, before: str) -> str:
    """Shows the text that generation begins an answer after beside that of a row, from
    where they part.
    """
    at = next(
        (i for i, pair in enumerate(zip(prompt, before)) if pair[0] != pair[1]),
        min(len(prompt), len(before)),
    )
    show = lambda whole: f"{'...' if at > 20 else ''}{whole[max(0, at - 20) : at + 60]}"
    return f"generation begins an answer after {show(prompt)!r}, but in the row it stands after {show(before)!r}"


def _turn(
    text: str,
    span: Span,
    begin: int,
    content: str,
    ids: Sequence[int],
    offsets: Sequence[Span],
    ends: Set[int | None],
    tok: Tokenizer,
) -> tuple[slice, bool]:
    """The tokens of one assistant turn, and whether a special token that ends it is
    among them.
    """
    start, end = span
    if not content.strip():
        raise ValueError("an assistant message has no text; fill it in or leave it out")
    if text[start:end].strip() != content.strip():
        raise ValueError(
            f"the chat template of {tok.path} rewrites the assistant message "
            f"{content[:40]!r} to {text[start:end][:40]!r}, "
            "so what is learnt cannot be told; write the message as the template does, "
            "or use another template"
        )
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
    last = next(
        (i for i, (at, _) in enumerate(offsets) if at >= end and i > first), len(ids)
    )
    closing = last
    while (
        closing < len(ids)
        and ids[closing] not in ends
        and not text[slice(*offsets[closing])].strip()
    ):
        closing += 1
    ended = closing < len(ids) and ids[closing] in ends
    return slice(first, closing + 1 if ended else last), ended
