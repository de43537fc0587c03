"""Pairs: prompts with completions that have a behaviour and that have not, as read from
a JSONL file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_attr.files.text import json_lines, sound
from sae_attr.text.chat import Message

_FIELDS = (
    "id",
    "prompt",
    "positive",
    "negative",
    "sampler",
    "prompt_ids",
    "positive_ids",
    "negative_ids",
)


@dataclass(frozen=True)
class Pair:
    """One record: a prompt with completions that have the behaviour (positives) and
    that have not (negatives).

    Args:
      id: unique name; "line-N" where the record has none.
      prompt: a string or messages ({"role", "content"}); "" where the record gives
        token ids only.
      positives, negatives: texts; may be empty where the record gives token ids.
      line: line number in the file, from 1.
      sampler: what sampled the completions (a model's name or hash), None if unknown.
      prompt_ids, positive_ids, negative_ids: token ids of the record; they win over the
        texts.
      extra: every other field of the record (scores, ...).
    """

    id: str
    prompt: str | tuple[Message, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    line: int
    sampler: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    positive_ids: tuple[tuple[int, ...], ...] = ()
    negative_ids: tuple[tuple[int, ...], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """One prompt to complete.

    Args:
      id: unique name; "line-N" where the record has none.
      prompt: a string or messages; "" where the record gives token ids only.
      line: line number in the file, from 1.
      prompt_ids: token ids of the record; they win over the text.
      split: what it is for, where the record says so.
      group: prompts of one group (phrasings of one belief) are not independent.
      topic: what it is about.
      present, absent: texts after it that show a behaviour, and its absence.
    """

    id: str
    prompt: str | tuple[Message, ...]
    line: int = 0
    prompt_ids: tuple[int, ...] | None = None
    split: str | None = None
    group: str | None = None
    topic: str | None = None
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt as a text; messages of a chat with their roles."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads a JSONL file of prompts: prompt or prompt_ids, optionally id, split, group,
    topic, present and absent (a text or a list); other fields are not looked at.

    Raises:
      ValueError: with file and line: no object, no prompt or one of the wrong type, an
        id that stands twice; an empty file.
    """
    prompts: dict[str, Prompt] = {}
    for line, record in json_lines(Path(path)):
        where = f"{path}:{line}"
        if not isinstance(record, dict) or (
            record.get("prompt") is None and record.get("prompt_ids") is None
        ):
            raise ValueError(
                f"{where} has no 'prompt'; write an object with prompt, and id if you "
                "like"
            )
        name = _name(record, line, where)
        if name in prompts:
            raise ValueError(
                f"{where}: id {name!r} stands on line {prompts[name].line} too; make "
                "ids unique"
            )
        ids = next(
            iter(_ids_field(record.get("prompt_ids"), "prompt_ids", where)), None
        )
        prompts[name] = Prompt(
            name,
            _prompt_field(record.get("prompt"), where),
            line,
            ids,
            split=_word_field(record, "split", where),
            group=_word_field(record, "group", where),
            topic=_word_field(record, "topic", where),
            present=_texts_field(record.get("present"), "present", where),
            absent=_texts_field(record.get("absent"), "absent", where),
        )
    if not prompts:
        raise ValueError(
            f"{path} has no records; write one JSON object a line with prompt"
        )
    return list(prompts.values())


def read_pairs(path: str | Path) -> list[Pair]:
    """Reads a JSONL file of pairs: prompt, positive (text or list), and optionally
    negative, id, sampler, *_ids.

    Raises:
      ValueError: with file and line: not UTF-8, not JSON, a field that is missing, of
        the wrong type or empty, an id that stands twice; or an empty file.
    """
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    for line, record in json_lines(Path(path)):
        where = f"{path}:{line}"
        pair = _pair(record, line, where)
        if pair.id in lines:
            raise ValueError(
                f"{where}: id {pair.id!r} stands on line {lines[pair.id]} too; make "
                "ids unique"
            )
        lines[pair.id] = line
        pairs.append(pair)
    if not pairs:
        raise ValueError(
            f"{path} has no records; write one JSON object a line with prompt, "
            "positive and negative"
        )
    return pairs


def _pair(record: Any, line: int, where: str) -> Pair:
    if not isinstance(record, dict):
        raise ValueError(
            f"{where} is a {type(record).__name__} where an object with prompt and "
            "positive is expected"
        )
    for name in ("prompt", "positive"):
        if record.get(name) is None and record.get(f"{name}_ids") is None:
            raise ValueError(
                f"{where}: {name!r} is missing (found: "
                f"{', '.join(record) or 'nothing'}); add it"
            )
    name, sampler = _name(record, line, where), record.get("sampler")
    if not isinstance(sampler, str | None):
        raise ValueError(f"{where}: 'sampler' is {sampler!r}; it must be a string")
    sound(str(sampler), f"{where}: 'sampler'")
    pair = Pair(
        id=name,
        prompt=_prompt_field(record.get("prompt"), where),
        positives=_texts_field(record.get("positive"), "positive", where),
        negatives=_texts_field(record.get("negative"), "negative", where),
        line=line,
        sampler=sampler,
        prompt_ids=next(
            iter(_ids_field(record.get("prompt_ids"), "prompt_ids", where)), None
        ),
        positive_ids=_ids_field(record.get("positive_ids"), "positive_ids", where),
        negative_ids=_ids_field(record.get("negative_ids"), "negative_ids", where),
        extra={key: value for key, value in record.items() if key not in _FIELDS},
    )
    _check_sides(pair, where)
    return pair


def _name(record: dict[str, Any], line: int, where: str) -> str:
    """Returns the record's id; "line-N" where it has none."""
    name = record.get("id")
    if name is None:
        return f"line-{line}"
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(
            f"{where}: 'id' is {name!r}; it must be a string or an integer"
        )
    return sound(str(name), f"{where}: 'id'")


def _word_field(record: dict[str, Any], name: str, where: str) -> str | None:
    value = record.get(name)
    if not isinstance(value, str | None):
        raise ValueError(f"{where}: {name!r} is {value!r}; it must be a string")
    return value if value is None else sound(value, f"{where}: {name!r}")


def _prompt_field(value: Any, where: str) -> str | tuple[Message, ...]:
    if value is None:
        return ""
    if isinstance(value, str):
        return sound(value, f"{where}: 'prompt'")
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{where}: 'prompt' is {value!r}; it must be a string or a list of "
            "messages that is not empty"
        )
    for k, message in enumerate(value):
        fields = [None]
        if isinstance(message, dict):
            fields = [message.get(key) for key in ("role", "content")]
        if not all(isinstance(text, str) for text in fields):
            raise ValueError(
                f"{where}: message {k} of 'prompt' is {message!r}; it needs the "
                "strings role and content"
            )
        sound(message["role"] + message["content"], f"{where}: message {k} of 'prompt'")
    return tuple(value)


