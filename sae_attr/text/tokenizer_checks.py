"""Pieces of a tokenizer.json that would end or hang the process inside the tokenizers
library, found before it reads them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

_GROWTH = 1e4  # how much longer all replacements together may make a text
_IDS = 1 << 24  # token ids of any vocabulary lie below


def check_pieces(tokenizer: Any, where: str) -> None:
    """Looks at the parsed JSON of a tokenizer.

    Raises:
      ValueError: ids beyond any vocabulary, a map of characters that is cut,
        replacements that multiply a text.
    """
    if not isinstance(tokenizer, dict):
        raise ValueError(
            f"{where} holds a {type(tokenizer).__name__} where a tokenizer is "
            "expected; fetch it again"
        )
    growth = 1.0
    for piece in _pieces(tokenizer):
        if piece.get("type") == "Precompiled":
            _check_characters(piece.get("precompiled_charsmap"), where)
        if piece.get("type") == "Replace":
            growth *= max(1.0, _longer(piece))
    if growth > _GROWTH:
        raise ValueError(
            f"{where}: its replacements make a text {growth:,.0f} times as long; fetch "
            "the tokenizer again"
        )
    _check_ids(tokenizer, where)


def _pieces(value: Any) -> Iterator[dict[str, Any]]:
    """Objects at any depth, the vocabulary left out."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            for name, inner in item.items():
                # Hundreds of thousands of texts, of which none is an object to check.
                if name not in ("vocab", "merges", "added_tokens"):
                    waiting.append(inner)
        elif isinstance(item, list):
            waiting += item


def _longer(piece: dict[str, Any]) -> float:
    pattern, content = piece.get("pattern"), piece.get("content")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    shortest = len(text) if isinstance(text, str) else 1
    return len(content) / max(1, shortest) if isinstance(content, str) else 1.0


def _check_characters(value: Any, where: str) -> None:
    """Raises ValueError for a damaged map of characters: base64 of the size of a table
    as 4 bytes, the table, and the texts that it points to.
    """
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(
            f"{where}: precompiled_charsmap is not base64; fetch the tokenizer again"
        ) from None
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size % 4 or not 0 < size <= len(raw) - 4:
        raise ValueError(
            f"{where}: precompiled_charsmap is damaged; fetch the tokenizer again"
        )


def _check_ids(tokenizer: dict[str, Any], where: str) -> None:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.items()) if isinstance(vocab, dict) else []
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            ids.append((token.get("content"), token.get("id")))
    for token, number in ids:
        if not isinstance(number, int) or not 0 <= number < _IDS:
            raise ValueError(
                f"{where}: token {token!r} has the id {number!r}, which is none of a "
                "vocabulary"
            )
