"""Text of unknown origin made harmless: what cannot be seen becomes visible, and JSON cannot end its element."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

# Controls but tab and newline, those that turn the direction of text around, halves of surrogate pairs, and non-characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Text in which every character that would act instead of being seen is named: U+202E becomes ⟨U+202E⟩."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def plain(value: Any) -> Any:
    """The same value of dicts, lists, text, numbers and None alone; NaN and infinities become None, text is made visible."""
    if isinstance(value, Mapping):
        return {visible(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Set):
        return plain(sorted(value, key=str))
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return visible(str(value))


def script_json(value: Any) -> str:
    """JSON for a script element of type application/json: it holds no <, > or &, so nothing in it can end the element."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
