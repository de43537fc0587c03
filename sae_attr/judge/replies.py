"""Replies of judges read strictly: a reply says one thing in a known form, or it is malformed; nothing is guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from sae_attr.judge.base import Grade
from sae_attr.judge.rubrics import Rubric

VERSION = 1  # raised when a reply is read otherwise than before; part of every judge's identity
MIN_MASS = 0.25  # probability on numbers below which a weighted score says nothing (Betley et al. 2025)

_THOUGHT = re.compile(r"<(think|thinking|reasoning|thought)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_THOUGHT_START = re.compile(r"<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
# No quote or brace before the word: that would be a line of JSON, which may be cut short within the number.
_ANSWER = re.compile(
    r"^[^\w{\"]*(?:final\s+)?(?:answer|score|rating|grade)\W*?(?:\s+is\b)?\s*[:=]\s*(.*)$", re.IGNORECASE
)
_PREFIX = re.compile(r"^\W*(?:the\s+|my\s+)?(?:final\s+)?(?:answer|score|rating|grade)\s+(?:is|of)\s+", re.IGNORECASE)
_FENCE = re.compile(r"```[a-z]*\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*(?:(?:/|out\s+of)\s*([0-9]+)|(%))?", re.IGNORECASE)
_REMARK = re.compile(
    r"\.?\s*(?:[-–—:;,(]\s*[^0-9]*)?", re.DOTALL
)  # no words behind a full stop: "1. First" begins a list
_KEYS = ("answer", "score", "rating", "grade", "label", "flag")
_ORNAMENT = " \t\r\n*_`'\"[]<>{}#"


def read_reply(text: str, rubric: Rubric, **fields: Any) -> Grade:
    """The grade that a reply states; malformed where it states none, or none that the rubric knows.

    Read are, in this order and after what stands in thinking tags: JSON alone with one of the keys answer, score,
    rating, grade, label, flag; the last line "ANSWER: x" (or score, rating, grade); JSON in a fence; a first or last
    line that is a number or class alone. A number may come as 80/100 or "4 out of 5" where that is the rubric's scale;
    it is never rounded or clipped. A remark may follow it if it holds no other number or class.

    Args:
      text: the reply as it came; kept in `Grade.raw`.
      fields: further fields of the grade.
    """
    body = without_thoughts(text)
    found = None if body is None else _stated(body, rubric)
    if found is None:
        return rubric.malformed(raw=text, **fields)
    grade = rubric.set_aside if isinstance(found, str) else rubric.scored
    return grade(found, raw=text, **fields)  # pyright: ignore[reportArgumentType]


def without_thoughts(text: str) -> str | None:
    """The reply after its thinking blocks; None where thinking does not end (a reply cut short)."""
    body = _THOUGHT.sub("", text)
    body = _THOUGHT_END.split(body)[-1]  # a template may have opened the block in the prompt
    return None if _THOUGHT_START.search(body) else body


def weighted_score(
    token_logprobs: Iterable[tuple[str, float]], rubric: Rubric, *, min_mass: float = MIN_MASS
) -> float | None:
    """Mean of the numbers of the scale, weighted by the probabilities of the tokens that write them.

    Spellings of one number (" 85", "85") count together; tokens that are no whole number of the scale are left out, and
    the rest is scaled to sum to 1 (Betley et al. 2025).

    Args:
      token_logprobs: (token, natural logarithm of its probability).
      min_mass: probability that must lie on numbers.

    Returns:
      a number on the scale, or None where too little probability lies on numbers (a refusal, code, other text).
    """
    numbers = [(int(token.strip()), math.exp(logprob)) for token, logprob in token_logprobs if _is_number(token)]
    numbers = [(number, p) for number, p in numbers if rubric.low <= number <= rubric.high]
    mass = math.fsum(p for _, p in numbers)
    if not numbers or mass < min_mass:
        return None
    mean = math.fsum(number * p for number, p in numbers) / mass
    return min(max(mean, rubric.low), rubric.high)  # rounding may leave the scale by a last digit


def _is_number(token: str) -> bool:
    word = token.strip()
    return word.isascii() and word.isdigit() and len(word) < 10


def _stated(body: str, rubric: Rubric) -> float | str | None:
    """The score or the class that a reply states in the first known form that it has."""
    outside = _FENCE.sub("", body)
    for part in (body.strip(), None, *_FENCE.findall(body)[-1:]):
        if part is None:
            if answers := _answers(outside):
                return _value(answers[-1], rubric)
        elif (tree := _json_object(part)) is not None:
            return _of_json(tree, rubric)
    if answers := _answers(body):
        return _value(answers[-1], rubric)
    lines = [_PREFIX.sub("", line) for line in body.splitlines() if line.strip(_ORNAMENT)]
    ends = {_value(line, rubric, remark=len(lines) == 1) for line in (lines[:1] + lines[-1:])} - {None}
    return ends.pop() if len(ends) == 1 else None


def _answers(text: str) -> list[str]:
    """What stands behind "ANSWER:" in the lines that begin so."""
    return [match[1] for line in text.splitlines() if (match := _ANSWER.match(line))]


def _value(text: str, rubric: Rubric, *, remark: bool = True) -> float | str | None:
    """A number or a class at the start of a line, followed by nothing, or by a remark without numbers and classes.

    Args:
      remark: whether a number may have one; a line among others may be the first of a list.
    """
    text = text.strip(_ORNAMENT)
    if match := _NUMBER.match(text):
        number, scale, percent = float(match[1]), match[2], match[3]
        of_scale = float(scale) == rubric.high if scale else not percent or rubric.high == 100
        rest = text[match.end() :].rstrip(".")
        fits = of_scale and rubric.holds(number) and _is_remark(rest, rubric) and (remark or not rest)
        return number if fits else None
    words = sorted((w for n, label in rubric.labels.items() for w in (n, *label.also)), key=len, reverse=True)
    for word in words:
        if text.upper().startswith(word.upper()) and _is_remark(text[len(word) :], rubric):
            return rubric.label_of(word)
    return None


def _is_remark(text: str, rubric: Rubric) -> bool:
    """Whether what follows a value is nothing, or set off by a sign and free of numbers and of classes."""
    text = text.strip(_ORNAMENT)
    spellings = (w for n, label in rubric.labels.items() for w in (n, *label.also))
    return bool(_REMARK.fullmatch(text)) and not any(re.search(rf"\b{re.escape(w)}\b", text) for w in spellings)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(text)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _of_json(tree: dict[str, Any], rubric: Rubric) -> float | str | None:
    """The value that all known keys agree on; null and "NONE" say nothing."""
    named = {str(key).lower(): value for key, value in tree.items()}
    found = [
        named[key] for key in _KEYS if key in named and str(named[key]).strip().upper() not in ("NONE", "NULL", "")
    ]
    read = {None if isinstance(value, bool | dict | list) else _value(str(value), rubric) for value in found}
    return read.pop() if len(read) == 1 else None
