"""Items of a corpus: a text, a row with a text, or a conversation."""

from __future__ import annotations

from typing import Any

from sae_attr.files.text import (
    LINE,
    sound,
)
from sae_attr.text.chat import Message, continued, render
from sae_attr.text.tokenizer import Tokenizer

# The default column; where a row has none, a conversation under a usual name is taken.
TEXT = "text"


Item = tuple[str, Any]
"""The place of an item in its file, and its content."""

_CHATS = ("messages", "conversations")


_PAIR = ("prompt", "completion")


_ROLES = {
    "human": "user",
    "gpt": "assistant",
}  # as rows of "from" and "value" call them


def text_of(item: Any, column: str, where: str, tok: Tokenizer | None) -> str:
    """Returns the text of one item: itself, its column, or its conversation through the chat
    template.
    """
    value = _value_of(item, column, where)
    if isinstance(value, str):
        if len(value) > LINE:
            raise ValueError(
                f"{where} is longer than {LINE:,} characters; cut it into documents"
            )
        return sound(value, where)
    messages = conversation(value, where)
    if not messages:
        return ""
    if tok is None:
        raise ValueError(
            f"{where} is a conversation, which needs a model's chat template; give the "
            "texts, or a model"
        )
    try:
        return render(tok, messages, add_generation_prompt=False)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _value_of(item: Any, column: str, where: str) -> Any:
    if isinstance(item, str) or (isinstance(item, list) and item):
        return item
    fields = item if isinstance(item, dict) else {}
    if column in fields:
        names: tuple[str, ...] = (column,)
    elif column == TEXT:
        names = default_fields(fields)
    else:
        names = ()
    values = [fields[name] for name in names]
    if any(value is None for value in values):
        return ""  # blank, as in a table
    if len(values) == 2:
        return _joined(values[0], values[1], where)
    if values and (isinstance(values[0], str) or _is_chat(values[0])):
        return values[0]
    kind = type(item).__name__
    if fields:
        kind = f"an object with the fields {', '.join(fields)}"
    raise ValueError(
        f'{where} is {kind} where a string or {{"{column}": ...}} is expected, a text or messages; name the field that '
        "holds it (column=...)"
    )


def default_fields(names: Any) -> tuple[str, ...]:
    """Returns the fields to read where there is no `text`."""
    if chat := next((name for name in _CHATS if name in names), None):
        return (chat,)
    return _PAIR if all(name in names for name in _PAIR) else ()


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | dict) and len(value) > 0


def _joined(prompt: Any, completion: Any, where: str) -> Any:
    """Joins prompt and completion to one text, or to one conversation where either is
    messages.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    if isinstance(prompt, str):
        first = [{"role": "user", "content": prompt}]
    else:
        first = conversation(prompt, where)
    if isinstance(completion, str):
        return continued(first, completion)
    return [*first, *conversation(completion, where)]


def conversation(value: Any, where: str) -> list[Message]:
    """Returns messages as chat templates read them; ValueError for what is none.

    Rows of "from" and "value" are taken too, and a table's columns of roles and
    contents; fields that are null are left out.
    """
    # Tables store a list of structs as a struct of lists.
    if isinstance(value, dict) and all(isinstance(x, list) for x in value.values()):
        value = [dict(zip(value, row)) for row in zip(*value.values())]
    if not isinstance(value, list):
        raise ValueError(
            f"{where} is a {type(value).__name__} where a text or a list of messages "
            "is expected"
        )
    messages = []
    for number, item in enumerate(value):
        messages.append(_message(item, f"{where}: message {number}"))
    return messages


def _message(item: Any, where: str) -> Message:
    fields = {}
    if isinstance(item, dict):
        # In a table every message has every column of any, null where it has none.
        fields = {k: v for k, v in item.items() if v is not None}
    if "from" in fields and "value" in fields:
        fields = {
            "role": _ROLES.get(fields["from"], fields["from"]),
            "content": fields["value"],
        }
    for name in ("role", "content"):
        if not isinstance(fields.get(name), str):
            raise ValueError(
                f"{where} needs the strings role and content; it has "
                f"{', '.join(fields) or 'neither'}"
            )
        sound(fields[name], where)
    return fields
