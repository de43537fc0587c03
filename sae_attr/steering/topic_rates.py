"""Rates of the behaviour without steering, by set of prompts and topic, of one model or
two: what there is to steer, and how far a fine-tune reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.comparison_records import Estimate, TopicRate
from sae_attr.steering.groups import group_numbers
from sae_attr.steering.paired import (
    DEFAULT,
    EffectSettings,
)
from sae_attr.steering.specificity import mean_rate

EVERYTHING = ""  # the name of all sets together, and of all topics together


@dataclass(frozen=True, eq=False)
class SetRates:
    """Rates without steering on one set of prompts.

    Args:
      name: of the set.
      topics: of its prompts; "" where one has none.
      groups: names of its prompts' groups.
      rate_p: of the model with the behaviour; NaN where it is not known.
      other_p: of the model without it; None where there is one model.
    """

    name: str
    topics: Sequence[str]
    groups: Sequence[str]
    rate_p: np.ndarray
    other_p: np.ndarray | None = None

    def at(self, where_p: np.ndarray) -> SetRates:
        """Returns the same for some of the prompts, bool `[p]`."""
        places = [place for place, is_in in enumerate(where_p) if is_in]
        other_p = None if self.other_p is None else self.other_p[places]
        return SetRates(
            self.name,
            [self.topics[place] for place in places],
            [self.groups[place] for place in places],
            self.rate_p[places],
            other_p,
        )


def topic_rates(
    sets: Sequence[SetRates],
    trained: Sequence[str] = (),
    *,
    settings: EffectSettings = DEFAULT,
) -> tuple[TopicRate, ...]:
    """Returns the rates of every set, as a whole and by topic, trained topics first.

    Args:
      trained: topics that the fine-tune of the model with the behaviour was on.
    """
    rates = []
    for of_set in sets:
        rates.append(_rate(of_set, EVERYTHING, False, settings))
        topics = np.array(of_set.topics)
        for topic in sorted(set(of_set.topics) - {""}):
            of_topic = of_set.at(topics == topic)
            rates.append(_rate(of_topic, topic, topic in trained, settings))
    # Stable: within either kind the order stays.
    return tuple(sorted(rates, key=lambda rate: _place(rate, sets)))


def _place(rate: TopicRate, sets: Sequence[SetRates]) -> tuple[int, int]:
    """Returns where a rate stands: by set, the whole, then trained topics, then others."""
    names = [of_set.name for of_set in sets]
    within = 0
    if rate.topic != EVERYTHING:
        within = 1 if rate.trained else 2
    return names.index(rate.name), within


def generalisation(
    sets: Sequence[SetRates],
    trained: Sequence[str],
    *,
    settings: EffectSettings = DEFAULT,
) -> tuple[TopicRate, TopicRate] | None:
    """Returns the rates of all sets together on the trained topics, and on the others;
    None where there is one model, or either kind of topic has no prompt.

    A prompt without a topic is in neither.
    """
    joined = _joined(sets)
    topics = np.array(joined.topics)
    on_p = np.isin(topics, [*trained])
    beside_p = ~on_p & (topics != "")
    if joined.other_p is None or not on_p.any() or not beside_p.any():
        return None
    on = joined.at(on_p)
    beside = joined.at(beside_p)
    return (
        _rate(on, EVERYTHING, True, settings),
        _rate(beside, EVERYTHING, False, settings),
    )


def _joined(sets: Sequence[SetRates]) -> SetRates:
    """Returns the prompts of several sets as one set."""
    topics: list[str] = []
    groups: list[str] = []
    for of_set in sets:
        topics += of_set.topics
        groups += of_set.groups
    others = [of_set.other_p for of_set in sets if of_set.other_p is not None]
    return SetRates(
        EVERYTHING,
        topics,
        groups,
        np.concatenate([of_set.rate_p for of_set in sets]),
        np.concatenate(others) if len(others) == len(sets) else None,
    )


def _rate(
    of_set: SetRates, topic: str, is_trained: bool, settings: EffectSettings
) -> TopicRate:
    """Returns the rates of a set's prompts as one record."""
    group_p = group_numbers(of_set.groups)
    other = difference = Estimate()
    if of_set.other_p is not None:
        other = mean_rate(of_set.other_p, group_p, settings=settings)
        difference = mean_rate(
            of_set.rate_p - of_set.other_p, group_p, settings=settings
        )
    return TopicRate(
        name=of_set.name,
        topic=topic,
        trained=is_trained,
        prompts=len(of_set.rate_p),
        rate=mean_rate(of_set.rate_p, group_p, settings=settings),
        other=other,
        difference=difference,
    )
