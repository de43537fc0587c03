"""Results in sentences: findings, and warnings about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae_attr.comparison_records import Convergence, MethodCount, MethodDifference
from sae_attr.report.method_style import RANDOM, method_name
from sae_attr.report.numbers import is_known, p_value, signed, span

if TYPE_CHECKING:  # the page itself writes sentences
    from sae_attr.report.page.records import CaseReport

_MOST_NAMED = 12  # latents that a sentence names


def listed(parts: Sequence[str]) -> str:
    """Returns parts with commas between them and "and" before the last."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def named_numbers(values: Mapping[str, Any]) -> str:
    """Returns small numbers with their names, e.g. "away 3, toward 0.0725"."""
    parts = []
    for name, value in values.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def rounded_points(change: float) -> str:
    """Returns a change of a rate in whole percentage points."""
    return f"{signed(100 * change, 0)} points"


# ---- a latent ------------------------------------------------------------------------


def largest_effects_sentence(
    method: str, behaviour: str, largest: Mapping[str, tuple[int, float, float]]
) -> str:
    """Returns the largest effects among the latents of one method.

    Args:
      largest: direction -> latent, change, rate without steering; empty where none was
        measured.
    """
    name = method_name(method)
    if not largest:
        return (
            f"No latent of {name} could be measured: too many of its answers are "
            "missing."
        )
    ways = {"away": "against", "toward": "along"}
    parts = []
    for direction, (latent, change, base) in largest.items():
        parts.append(
            f"{rounded_points(change)} from {100 * base:.0f} % when steering "
            f"{ways[direction]} latent {latent}"
        )
    return (
        f"Largest effects on the rate of {behaviour} among the latents of {name}: "
        f"{listed(parts)}."
    )


# ---- methods -------------------------------------------------------------------------


def case_sentences(case: CaseReport) -> tuple[str, ...]:
    """Returns the findings of a case: the author's, the headline of each direction, and
    the smallest change that could be seen.
    """
    sentences = [
        *case.findings,
        counts_sentence(case, "away"),
        counts_sentence(case, "toward"),
        detectable_sentence(case),
    ]
    return tuple(filter(None, sentences))


def counts_sentence(case: CaseReport, direction: str) -> str:
    """Returns how many latents of each method lie outside the random band on the side
    that matters; "" where none was counted.
    """
    counts = []
    for count in case.counts:
        # Random latents make the range, so that theirs is no finding.
        if count.direction == direction and count.method != RANDOM:
            counts.append(count)
    if not counts:
        return ""
    first = counts[0]
    if not is_known(first.expected):
        return _means_sentence(counts, direction)
    verb = "lower" if direction == "away" else "raise"
    return (
        f"Latents that {verb} the rate of {case.behaviour} beyond the range of random "
        f"latents when steered {direction}: "
        f"{listed(list(map(_count_text, counts)))}. By chance "
        f"{first.expected:.1f} of {first.measured} would."
    )


def _means_sentence(counts: Sequence[MethodCount], direction: str) -> str:
    """Returns the methods' means, where there is no band to count against."""
    means = []
    for count in counts:
        means.append(f"{method_name(count.method)} {signed(100 * count.mean)} points")
    return (
        f"Steering {direction}, no random latent could be measured, so that there is "
        f"no range to compare with. Means: {listed(means)}."
    )


def _count_text(count: MethodCount) -> str:
    """Returns one method's count and mean."""
    mean = f"mean {signed(100 * count.mean)} points {span(count.low, count.high)}"
    return (
        f"{method_name(count.method)} {count.outside} of {count.measured} "
        f"({mean.rstrip()})"
    )


def difference_sentence(difference: MethodDifference) -> str:
    """Returns two methods compared, with intervals and p-values, and the latents that
    both selected.
    """
    d = difference
    # A count has scale 1; means are shares, shown as percentage points.
    counts = f"{signed(d.count, 0)} latents {span(d.count_low, d.count_high, 0, 1.0)}"
    means = f"{signed(100 * d.mean)} points {span(d.mean_low, d.mean_high)}"
    return (
        f"{method_name(d.first)} − {method_name(d.second)}, steering {d.direction}: "
        f"{counts} outside the range (p {p_value(d.count_p)}, q {p_value(d.count_q)}); "
        f"mean effect {means} (p {p_value(d.mean_p)}, q {p_value(d.mean_q)}). "
        f"{_shared_sentence(d)}"
    )


