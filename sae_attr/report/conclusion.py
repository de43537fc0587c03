"""What a reader may conclude from a case, in two paragraphs: every judgement follows from
the numbers, and what does not hold is said as plainly as what does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_attr.comparison_records import Direction, LatentName, MethodCount
from sae_attr.report.method_style import RANDOM, first_name, method_name
from sae_attr.report.numbers import is_known, share, signed, span
from sae_attr.report.sentences import listed

if TYPE_CHECKING:  # the page itself writes sentences
    from sae_attr.report.page.records import CaseReport

LEVEL = 0.05  # p-value below which a difference counts
ACTIVATION = "delta_activation"  # what the post compares its method with
# Rankings by Δ-attribution, as published and as recommended.
ATTRIBUTIONS = ("delta_attribution", "recommended")
_TOKENS = 4  # nearest tokens of a latent in a sentence


def conclusion(case: CaseReport) -> tuple[str, ...]:
    """Returns the paragraphs: first what steering away changed with each ranking, the
    latent that changes most, and whether attribution goes beyond random latents and
    beyond Δ-activation; then what ablation and steering toward changed.
    """
    first = [
        _rates(case, "away"),
        strongest_sentence(case),
        _beyond_random(case, "away"),
        _beyond_activation(case),
    ]
    paragraphs = [f"{case.title}: {_joined(first)}"]
    paragraphs.append(_joined([_ablated(case), _toward(case)]))
    return tuple(filter(None, paragraphs))


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(filter(None, sentences))


# ---- rankings ------------------------------------------------------------------------


def _counts(case: CaseReport, direction: Direction) -> list[MethodCount]:
    """Returns the counts of the methods that were measured, random latents last."""
    counts = []
    for count in case.counts:
        if count.direction == direction and is_known(count.mean):
            counts.append(count)
    return sorted(counts, key=lambda count: count.method == RANDOM)


def _mean(count: MethodCount) -> str:
    text = f"{signed(100 * count.mean)} points {span(count.low, count.high)}"
    return text.rstrip()


def _base_rate(case: CaseReport, direction: Direction) -> float:
    for panel in case.effects["panels"]:
        if panel["direction"] == direction:
            return float(panel["base_rate"])
    return float("nan")


def _rates(case: CaseReport, direction: Direction) -> str:
    """Returns the rate without steering, and every method's mean change."""
    counts = _counts(case, direction)
    base = share(_base_rate(case, direction), 0)
    text = f"without steering, the rate of {case.behaviour} is {base}."
    if all(count.method == RANDOM for count in counts):
        return f"{text} No latent could be measured when steered {direction}."
    parts = []
    for count in counts:
        name = first_name(count.method)
        if count.method == RANDOM:
            name = f"{count.measured} random latents"
        parts.append(f"{_mean(count)} ({name})")
    top = max(count.measured for count in counts if count.method != RANDOM)
    return (
        f"{text} Steering {direction} with one of the best {top} latents of a ranking "
        f"changes it, on average, by {listed(parts)}."
    )


def moves(count: MethodCount) -> bool:
    """Returns whether a method's latents change the rate further than random ones on
    the side that matters, by interval and p-value.
    """
    if not (is_known(count.gap_p) and count.gap_p < LEVEL):
        return False
    return count.gap_high < 0 if count.direction == "away" else count.gap_low > 0


def _beyond_random(case: CaseReport, direction: Direction) -> str:
    """Returns which rankings' latents change more than random ones, and which do not."""
    yes, no, outside = [], [], []
    for count in _counts(case, direction):
        if not is_known(count.gap):
            continue
        name = method_name(count.method)
        if moves(count):
            yes.append(name)
        else:
            no.append(name)
            outside.append(f"{count.outside} of {count.measured}")
    sentences = []
    if yes:
        verb = "lower" if direction == "away" else "raise"
        sentences.append(
            f"On average, latents of {listed(yes)} {verb} it further than random ones do."
        )
    if no:
        # A mean near that of random latents may hide a few that move much.
        sentences.append(
            f"The average of {listed(no)} cannot be told from that of random latents; "
            f"of single ones {listed(outside)} lie beyond their range."
        )
    return " ".join(sentences)


def _beyond_activation(case: CaseReport) -> str:
    """Returns whether Δ-attribution lowers the rate further than Δ-activation, which the
    post claims; "" where either was not measured.
    """
    parts = []
    for d in case.differences:
        pair = (d.first, d.second)
        if d.direction != "away" or ACTIVATION not in pair:
            continue
        other = d.first if d.second == ACTIVATION else d.second
        if other not in ATTRIBUTIONS or not is_known(d.mean):
            continue
        sign = 1 if d.first == other else -1
        mean, low, high = sign * d.mean, sign * d.mean_low, sign * d.mean_high
        low, high = min(low, high), max(low, high)
        clear = is_known(d.mean_p) and d.mean_p < LEVEL
        verdict = "cannot be told from Δ-activation"
        if clear and high < 0:
            verdict = "goes beyond Δ-activation"
        elif clear and low > 0:
            verdict = "falls behind Δ-activation"
        numbers = f"{signed(100 * mean)} points {span(low, high)}"
        parts.append(f"{first_name(other)} {verdict} ({numbers.rstrip()})")
    if not parts:
        return ""
    return f"The post's claim, attribution above activation: {listed(parts)}."


