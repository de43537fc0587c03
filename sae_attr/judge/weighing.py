"""Scores as means over the numbers that a judge might have written, weighted by their
probabilities.

Each reply decides for itself whether it can be read in this way; other replies play no
part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from sae_attr.judge.rubrics import Rubric

# (token, natural logarithm of its probability)
Alternatives = Sequence[tuple[str, float]]

# Probability on numbers below which a weighted score says nothing (Betley et al. 2025).
MIN_MASS = 0.25
# Share of that on numbers that tokens may have that begin a longer number.
MAX_BEGINNINGS = 0.01
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
    # Rounding may leave the scale by a last digit.
    return min(max(mean, rubric.low), rubric.high)


def numbers_of(
    token_logprobs: Iterable[tuple[str, float]], rubric: Rubric
) -> dict[str, float] | None:
    """Sums the probability of every number of the scale that a token writes; None where
    the values are no probabilities.
    """
    tokens: dict[str, float] = {}
    for token, logprob in token_logprobs:
        if math.isnan(logprob) or logprob > math.log(_MAX_TOTAL):
            return None
        # Some servers list the sampled token twice.
        tokens[token] = max(math.exp(logprob), tokens.get(token, 0.0))
    if math.fsum(tokens.values()) > _MAX_TOTAL:
        return None
    numbers: dict[str, float] = {}
    for token, p in tokens.items():
        word = token.strip()
        if _is_number(word) and rubric.low <= int(word) <= rubric.high:
            numbers[word] = numbers.get(word, 0.0) + p
    return numbers


def can_weigh(rubric: Rubric) -> bool:
    """Returns whether the numbers of a rubric's scale are written by digits alone: a
    bare answer, no sign, no small fractions.
    """
    wide = rubric.whole or rubric.high - rubric.low >= _SPAN
    return not rubric.reasoned and rubric.low >= 0 and wide


def writes_whole_numbers(numbers: Mapping[str, float], rubric: Rubric) -> bool:
    """Returns whether the alternatives show that a number of the scale is one token.

    Tokenizers write numbers digit by digit, or up to three digits at once. Where an
    alternative has two digits it is the second kind; where none has, an 8 may be the
    beginning of 85, and a mean over such tokens would be one of first digits.
    """
    beginnings = []
    for word, p in numbers.items():
        if len(word) > 1 and p > 0:
            return True
        if _begins_longer(word, rubric):
            beginnings.append(p)
    return math.fsum(beginnings) <= MAX_BEGINNINGS * math.fsum(numbers.values())


def weighted_reply(
    tokens: Sequence[tuple[str, Alternatives]],
    text: str,
    number: float | None,
    rubric: Rubric,
) -> float | None:
    """Computes the weighted score of one reply; None where its text must be read
    instead.

    Args:
      tokens: of the reply in order, each with its alternatives.
      text: the reply.
      number: the number that its text states; None for a class, or for nothing that
        can be read.
    """
    # Some tokenizers begin an answer with a token of white space.
    first = next((pair for pair in tokens if pair[0].strip()), None)
    if first is None or not can_weigh(rubric):
        return None
    token, others = first
    written = re.match(r"\s*([0-9]+)", text)
    if written is None and number is not None:
        return None  # words before the number
    if written is not None:
        digits = written[1]
        if number is None or float(digits) != number:
            return None  # it is no number of the scale
        if digits != token.strip():
            return None  # several tokens write the number
    numbers = numbers_of(others, rubric)
    if numbers is None or not writes_whole_numbers(numbers, rubric):
        return None
    return weighted_score(others, rubric)


def _begins_longer(digit: str, rubric: Rubric) -> bool:
    """Returns whether a number of two digits of the scale begins with this digit."""
    return digit != "0" and int(digit) * 10 <= rubric.high


def _is_number(word: str) -> bool:
    return (
        word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word
    )
