"""A figure as files, and the colours that all figures share."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, BLUE, GREY = "#22303c", "#1f77b4", "#9aa5b1"


def render(figure: Figure, numbers: Mapping[str, Any]) -> dict[str, bytes]:
    """File suffix -> contents: svg, png and the numbers as json; the same bytes for the
    same numbers.
    """
    finite = json.loads(
        json.dumps(numbers), parse_constant=lambda _: None
    )  # JSON knows no NaN
    out = {"json": json.dumps(finite, indent=1).encode()}
    with matplotlib.rc_context({"svg.hashsalt": "sae_attr", "svg.fonttype": "none"}):
        for suffix in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            out[suffix] = buffer.getvalue()
    return out