def _texts_field(value: Any, name: str, where: str) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: {name!r} is {value!r}; it must be a string or a list of strings"
        )
    if "" in texts or (name == "positive" and value == []):
        raise ValueError(
            f"{where}: {name!r} is empty or holds an empty completion; remove it or "
            "fill it in"
        )
    return tuple(sound(text, f"{where}: {name!r}") for text in texts)


def _ids_field(value: Any, name: str, where: str) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return ()
    nested = isinstance(value, list) and any(isinstance(item, list) for item in value)
    lists = value if nested else [value]
    for ids in lists:
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"{where}: {name!r} must be a list of token ids (integers from 0) or a "
                "list of such lists"
            )
        if not ids:
            raise ValueError(
                f"{where}: {name!r} holds an empty list of token ids; remove it or "
                "fill it in"
            )
    if name == "prompt_ids" and len(lists) > 1:
        raise ValueError(
            f"{where}: 'prompt_ids' holds {len(lists)} lists but a record has one "
            "prompt; split it"
        )
    return tuple(tuple(ids) for ids in lists)


def _check_sides(pair: Pair, where: str) -> None:
    """Texts and token ids of a record must describe the same completions, all in the
    same way.
    """
    sides = (
        ("positive", pair.positives, pair.positive_ids),
        ("negative", pair.negatives, pair.negative_ids),
    )
    for name, texts, ids in sides:
        if texts and ids and len(texts) != len(ids):
            raise ValueError(
                f"{where}: {len(texts)} texts in {name!r} but {len(ids)} in "
                f"'{name}_ids'; make them equal"
            )
        if (
            texts
            and not ids
            and (pair.prompt_ids or pair.positive_ids or pair.negative_ids)
        ):
            raise ValueError(
                f"{where}: {name!r} is text only but the record gives token ids; add "
                f"'{name}_ids'"
            )
