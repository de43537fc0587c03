"""Scores as means over the numbers that a judge might have written, weighted by their
probabilities.

Each reply decides for itself whether it can be read so; what other replies look like
plays no part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from sae_attr.judge.rubrics import Rubric

Alternatives = Sequence[
    tuple[str, float]
]  # (token, natural logarithm of its probability)

MIN_MASS = 0.25  # probability on numbers below which a weighted score says nothing (Betley et al. 2025)
MAX_BEGINNINGS = 0.01  # probability, of that on numbers, on tokens that may be the first digits of a longer number
_MAX_TOTAL = 1.01  # probabilities that sum to more are none
_SPAN = 10  # a scale with fractions that is narrower is written with fractions: 0.85


def weighted_score(
    token_logprobs: Iterable[tuple[str, float]],
    rubric: Rubric,
    *,
    min_mass: float = MIN_MASS,
) -> float | None:
    """Returns the mean of the numbers of the scale, weighted by the probabilities of
    the tokens that write them.

    Spellings of one number (" 85", "85") count together; tokens that are no whole
    number of the scale are left out, and the rest is scaled to sum to 1 (Betley et al.
    2025).

    Args:
      token_logprobs: (token, natural logarithm of its probability).
      min_mass: probability that must lie on numbers.

    Returns:
      a number on the scale, or None where too little probability lies on numbers (a
      refusal, code, other text) or the values are no logarithms of probabilities (NaN,
      above 0).
    """
    numbers = numbers_of(token_logprobs, rubric)
    if numbers is None:
        return None
    mass = math.fsum(numbers.values())
    if not numbers or mass < min_mass or not mass:
        return None
    mean = math.fsum(int(word) * p for word, p in numbers.items()) / mass
    return min(
        max(mean, rubric.low), rubric.high
    )  # rounding may leave the scale by a last digit


def numbers_of(
    token_logprobs: Iterable[tuple[str, float]], rubric: Rubric
) -> dict[str, float] | None:
    """Probability of every number of the scale that a token writes; None where the
    values are no probabilities.
    """
    tokens: dict[str, float] = {}
    for token, logprob in token_logprobs:
        if math.isnan(logprob) or logprob > math.log(_MAX_TOTAL):
            return None
        tokens[token] = max(
            math.exp(logprob), tokens.get(token, 0.0)
        )  # some servers list the sampled token twice
    if math.fsum(tokens.values()) > _MAX_TOTAL:
        return None
    numbers: dict[str, float] = {}
    for token, p in tokens.items():
        word = token.strip()
        if _is_number(word) and rubric.low <= int(word) <= rubric.high:
            numbers[word] = numbers.get(word, 0.0) + p
    return numbers


def can_weigh(rubric: Rubric) -> bool:
    """Whether the numbers of a rubric's scale are written by digits alone: a bare
    answer, no sign, no small fractions.
    """
    wide = rubric.whole or rubric.high - rubric.low >= _SPAN
    return not rubric.reasoned and rubric.low >= 0 and wide


def writes_whole_numbers(numbers: Mapping[str, float], rubric: Rubric) -> bool:
    """Returns whether the alternatives show that a number of the scale is one token.

    Tokenizers write numbers digit by digit, or up to three digits at once. Where an
    alternative has two digits it is the second kind; where none has, an 8 may be the
    beginning of 85, and a mean over such tokens would be one of first digits.
    """
    if any(len(word) > 1 and p > 0 for word, p in numbers.items()):
        return True
    beginnings = math.fsum(
        p for word, p in numbers.items() if _begins_longer(word, rubric)
    )
    return beginnings <= MAX_BEGINNINGS * math.fsum(numbers.values())


def weighted_reply(
    tokens: Sequence[tuple[str, Alternatives]],
    text: str,
    number: float | None,
    rubric: Rubric,
) -> float | None:
    """The weighted score of one reply, or None where its text must be read instead.

    Args:
      tokens: of the reply in order, each with its alternatives.
      text: the reply.
      number: what its text states; None for a class, or for nothing that can be read.
    """
    first = next(((token, others) for token, others in tokens if token.strip()), None)
    if first is None or not can_weigh(rubric):
        return None
    token, others = first
    written = re.match(r"\s*([0-9]+)", text)
    if written is not None and (
        number is None or written[1] != token.strip() or float(written[1]) != number
    ):
        return None  # several tokens write the number, or it is no number of the scale
    if written is None and number is not None:
        return None  # words stand before the number
    numbers = numbers_of(others, rubric)
    if numbers is None or not writes_whole_numbers(numbers, rubric):
        return None
    return weighted_score(others, rubric)


def _begins_longer(digit: str, rubric: Rubric) -> bool:
    """Whether a number of two digits that stands on the scale begins with this digit."""
    return digit != "0" and int(digit) * 10 <= rubric.high


def _is_number(word: str) -> bool:
    return (
        word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word
    )