def _toward(case: CaseReport) -> str:
    """Returns what steering the model without the behaviour toward it does."""
    counts = _counts(case, "toward")
    if not counts:
        return ""
    best = max(counts, key=lambda count: count.mean)
    base = share(_base_rate(case, "toward"), 0)
    text = (
        f"Steering toward it, from {base}, adds {_mean(best)} at most "
        f"({method_name(best.method)})."
    )
    return f"{text} {_beyond_random(case, 'toward')}".rstrip()


def _ablated(case: CaseReport) -> str:
    """Returns every method's mean change when single latents are ablated."""
    parts = []
    for count in case.ablated_counts:
        if is_known(count.mean):
            parts.append(f"{_mean(count)} ({method_name(count.method)})")
    if not parts:
        return ""
    return (
        "Set to its mean alone, which shows what a latent did rather than what it can "
        f"do, a latent changes the rate, on average, by {listed(parts)}."
    )


# ---- a latent ------------------------------------------------------------------------


class StrongLatent(NamedTuple):
    """A latent that changes the rate further than the random ones.

    Args:
      methods: those that selected it.
      change, low, high: of steering away.
    """

    latent: LatentName
    methods: tuple[str, ...]
    change: float
    low: float
    high: float


def _candidates(panel: Mapping[str, Any]) -> Iterator[StrongLatent]:
    """Yields the selected latents below the random band whose change can be told from
    0.
    """
    band = panel.get("band")
    lowest = float("-inf") if band is None else band[0]
    methods: dict[LatentName, list[str]] = {}
    for strip in panel["strips"]:
        for latent in strip["latents"]:
            methods.setdefault(latent, []).append(strip["method"])
    for strip in panel["strips"]:
        if strip["method"] == RANDOM:
            continue
        columns = (strip["latents"], strip["change"], strip["low"], strip["high"])
        for latent, change, low, high in zip(*columns, strict=True):
            if is_known(change) and change < lowest and is_known(high) and high < 0:
                yield StrongLatent(latent, tuple(methods[latent]), change, low, high)


def strongest(case: CaseReport) -> StrongLatent | None:
    """Returns the selected latent whose steering lowers the rate most, of those whose
    ablation lowers it too where there are such; None where none leaves the range of
    random latents.
    """
    candidates: list[StrongLatent] = []
    for panel in case.effects["panels"]:
        if panel["direction"] == "away":
            candidates += _candidates(panel)
    # One that acted and steers: a latent that only steers did not cause the answers.
    acted = [latent for latent in candidates if _acted(_row(case, latent.latent))]
    return min(acted or candidates, key=lambda latent: latent.change, default=None)


def _acted(row: Mapping[str, Any]) -> bool:
    """Returns whether the ablation of a latent alone clearly lowers the rate."""
    return _number(row, "ablated") < 0 and _number(row, "ablated_q") < LEVEL


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)


def strongest_sentence(case: CaseReport) -> str:
    """Returns what the strongest latent does, by steering and by ablation."""
    latent = strongest(case)
    if latent is None:
        return (
            f"No selected latent lowers the rate of {case.behaviour} beyond the range "
            "of random ones."
        )
    row = _row(case, latent.latent)
    tokens: Sequence[str] = tuple(row.get("tokens") or ())[:_TOKENS]
    nearest = ", ".join(repr(token.strip()) for token in tokens)
    who = f"latent {latent.latent}"
    if nearest:
        who += f" (nearest tokens {nearest})"
    base = share(_base_rate(case, "away"), 0)
    what = "does most when steered"
    if _acted(row):
        what = "does most, by steering and by ablation,"
    text = (
        f"The single latent that {what} is {who}, among the best of "
        f"{listed(list(map(method_name, latent.methods)))}: steered away it takes the "
        f"rate from {base} to {share(_base_rate(case, 'away') + latent.change, 0)} "
        f"({signed(100 * latent.change)} points {span(latent.low, latent.high)})"
    )
    ablated = _number(row, "ablated")
    if is_known(ablated):
        text += f"; ablated alone it changes it by {signed(100 * ablated)}"
    return f"{text}."


def _row(case: CaseReport, latent: LatentName) -> Mapping[str, Any]:
    for row in case.latents.rows:
        if row.get("latent") == latent:
            return row
    return {}
