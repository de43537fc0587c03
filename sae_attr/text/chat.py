"""Messages written through a tokenizer's chat template, and where their contents stand
in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from sae_attr.text.templates import TemplateError, render_template, template_names
from sae_attr.text.tokenizer import Span, Tokenizer, encode

Message = Mapping[str, Any]

# Variables that every template may read; what else it reads must be among the options.
_GIVEN = frozenset(
    {
        "messages",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
    }
)
_GIVEN |= {"strftime_now"}  # set by `date`
DATE, MORE = "date", "more"
OPTIONS = {
    DATE: str, "enable_thinking": bool, "thinking": bool, "reasoning_effort": str, "date_string": str, "tools": str,
    "documents": str, MORE: str,
}  # fmt: skip
"""Template options that a command line can give, with their types; `more` takes any
other.
"""


def with_options(tok: Tokenizer, options: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer with values that its chat template reads wherever messages
    are rendered.

    Args:
      options: by name; None stands for absent. `date` (YYYY-MM-DD) is what
        `strftime_now` returns, today if absent; `tools` and `documents` are lists, or
        JSON text of one, or the path of a .json file; `more` is JSON text of an object
        with further options; every other one (enable_thinking, reasoning_effort, ...)
        is passed on unchanged.

    Raises:
      ValueError: a date that is none, text that is not JSON, an option that the
        template does not read.
    """
    values = {name: value for name, value in options.items() if value is not None}
    more = _of_text(values.pop(MORE, "{}"), MORE, dict)
    shared = set(values) & set(more) - {DATE}
    contradictions = sorted(name for name in shared if values[name] != more[name])
    if contradictions:
        raise ValueError(
            f"template_options has {contradictions[0]!r} itself and in more, with other values; "
            "take one of them away"
        )
    values |= more
    for name in ("tools", "documents"):
        if name in values:
            values[name] = _of_text(values[name], name, list)
    _check_date(values.get(DATE))
    source, names = tok.chat_template, set(values) - {DATE}
    if source is None and names:
        raise ValueError(
            f"template_options has {min(names)!r}, but {tok.path} has no chat template "
            "that could read it"
        )
    # Jinja ignores variables that a template does not read: a misspelt option would
    # have no effect and no message.
    if source is not None and names:
        readable = template_names(source) - _GIVEN  # TemplateError is a ValueError
        if unread := sorted(names - readable):
            raise ValueError(
                f"template_options has {unread[0]!r}, which the chat template of "
                f"{tok.path} does not read; it reads "
                f"{', '.join(sorted(readable)) or 'nothing but the messages'}"
            )
    return replace(tok, template_options=values)


def _of_text(value: Any, name: str, kind: type) -> Any:
    """Returns a value that may be given as JSON text or as the path of a .json file."""
    if isinstance(value, str):
        try:
            value = json.loads(
                Path(value).read_text("utf-8") if value.endswith(".json") else value
            )
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"template_options: {name} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(
            f"template_options: {name} is a {type(value).__name__}; give a "
            f"{kind.__name__}"
        )
    return value


def _check_date(value: Any) -> None:
    try:
        if value is not None:
            date.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError(
            f"template_options: date is {value!r}; write it as 2025-01-31"
        ) from None


def options_read(tok: Tokenizer) -> dict[str, Any]:
    """Returns the options that decide a rendered text, for keys and results: the date only
    where the template reads one.
    """
    if tok.chat_template is None:
        return {}
    options = dict(tok.template_options)
    options.pop(DATE, None)
    # Only then: a cache of another template must not be computed anew every day.
    if "strftime_now" in template_names(tok.chat_template):
        options[DATE] = _day(tok)
    return options


def _day(tok: Tokenizer) -> str:
    return str(tok.template_options.get(DATE) or date.today().isoformat())


