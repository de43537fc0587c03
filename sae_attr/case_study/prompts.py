"""Prompts of a case study: read from JSONL, in three parts that share no prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_attr.chat import Message
from sae_attr.textfiles import json_lines, sound

SPLITS = ("pairs", "strengths", "effects")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Args:
      id: unique; random keys come from it.
      text: a string, or messages ({"role", "content"}) for the chat template.
    """

    id: str
    text: str | tuple[Message, ...]


def read_prompts(path: str | Path, shares: Sequence[float] = (0.5, 0.2, 0.3)) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of each of `SPLITS`, in the file's order.

    A record is {"prompt": text or messages, "id"?, "split"?}. Where records name no split, it is drawn by a hash of the id, so
    that another prompt in the file moves none of the others.

    Args:
      shares: of `SPLITS`, for records without a split.

    Raises:
      ValueError: with file and line: a record that cannot be read, an unknown split, an id or a prompt that stands twice (the
        same prompt in two splits would let a choice see what it is judged by); a split without any prompt.
    """
    out: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    seen: dict[Any, int] = {}
    for line, record in json_lines(Path(path)):
        where = f"{path}:{line}"
        prompt, split = _prompt(record, line, where), record.get("split")
        if split not in (None, *SPLITS):
            raise ValueError(f"{where}: split {split!r} is unknown; write one of {', '.join(SPLITS)}, or leave it out")
        for what, value in (("id", prompt.id), ("prompt", str(prompt.text))):
            if (what, value) in seen:
                raise ValueError(f"{where}: this {what} stands on line {seen[what, value]} too; each once")
            seen[what, value] = line
        out[split or drawn_split(prompt.id, shares)].append(prompt)
    if absent := [name for name, prompts in out.items() if not prompts]:
        raise ValueError(
            f"{path} has no prompt in the split {absent[0]!r} (of {sum(map(len, out.values()))}); add prompts, give other "
            'shares, or name the split in the records ("split")'
        )
    return {name: tuple(prompts) for name, prompts in out.items()}


def drawn_split(name: str, shares: Sequence[float]) -> str:
    """The split of a prompt that names none.

    Raises ValueError for shares that are not three positive numbers.
    """
    if len(shares) != len(SPLITS) or min(shares) <= 0:
        raise ValueError(f"shares {tuple(shares)} must be three numbers above 0, of {', '.join(SPLITS)}")
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 * sum(shares)
    for split, share in zip(SPLITS, shares, strict=True):
        place -= share
        if place < 0:
            return split
    return SPLITS[-1]


def _prompt(record: Any, line: int, where: str) -> Prompt:
    if not isinstance(record, Mapping) or record.get("prompt") in (None, "", []):
        raise ValueError(f'{where} has no prompt; a record is {{"prompt": text or messages, "id"?, "split"?}}')
    text, name = record["prompt"], record.get("id", f"line-{line}")
    if isinstance(text, str):
        return Prompt(str(name), sound(text, where))
    messages = text if isinstance(text, list) else []
    if not messages or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        raise ValueError(f"{where}: 'prompt' must be a text or a list of messages with the strings role and content")
    for message in messages:
        sound(message["content"], where)
    return Prompt(str(name), tuple({"role": m["role"], "content": m["content"]} for m in messages))
