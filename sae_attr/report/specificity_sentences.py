"""Specificity, the check of exact effects by sampled ones, and rates without steering,
in sentences; every judgement follows from the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sae_attr.comparison_records import (
    Direction,
    DirectionsControl,
    Estimate,
    LatentName,
    SampledAgreement,
    SetMean,
    TopicRate,
)
from sae_attr.report.method_style import RANDOM, method_name
from sae_attr.report.numbers import is_known, p_value, share, signed, span
from sae_attr.report.safe_text import one_line
from sae_attr.report.sentences import listed

EFFECTS = "effects"  # the set of prompts that effects are measured on
# The sets of every study; others are a case's probes.
_OWN_SETS = {
    EFFECTS: "the study's prompts",
    "pairs": "the prompts for pairs",
    "strengths": "the prompts for strengths",
}
Reach = Literal["as well", "less", "unknown"]
AS_MUCH = 0.5  # part of a change from which on it is called not specific
_LONGEST = 40  # characters of a name


def set_name(name: str) -> str:
    """Returns the name of a set of prompts as sentences, tables and figures write it."""
    if name in _OWN_SETS:
        return _OWN_SETS[name]
    return one_line(name.replace("_", " "), _LONGEST)


def points(estimate: Estimate, digits: int = 1) -> str:
    """Returns a change in percentage points with its interval."""
    text = f"{signed(100 * estimate.value, digits)} points"
    return f"{text} {span(estimate.low, estimate.high, digits)}".rstrip()


def rate(estimate: Estimate) -> str:
    """Returns a rate as percent with its interval."""
    if not is_known(estimate.value):
        return share(estimate.value)
    ends = [100 * end for end in (estimate.low, estimate.high)]
    if not all(map(is_known, ends)):
        return share(estimate.value)
    return f"{share(estimate.value)} [{ends[0]:.1f}, {ends[1]:.1f}]"


# ---- one latent ----------------------------------------------------------------------


@dataclass(frozen=True)
class LatentChanges:
    """Holds what steering one latent changes.

    Args:
      changes: set of prompts -> change of the rate, the effects' first.
      nats: cost on ordinary text, nats per token; NaN where it was not measured.
    """

    latent: LatentName
    method: str
    direction: Direction
    changes: Mapping[str, Estimate]
    nats: float = float("nan")


def latent_sentence(latent: LatentChanges, behaviour: str) -> str:
    """Returns what one latent changes on the study's prompts and on others, and whether
    that is particular to the study's.
    """
    effect = latent.changes[EFFECTS]
    who = f"Latent {latent.latent} ({method_name(latent.method)}), steered "
    who += f"{latent.direction}, "
    if not effect.is_clear:
        return (
            f"{who}has no effect on the rate of {behaviour} that can be told from 0: "
            f"{points(effect)}. Nothing can be said about how specific it is."
        )
    verb = "lowers" if effect.value < 0 else "raises"
    parts: list[str] = []
    reach: dict[Reach, list[str]] = {"as well": [], "less": [], "unknown": []}
    for name, change in latent.changes.items():
        if name != EFFECTS:
            parts.append(f"by {points(change)} on {set_name(name)}")
            reach[reach_of(effect, change)].append(set_name(name))
    text = f"{who}{verb} the rate of {behaviour} by {_size(effect)} points "
    text += f"{span(effect.low, effect.high)}".rstrip()
    if parts:
        text += f", and changes it {listed(parts)}"
    if is_known(latent.nats):
        text += f"; ordinary text costs {signed(latent.nats, 3)} nats per token more"
    return f"{text}. {_verdict(reach)}".rstrip()


def reach_of(effect: Estimate, change: Estimate) -> Reach:
    """Returns how far an effect that can be told from 0 reaches other prompts.

    "as well": the change there can be told from 0, and is at least half the effect;
    "less": it is less than half, and its interval does not hold the whole effect.
    """
    ratios = [part / effect.value for part in (change.value, change.low, change.high)]
    if not all(map(is_known, ratios)):
        return "unknown"
    if change.is_clear and ratios[0] >= AS_MUCH:
        return "as well"
    return "less" if ratios[0] < AS_MUCH and max(ratios) < 1 else "unknown"


def _size(change: Estimate) -> str:
    return f"{100 * abs(change.value):.1f}"


def _verdict(reach: Mapping[Reach, Sequence[str]]) -> str:
    """Returns whether an effect is particular to the study's prompts."""
    sentences = []
    if reach["as well"]:
        sentences.append(
            f"It moves {listed(reach['as well'])} as well: it is not about the "
            "behaviour alone."
        )
    if reach["less"]:
        sentences.append(
            f"It moves {listed(reach['less'])} by less than half of that, or not at all."
        )
    if reach["unknown"]:
        sentences.append(
            f"Whether it moves {listed(reach['unknown'])} cannot be told from so few "
            "prompts."
        )
    return " ".join(sentences)


# ---- methods -------------------------------------------------------------------------


