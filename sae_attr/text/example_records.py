"""One record as a supervised example.

A record is rendered and encoded whole, once; which tokens the loss counts follows from
characters, so that a model is trained on the very text that it will see.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """States how the text before an answer differs from the one that generation begins
    it after: both texts, "" where they agree, and whether that is reason to refuse the
    row.
    """

    shown: str = ""
    refused: bool = False


class EncodedRecord(NamedTuple):
    """A record as a row.

    Args:
      unended: assistant turns without a token that ends them.
      difference: from what generation will see.
    """

    example: Example
    unended: int = 0
    difference: UnlikeGeneration = UnlikeGeneration()


def encode_record(
    record: Any,
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    append_eos: bool | None,
    where: str,
) -> EncodedRecord:
    """Encodes a record, a conversation or a prompt with its completion.

    Args:
      ends: tokens that end an assistant turn.
      append_eos: an EOS after text completions; None: where the tokenizer has one.
      where: file and line, for messages.
    """
    content = _content(record, where)
    if isinstance(content, list):
        return _chat_record(content, line, tok, ends, _prefill(record))
    prompt, completion = content
    ids, offsets = encode(tok, prompt + completion, add_bos=adds_bos(tok))
    loss_mask = np.array([end > len(prompt) for _, end in offsets], bool)
    if tok.eos_id is not None and append_eos is not False:
        ids, loss_mask = [*ids, tok.eos_id], np.append(loss_mask, True)
        check_ids(tok, ids)
    elif append_eos:
        raise ValueError(
            f"{tok.path}: EOS is asked for but the tokenizer has none; set "
            "append_eos=False"
        )
    if not loss_mask.any():
        raise ValueError("the completion gives no token; fill it in")
    if loss_mask[0]:
        raise ValueError(
            "the completion's first token has nothing before it; give a prompt, or a "
            "tokenizer with BOS"
        )
    return EncodedRecord(Example(np.asarray(ids, np.int32), loss_mask, line))


def _content(record: Any, where: str) -> list[Message] | tuple[str, str]:
    """Returns a conversation, or the texts of prompt and completion; ValueError for
    anything else.
    """
    fields = record if isinstance(record, dict) else {}
    if "messages" in fields:
        return _messages(fields["messages"], "messages", where)
    if "prompt" not in fields or "completion" not in fields:
        kind = f"a {type(record).__name__}"
        if fields:
            kind = f"the fields {', '.join(fields)}"
        raise ValueError(
            f"a record has 'messages', or 'prompt' and 'completion'; this one is {kind}"
        )
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return sound(prompt, where), sound(completion, where)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    before = _messages(prompt, "prompt", where)
    if isinstance(completion, str):
        if not completion.strip():
            raise ValueError("the completion has no text; fill it in")
        return continued(before, sound(completion, where))
    if _prefill(fields):
        raise ValueError(
            "'prompt' ends with an assistant message, which the completion goes on "
            "with; give 'completion' as a text, or the whole conversation as "
            "'messages'"
        )
    return [*before, *_messages(completion, "completion", where)]


def _prefill(record: Any) -> Message | None:
    """Returns a prompt's last message where it is the assistant's: the completion continues it,
    and the loss does not count it.
    """
    prompt = record.get("prompt")
    if "messages" in record or not isinstance(prompt, list) or not prompt:
        return None
    last = prompt[-1]
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


def _chat_record(
    messages: list[Message],
    line: int,
    tok: Tokenizer,
    ends: Set[int | None],
    prefill: Message | None,
) -> EncodedRecord:
    """Renders a conversation. The loss counts the assistant's contents with what ends
    them; of the last one, what follows `prefill`.
    """
    answers = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            answers.append(i)
    if not answers:
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise ValueError(
            f"no message is the assistant's (roles: {roles}), so there is nothing to "
            "learn; add one"
        )
    text = render(tok, messages, add_generation_prompt=False)
    spans = message_spans(tok, messages, text, add_generation_prompt=False)
    ids, offsets = encode(tok, text, add_bos=False)
    loss_mask, unended = np.zeros(len(ids), bool), 0
    shown, refused = "", False
    for i in answers:
        span, before = spans[i], messages[:i]
        if prefill is not None and i == len(messages) - 1:
            begin, other = _begin_behind([*before, prefill], text, span[0], tok)
        else:
            begin, other = _begin(before, text, span[0], tok)
        content = messages[i]["content"]
        turn, ended = _turn(text, span, begin, content, ids, offsets, ends, tok)
        loss_mask[turn] = True
        unended += not ended
        # An answer that is not the last may stand after another text: templates leave
        # old thoughts out. So only the last is reason to refuse the row.
        if other.refused and i == answers[-1]:
            shown, refused = other.shown, True
        shown = shown or other.shown
    if loss_mask[0]:
        raise ValueError(
            "the chat template puts nothing before the assistant's first word; use "
            "another template"
        )
    example = Example(np.asarray(ids, np.int32), loss_mask, line)
    return EncodedRecord(example, unended, UnlikeGeneration(shown, refused))


def _begin(
    before: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, UnlikeGeneration]:
    """Returns the place in `text` where generation begins an answer whose content is at
    `start`, and how the text before it differs from what generation will see.
    """
    try:
        prompt = render(tok, before)
        opened = prompt != render(tok, before, add_generation_prompt=False)
    except ValueError:
        # Nothing is before it, or nothing that the template accepts as a prompt.
        return start, UnlikeGeneration()
    blank = not text[len(prompt) : start].strip()
    if text[:start].startswith(prompt) and (opened or blank):
        return (len(prompt) if opened else start), UnlikeGeneration()
    same_words = prompt.split() == text[:start].split()
    shown = _both_texts(prompt, text[:start])
    return start, UnlikeGeneration(shown, refused=opened and not same_words)


def _begin_behind(
    prompt: Sequence[Message], text: str, start: int, tok: Tokenizer
) -> tuple[int, UnlikeGeneration]:
    """Returns `_begin` of an answer whose first words are the prompt's last message."""
    begun = prompt_text(tok, prompt)[0]
    if text.startswith(begun):
        return len(begun), UnlikeGeneration()
    shown = _both_texts(begun, text[: max(start, len(begun))])
    return start, UnlikeGeneration(shown, refused=True)


