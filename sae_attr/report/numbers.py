"""Number formatting for people."""

from __future__ import annotations

import math
from typing import Any

UNKNOWN = "–"


def is_known(value: Any) -> bool:
    """Returns whether a number is there: neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def signed(value: Any, digits: int = 1) -> str:
    """Returns a number with its sign, a true minus, and no sign on zero."""
    if not is_known(value):
        return UNKNOWN
    text = f"{value:+.{digits}f}"
    rounds_to_zero = not text.strip("+-0.")
    return text[1:] if rounds_to_zero else text.replace("-", "−")


def share(value: Any, digits: int = 1) -> str:
    """Returns a share as percent."""
    if not is_known(value):
        return UNKNOWN
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def p_value(value: Any) -> str:
    """Returns a p-value with its relation sign."""
    if not is_known(value):
        return UNKNOWN
    # Drawn from some thousands of permutations: more digits would be those of the draw.
    if value < 0.001:
        return "< 0.001"
    if value < 0.1:
        return f"= {value:.3f}"
    return f"= {value:.2f}"


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours, whichever reads best."""
    if not is_known(seconds):
        return UNKNOWN
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def span(low: Any, high: Any, digits: int = 1, scale: float = 100.0) -> str:
    """Returns an interval in brackets; "" where an end is not known.

    Args:
      scale: of the numbers shown; 100 turns shares into percentage points.
    """
    if not (is_known(low) and is_known(high)):
        return ""
    return f"[{signed(scale * low, digits)}, {signed(scale * high, digits)}]"