def means_sentence(
    method: str,
    direction: Direction,
    means: Sequence[SetMean],
    nats: Estimate | None = None,
) -> str:
    """Returns what a method's latents change on average, set by set; "" where they were
    not measured.

    Args:
      means: of all methods and directions.
      nats: mean cost of the method's latents on ordinary text.
    """
    mine = {}
    for mean in means:
        if (mean.method, mean.direction) == (method, direction):
            mine[mean.name] = mean
    if EFFECTS not in mine or not mine[EFFECTS].latents:
        return ""
    effect = mine.pop(EFFECTS)
    parts = []
    for name, mean in mine.items():
        part = f"{points(mean.change)} on {set_name(name)}"
        if is_known(mean.ratio.value):
            part += f" ({share(mean.ratio.value, 0)} of it)"
        parts.append(part)
    what = "random latents" if method == RANDOM else f"best of {method_name(method)}"
    text = f"Steered {direction}, the {effect.latents} {what} change the rate by "
    text += points(effect.change)
    if parts:
        text += f" on {set_name(EFFECTS)}, {listed(parts)}"
    if nats is not None and is_known(nats.value):
        text += f", and cost {signed(nats.value, 3)} nats per token of ordinary text"
    return f"{text}."


def control_sentence(control: DirectionsControl) -> str:
    """Returns whether random latents do what any direction does."""
    if not control.directions or not control.latents:
        return ""
    text = (
        f"Steering {control.direction}, {control.directions} Gaussian directions at "
        f"strength {abs(control.strength):.2g} change the rate by "
        f"{points(control.of_directions)}, {control.latents} random latents by "
        f"{points(control.of_latents)} (means, 5th to 95th percentile of single ones; "
        f"p {p_value(control.p)}): "
    )
    if not is_known(control.p) or control.p >= 0.05:
        return text + "random latents cannot be told from any direction."
    return text + "random latents are not like any direction."


# ---- exact and sampled ---------------------------------------------------------------


def agreement_sentence(agreement: SampledAgreement) -> str:
    """Returns how exact and sampled changes agree."""
    if not agreement.latents:
        return (
            f"Steering {agreement.direction}, no latent has both an exact and a "
            "sampled change: the answers could not be graded."
        )
    a = agreement
    correlations = (
        f"Pearson {_coefficient(a.pearson)}, Spearman {_coefficient(a.spearman)}"
    )
    text = (
        f"Steering {a.direction}, exact and sampled changes of {a.latents} latents "
        f"agree with {correlations}, and have the same sign in {rate(a.same_sign)} of "
        f"them. They differ by {_size(a.difference)} points on average "
        f"{_unsigned_span(a.difference)}"
    )
    noise = (
        f"sampling alone would make it {100 * a.noise:.1f} (binomial standard error "
        f"{100 * a.standard_error:.1f})"
    )
    if is_known(a.attainable):
        noise += f", and leave a Pearson correlation of {signed(a.attainable, 2)}"
    return f"{text.rstrip()}; {noise}."


def _coefficient(estimate: Estimate) -> str:
    text = f"{signed(estimate.value, 2)}"
    return f"{text} {span(estimate.low, estimate.high, 2, 1.0)}".rstrip()


def _unsigned_span(estimate: Estimate) -> str:
    if not (is_known(estimate.low) and is_known(estimate.high)):
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


# ---- without steering ----------------------------------------------------------------


def rates_sentence(rates: Sequence[TopicRate], behaviour: str) -> str:
    """Returns the rates without steering on the study's prompts and on each probe, and
    on which probes the model does as it does on the study's; "" where none was measured.
    """
    wholes = []
    for of_topic in rates:
        is_probe = of_topic.name not in _OWN_SETS
        if of_topic.topic == "" and (is_probe or of_topic.name == EFFECTS):
            wholes.append(of_topic)
    parts = [f"{rate(whole.rate)} on {set_name(whole.name)}" for whole in wholes]
    if not parts:
        return ""
    text = f"Without steering the rate of {behaviour} is {listed(parts)}."
    alike = _alike(wholes)
    if alike:
        text += f" On {listed(alike)} it cannot be told from that on the study's."
    return text


def _alike(wholes: Sequence[TopicRate]) -> list[str]:
    """Returns the sets whose rate is that of the study's prompts, as far as intervals
    tell.
    """
    effects = [whole.rate for whole in wholes if whole.name == EFFECTS]
    if not effects:
        return []
    names = []
    for whole in wholes:
        apart = whole.rate.low > effects[0].high or whole.rate.high < effects[0].low
        has_intervals = is_known(whole.rate.low) and is_known(effects[0].low)
        if whole.name != EFFECTS and has_intervals and not apart:
            names.append(set_name(whole.name))
    return names


def generalisation_sentence(
    trained: TopicRate, beside: TopicRate, behaviour: str
) -> str:
    """Returns whether a fine-tune raises the behaviour beside the topics it was on.

    Args:
      trained: the trained topics together; beside: the others together.
    """
    text = (
        f"The fine-tune changes the rate of {behaviour} by {points(trained.difference)} "
        f"on the topics that it was trained on ({rate(trained.other)} before), and by "
        f"{points(beside.difference)} on the others ({rate(beside.other)} before): "
    )
    if beside.difference.low > 0:
        return text + "it generalises."
    if trained.difference.low > 0:
        return text + (
            "it does not generalise. What follows is about a model that has the "
            "behaviour on those topics alone."
        )
    return text + "it does not raise the behaviour even where it was trained."
