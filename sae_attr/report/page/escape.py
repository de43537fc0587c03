"""Values of unknown origin as the page holds them: visible text, and JSON that cannot
end its element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from sae_attr.report.safe_text import visible


def plain(value: Any) -> Any:
    """Returns a value as dicts, lists, text, numbers and None alone; NaN and infinities
    become None, text is made visible.
    """
    if isinstance(value, Mapping):
        return {visible(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Set):
        # By text: the order of a set of strings is another in every process.
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
    """Returns JSON for a script element of type application/json: it holds no <, > or &,
    so that nothing in it can end the element.
    """
    # HTML entities are not read within a script element, so that escaping for HTML would
    # change the text; JSON's own escapes do not.
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