def _shared_sentence(difference: MethodDifference) -> str:
    shared = difference.shared
    if not shared:
        return "No latent was selected by both."
    names = ", ".join(map(str, shared[:_MOST_NAMED]))
    more = " …" if len(shared) > _MOST_NAMED else ""
    return (
        f"Both selected {len(shared)} latents ({names}{more}), "
        f"{difference.shared_outside} of them outside the range."
    )


def detectable_sentence(case: CaseReport) -> str:
    """Returns the smallest change that the study could have seen.

    A change that no rate could make is not printed as a number.
    """
    parts, blind = [], []
    for panel in case.effects["panels"]:
        direction, base = panel["direction"], panel["base_rate"]
        change = case.detectable.get(direction, math.nan)
        if not is_known(change):
            continue
        # A rate lies in 0 to 1: steering away can lower it by all of it, steering toward
        # raise it by the rest.
        room = base if direction == "away" else 1 - base
        if change > room:
            blind.append(direction)
        else:
            parts.append(f"{100 * change:.1f} points steering {direction}")
    sentences = []
    if parts:
        sentences.append(
            f"A change of a single latent smaller than {listed(parts)} would be missed "
            "more than one time in five."
        )
    if blind:
        sentences.append(
            f"Steering {listed(blind)}, no change of a single latent could be "
            "distinguished from chance: there are too few answers."
        )
    return " ".join(sentences)


def overlap_sentence(convergence: Convergence) -> str:
    """Returns how many latents two studies selected in common, and how many by chance."""
    studies = " and ".join(first.study for first in convergence.firsts)
    return (
        f"{studies} selected {len(convergence.shared)} latents in common; "
        f"{convergence.expected:.1f} would be expected by chance "
        f"(p = {convergence.overlap_p:.2g})."
    )


# ---- roles ---------------------------------------------------------------------------


def role_sentence(user_only: Mapping[str, Any]) -> str:
    """Returns what remains of a method's top where only the user's tokens count.

    Args:
      user_only: {method, top, stay, dictionary, rows} with each row's rank, latent and
        rank_user_only, or {skipped}.
    """
    if "skipped" in user_only:
        return (
            "What remains if only the user's tokens count is not known: "
            f"{user_only['skipped']}."
        )
    top, stay = user_only["top"], user_only["stay"]
    by_chance = top * top / user_only["dictionary"]
    first = user_only["rows"][0]
    return (
        f"If only the user's tokens count, {stay} of the top {top} of "
        f"{method_name(user_only['method'])} stay ({by_chance:.1f} by chance), and its "
        f"first latent, {first['latent']}, comes to rank {first['rank_user_only']:,} of "
        f"{user_only['dictionary']:,}."
    )


# ---- warnings ------------------------------------------------------------------------


def missing_sentence(
    direction: str, missing: int, answers: int, unmeasured: int, latents: int
) -> str:
    """Returns how many answers of a direction are missing, and how many latents were not
    measured for it.
    """
    text = (
        f"steering {direction}, {missing} of {answers} answers are missing "
        f"({100 * missing / answers:.0f} %)"
    )
    if unmeasured:
        text += (
            f"; {unmeasured} of {latents} latents lost most of theirs and were not "
            "measured"
        )
    return text


def unread_sentence(shares: Mapping[str, float]) -> str:
    """Returns that the judge left replies unread in one direction more than in the
    other.

    Args:
      shares: direction -> share of its answers.
    """
    parts = [f"{100 * part:.0f} % steering {name}" for name, part in shares.items()]
    return (
        "the judge refused, or gave no readable reply, far more often in one direction "
        f"than in the other: {' and '.join(parts)}"
    )