def _both_texts(prompt: str, before: str) -> str:
    """Shows the text that generation begins an answer after beside that of a row, from
    where they differ.
    """
    shorter = min(len(prompt), len(before))
    at = next((i for i in range(shorter) if prompt[i] != before[i]), shorter)
    start, dots = max(0, at - 20), "..." if at > 20 else ""
    prompt, before = (f"{dots}{whole[start : at + 60]}" for whole in (prompt, before))
    return (
        f"generation begins an answer after {prompt!r}, but in the row it stands after "
        f"{before!r}"
    )


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
    """Returns the tokens of one assistant turn, and True where a token that ends it is
    among them.
    """
    start, end = span
    if not content.strip():
        raise ValueError("an assistant message has no text; fill it in or leave it out")
    if text[start:end].strip() != content.strip():
        raise ValueError(
            f"the chat template of {tok.path} rewrites the assistant message "
            f"{content[:40]!r} to {text[start:end][:40]!r}, "
            "so what the loss counts is unknown; write the message as the template "
            "does, or use another template"
        )
    first = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
    last = first + 1
    while last < len(ids) and offsets[last][0] < end:
        last += 1
    # White space may come between the content and the token that ends the turn.
    closing = last
    while closing < len(ids) and ids[closing] not in ends:
        if text[slice(*offsets[closing])].strip():
            break
        closing += 1
    ended = closing < len(ids) and ids[closing] in ends
    return slice(first, closing + 1 if ended else last), ended