def render(
    tok: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """Writes messages ({"role", "content"}) through the chat template, in the same
    sandbox as transformers uses.

    Raises:
      ValueError: no chat template, no message, a template that does not parse, rejects
        the messages or passes a limit.
    """
    if tok.chat_template is None:
        raise ValueError(
            f"{tok.path}: the prompt is a list of messages but the tokenizer has no "
            "chat template; "
            "add chat_template.jinja to the folder or give the prompt as one string"
        )
    if not messages:
        raise ValueError(
            f"{tok.path}: an empty list of messages cannot be rendered; give at least "
            "one message"
        )
    options = {
        name: value for name, value in tok.template_options.items() if name != DATE
    }
    variables = {"tools": None, "documents": None, **options, **tok.tokens}
    variables |= {
        "messages": [dict(m) for m in messages],
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        text = render_template(tok.chat_template, variables, day=_day(tok))
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{tok.path}: the rendered text has half of a surrogate pair at character "
            f"{error.start}; repair the messages"
        ) from None
    except TemplateError as error:
        roles = ", ".join(ascii(m.get("role")).strip("'") for m in messages)
        raise ValueError(
            f"{tok.path}: the chat template refused messages with roles {roles}: "
            f"{error}"
        ) from None


def prompt_text(tok: Tokenizer, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """Returns the text that a model completes, and where the contents of the messages are in
    it.

    Messages that end with the assistant's are continued: the text stops behind its
    content, and no turn is closed.

    Raises:
      ValueError: as `render`; a last assistant message that the template rewrites.
    """
    messages = list(messages)
    if not messages or messages[-1].get("role") != "assistant":
        text = render(tok, messages)
        return text, message_spans(tok, messages, text)
    content = str(messages[-1]["content"])
    if (
        not content.strip() and len(messages) > 1
    ):  # nothing to continue: the turn is opened
        text = render(tok, messages[:-1])
        return text, [*message_spans(tok, messages[:-1], text), (len(text), len(text))]
    text = render(tok, messages, add_generation_prompt=False)
    spans = message_spans(tok, messages, text, add_generation_prompt=False)
    start, end = spans[-1]
    if text[start:end].strip() != content.strip():
        raise ValueError(
            f"the chat template of {tok.path} writes the last assistant message "
            f"{content[:60]!r} as "
            f"{text[start:end][:60]!r}, so it cannot be continued; write it as the "
            "template does"
        )
    return text[:end], spans


def continued(messages: Sequence[Message], answer: str) -> list[Message]:
    """Returns messages with an answer: it continues a last assistant message, else it is
    a message of its own.
    """
    if messages and messages[-1].get("role") == "assistant":
        return [
            *messages[:-1],
            {
                **messages[-1],
                "content": str(messages[-1].get("content") or "") + answer,
            },
        ]
    return [*messages, {"role": "assistant", "content": answer}]


def assistant_end(tok: Tokenizer) -> int | None:
    """Returns the added token that the template writes right after an assistant's turn; None
    where there is none.
    """
    if tok.chat_template is None:
        return None
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    for messages in (
        turns,
        [{"role": "system", "content": "Be brief"}, *turns],
    ):  # some templates demand a system message
        with suppress(
            ValueError
        ):  # what is wrong with the template is said where messages are given
            text = render(tok, messages, add_generation_prompt=False)
            return _end_after(
                tok,
                text,
                message_spans(tok, messages, text, add_generation_prompt=False)[-1][1],
            )
    return None


def template_ids(tok: Tokenizer) -> frozenset[int]:
    """Returns the ids of all tokens that the chat template writes around messages;
    empty without a template.
    """
    if tok.chat_template is None:
        return frozenset()
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Hello"},
    ]
    ids: set[int] = set()
    # Some templates write a system message of their own, some refuse another's.
    for messages in (turns, [{"role": "system", "content": "Be brief"}, *turns]):
        with suppress(ValueError):
            text, spans = prompt_text(tok, messages)
            tokens, offsets = encode(
                replace(tok, embedding_rows=None), text, add_bos=False
            )
            for token, (start, stop) in zip(tokens, offsets, strict=True):
                if not any(start < end and stop > begin for begin, end in spans):
                    ids.add(token)
    return frozenset(ids)


def in_template(
    ids: Sequence[int], written: frozenset[int], special: frozenset[int]
) -> bool:
    """Returns whether the last of some tokens is one that the chat template wrote: a
    special token, or one of a run of its tokens that begins at a special token.

    Args:
      ids: the token and some before it.
      written: of `template_ids`.
      special: ids of special tokens.
    """
    for token in reversed(ids):
        if token in special:
            return True
        if token not in written:
            return False
    return False


def _end_after(tok: Tokenizer, text: str, end: int) -> int | None:
    """Returns the added token that follows character `end` in `text`, white space aside."""
    # The model may lack a token of the template: only a prompt that uses it is refused.
    ids, offsets = encode(replace(tok, embedding_rows=None), text, add_bos=False)
    added = tok.backend.get_added_tokens_decoder()
    for token, (start, stop) in zip(ids, offsets, strict=True):
        piece = text[start:stop]
        if start < end or not piece.strip():
            continue
        return token if token in added else None
    return None


def message_spans(
    tok: Tokenizer,
    messages: Sequence[Message],
    text: str,
    add_generation_prompt: bool = True,
) -> list[Span]:
    """Returns where the contents of the messages are in `text` = render(tok, messages,
    add_generation_prompt), in characters.

    The template is rendered a second time with a marker for every content. What stands
    between the markers is template text, even where a content repeats it ("user",
    "assistant"). A content may be trimmed or rewritten by the template; it then reaches
    to the next piece of template text.
    """
    # Characters of a private use area, which no template and hardly a text contains.
    marked = [dict(m) | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
    pieces = re.split(
        "\ue000([0-9]+)\ue001", render(tok, marked, add_generation_prompt)
    )
    spans: list[Span] = []
    at = len(pieces[0]) if text.startswith(pieces[0]) else 0
    for index, after in zip(pieces[1::2], pieces[2::2], strict=True):
        content = str(messages[int(index)]["content"])
        end = _content_end(text, at, content, after)
        if end is None:
            # A template that branches on the content: look for it, and go without if it
            # is not there.
            start = text.find(content.strip(), at)
            at, end = (start, start + len(content.strip())) if start >= 0 else (at, at)
        spans.append((at, end))
        at = end + len(after)
    return spans


def _content_end(text: str, at: int, content: str, after: str) -> int | None:
    """Returns the end of `content` (possibly trimmed) that starts at `at` and is followed by
    `after`; None if there is none.
    """
    for version in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text.startswith(version + after, at):
            return at + len(version)
    end = text.find(after, at) if after else -1
    return None if end < 0 else end
