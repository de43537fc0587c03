"""A server's key, kept out of everything that is shown or stored."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable

from sae_attr.server.address import Server

_SHORTEST_KEY = 4  # a shorter "key" is part of ordinary words


def hider(key: str) -> Callable[[str], str]:
    """Returns a function that makes a server's text fit for files: without the key, in
    any of its spellings, and in UTF-8.

    Half of a surrogate pair, which JSON can hold and no file, becomes a question mark.
    """
    spellings = _spellings(key)

    def hide(text: str) -> str:
        for spelling in spellings:
            text = text.replace(spelling, "[key]")
        return text.encode("utf-8", "replace").decode()

    return hide


def contains_key(key: str, text: str) -> bool:
    """Returns whether a text holds a key in any of its spellings."""
    return any(spelling in text for spelling in _spellings(key))


def _spellings(key: str) -> tuple[str, ...]:
    """Returns a key in plain text, in an address, in JSON and in base64, longest first;
    () for one that is no secret.
    """
    if len(key) < _SHORTEST_KEY or key == Server.api_key:
        return ()
    spellings = {
        key,
        urllib.parse.quote(key, safe=""),
        json.dumps(key)[1:-1],
        key.replace("/", "\\/"),
        base64.b64encode(key.encode()).decode(),
    }
    # Longest first: a shorter one within it would leave the rest of the key standing.
    return tuple(sorted(spellings, key=len, reverse=True))
