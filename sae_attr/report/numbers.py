"""Numbers as a reader wants them, and what was found in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.report.figures.strips import method_name
from sae_attr.report.page.contents import (
    CaseReport,
    Column,
    MethodCount,
    MethodDifference,
)

UNKNOWN = "–"
RANDOM = "random"


def known(value: Any) -> bool:
    """Whether a number is there."""
    return value is not None and math.isfinite(value)


def signed(value: Any, digits: int = 1) -> str:
    """A number with its sign, a true minus, and no sign on zero."""
    if not known(value):
        return UNKNOWN
    text = f"{value:+.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def share(value: Any, digits: int = 1) -> str:
    """A share as percent."""
    return f"{100 * value:.{digits}f} %".replace("-", "−") if known(value) else UNKNOWN


def p_value(value: Any) -> str:
    """A p-value with its relation sign."""
    if not known(value):
        return UNKNOWN
    return (
        "< 0.001"
        if value < 0.001
        else f"= {value:.3f}"
        if value < 0.1
        else f"= {value:.2f}"
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if not known(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )


def span(low: Any, high: Any, digits: int = 1, scale: float = 100.0) -> str:
    """An interval in brackets, of shares as points by default; nothing where it is not
    known.
    """
    if not (known(low) and known(high)):
        return ""
    return f"[{signed(scale * low, digits)}, {signed(scale * high, digits)}]"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by: a number as text, "" for not known;
    or the text itself.
    """

    text: str
    order: str
    tokens: tuple[str, ...] = ()


def cell(column: Column, value: Any) -> Cell:
    """One value as its column shows it."""
    if column.kind == "tokens":
        parts = tuple(str(v) for v in value or ())
        return Cell(" ".join(parts), " ".join(parts).strip().lower(), parts)
    if column.kind == "methods":
        text = ", ".join(method_name(str(v)) for v in value or ())
        return Cell(text, text.lower())
    if column.kind == "text":
        return Cell(
            "" if value is None else str(value),
            "" if value is None else str(value).strip().lower(),
        )
    if column.kind == "flag":
        return Cell(
            "●" if value else "", "" if value is None else str(int(bool(value)))
        )
    if not known(value):
        return Cell(UNKNOWN, "")
    digits = (
        (3 if column.kind == "number" else 1)
        if column.digits is None
        else column.digits
    )
    shown = {  # + 0.0: no sign on zero
        "integer": lambda: f"{int(value)}".replace("-", "−"),
        "number": lambda: f"{value + 0.0:.{digits}g}".replace("-", "−"),
        "percent": lambda: share(value, digits),
        "points": lambda: signed(100 * value, digits),
    }
    return Cell(shown[column.kind](), repr(float(value)))


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(count: MethodCount) -> str:
    """One method's headline."""
    interval = span(count.low, count.high)
    mean = f"mean {signed(100 * count.mean)} points{' ' if interval else ''}{interval}"
    return f"{count.outside} of {count.measured} latents of {method_name(count.method)} ({mean})"


def counts_sentence(case: CaseReport, direction: str) -> str:
    """How many latents of each method lie outside the random band on the side that
    matters; "" where none was counted.
    """
    counts = [c for c in case.counts if c.direction == direction and c.method != RANDOM]
    if not counts:
        return ""
    first, chance = counts[0], counts[0].expected
    if not known(chance):
        means = _listed(
            [f"{method_name(c.method)} {signed(100 * c.mean)} points" for c in counts]
        )
        bare = (
            "no random latent could be measured, so there is no range to compare with"
        )
        return f"Steering {direction}, {bare}. Means: {means}."
    verb = "lower" if direction == "away" else "raise"
    expected = f" Of {first.measured} random latents {chance:.1f} would."
    return (
        f"Steering {direction}, {_listed([_counted(c) for c in counts])} {verb} the "
        f"rate of {case.behaviour} by more than "
        f"the range of random latents.{expected}"
    )


def difference_sentence(found: MethodDifference) -> str:
    """Two methods compared, with interval and p-value, and which latents they share."""
    first, second = method_name(found.first), method_name(found.second)
    both = (
        f"{len(found.shared)} latents were chosen by both, {found.shared_outside} of "
        "them outside the range: "
        f"{', '.join(str(i) for i in found.shared[:12])}{' …' if len(found.shared) > 12 else ''}."
        if found.shared
        else "No latent was chosen by both."
    )
    return (
        f"{first} against {second}, steering {found.direction}: "
        f"{signed(found.count, 0)} latents "
        f"{span(found.count_low, found.count_high, 0, 1.0)} (p "
        f"{p_value(found.count_p)}, q {p_value(found.count_q)}), mean "
        f"effect {signed(100 * found.mean)} points "
        f"{span(found.mean_low, found.mean_high)} (p {p_value(found.mean_p)}, "
        f"q {p_value(found.mean_q)}). {both}"
    )


def detectable_sentence(case: CaseReport) -> str:
    """What this study could not have seen; a change that no rate could make is no
    number to print.
    """
    parts, blind = [], []
    for panel in case.effects["panels"]:
        direction, base = panel["direction"], panel["base_rate"]
        change = case.detectable.get(direction)
        if change is None or not known(change):
            continue
        if change > (base if direction == "away" else 1 - base):
            blind.append(direction)
        else:
            parts.append(f"{100 * change:.1f} points steering {direction}")
    sentences = []
    if parts:
        sentences.append(
            f"A single latent's change smaller than {_listed(parts)} would have been "
            "missed more than one time in five."
        )
    if blind:
        sentences.append(
            f"Steering {_listed(blind)}, no single latent's change could have been "
            "told from chance: there are too few answers."
        )
    return " ".join(sentences)


def case_sentences(case: CaseReport) -> tuple[str, ...]:
    """What a case found: the author's sentences, then the headline of each direction,
    then what could not be seen.
    """
    made = [counts_sentence(case, d) for d in ("away", "toward")] + [
        detectable_sentence(case)
    ]
    return (*case.found, *(s for s in made if s))
