"""Messages written through a tokenizer's chat template, and where their contents stand in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sae_attr.tokenizer import Span, Tokenizer

Message = Mapping[str, Any]


def render(tok: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """Writes messages ({"role", "content"}) through the chat template, in the same sandbox as transformers uses.

    Raises:
      ValueError: no chat template, no message, a template that is refused, does not parse or rejects the messages.
    """
    if tok.chat_template is None:
        raise ValueError(
            f"{tok.path}: the prompt is a list of messages but the tokenizer has no chat template; "
            "add chat_template.jinja to the folder or give the prompt as one string"
        )
    if not messages:
        raise ValueError(f"{tok.path}: an empty list of messages cannot be rendered; give at least one message")
    try:
        return _compiled(tok.chat_template).render(
            messages=[dict(m) for m in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **tok.tokens,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(m.get("role")) for m in messages)
        raise ValueError(f"{tok.path}: the chat template refused messages with roles {roles}: {error}") from error


def message_spans(
    tok: Tokenizer, messages: Sequence[Message], text: str, add_generation_prompt: bool = True
) -> list[Span]:
    """Where the contents of the messages stand in `text` = render(tok, messages, add_generation_prompt), in characters.

    The template is rendered a second time with a marker for every content. What stands between the markers is
    template text, even where a content repeats it ("user", "assistant"). A content may be trimmed or rewritten by
    the template; it then reaches to the next piece of template text.
    """
    marked = [dict(m) | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
    pieces = re.split("\ue000([0-9]+)\ue001", render(tok, marked, add_generation_prompt))
    spans: list[Span] = []
    at = len(pieces[0]) if text.startswith(pieces[0]) else 0
    for index, after in zip(pieces[1::2], pieces[2::2], strict=True):
        content = str(messages[int(index)]["content"])
        end = _content_end(text, at, content, after)
        if end is None:  # a template that branches on the content: look for it, and go without if it is not there
            start = text.find(content.strip(), at)
            at, end = (start, start + len(content.strip())) if start >= 0 else (at, at)
        spans.append((at, end))
        at = end + len(after)
    return spans


def _content_end(text: str, at: int, content: str, after: str) -> int | None:
    """End of `content` (possibly trimmed) that starts at `at` and is followed by `after`; None if there is none."""
    for version in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text.startswith(version + after, at):
            return at + len(version)
    found = text.find(after, at) if after else -1
    return None if found < 0 else found


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks assistant text for training; here its body only."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # unlike jinja2's own, no HTML escapes


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
