"""Replies of judges read strictly: a reply says one thing in a known form, or it is
malformed; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sae_attr.judge.base import Grade
from sae_attr.judge.rubrics import Rubric

VERSION = 2  # raised when a reply is read otherwise than before; part of every judge's identity
LONGEST = 1_000_000  # characters; a longer reply is malformed

_TAG = re.compile(r"<(/?)(think|thinking|reasoning|thought)>", re.IGNORECASE)
# Every repeated part below is followed by what it cannot match itself: no reply takes
#   more than linear time.
# No quote or brace before the word: that would be a line of JSON, which may be cut
#   short within the number.
_ANSWER = re.compile(
    r"[^\w{\"]*(?:final\s+)?(?:answer|score|rating|grade)\b", re.IGNORECASE
)
_PREFIX = re.compile(
    r"^\W*(?:the\s+|my\s+)?(?:final\s+)?(?:answer|score|rating|grade)\s+(?:is|of)\s+",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[a-z]*", re.IGNORECASE)
_NUMBER = re.compile(
    r"([+-]?)([0-9]+)(\.[0-9]+)?\s*(?:(?:/|out\s+of)\s*([0-9]+)|(%))?", re.IGNORECASE
)
# No words behind a full stop: "1. First" begins a list.
_REMARK = re.compile(r"\.?\s*(?:[-–—:;,(][^0-9]*)?", re.DOTALL)
_KEPT = 100_000  # characters of a reply that are stored
_DIGITS = 9  # a number of more digits stands on no scale
_KEYS = ("answer", "score", "rating", "grade", "label", "flag")
_ORNAMENT = " \t\r\n*_`'\"[]<>{}#"


def read_reply(text: str, rubric: Rubric, **fields: Any) -> Grade:
    """The grade that a reply states; malformed where it states none, or none that the
    rubric knows.

    Read are, in this order and after what stands in thinking tags: JSON alone with one
    of the keys answer, score, rating, grade, label, flag; the last line "ANSWER: x" (or
    score, rating, grade); JSON in a fence; a first or last line that is a number or
    class alone. A number may come as 80/100 or "4 out of 5" where that is the rubric's
    scale; it is never rounded or clipped. One that looks like a share of 1 (0.85)
    stands on no scale that goes to 10 or further. A remark may follow it if it holds no
    other number or class.

    Args:
      text: the reply as it came; kept in `Grade.raw`.
      fields: further fields of the grade.
    """
    body = without_thoughts(text) if len(text) <= LONGEST else None
    stated = None if body is None else _stated(body, rubric)
    raw = kept(text)
    if stated is None:
        return rubric.malformed(raw=raw, **fields)
    if isinstance(stated, str):
        return rubric.excluded(stated, raw=raw, **fields)
    return rubric.scored(stated, raw=raw, **fields)


def kept(text: str) -> str:
    """A reply as it is stored: whole, or its beginning and end where it is very long."""
    if len(text) <= _KEPT:
        return text
    half = _KEPT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def without_thoughts(text: str) -> str | None:
    """The reply after its thinking blocks; None where thinking does not end (a reply
    cut short).
    """
    parts, start, inside = [], 0, ""
    for tag in _TAG.finditer(text):
        ends, name = bool(tag[1]), tag[2].lower()
        if inside and not (ends and name == inside):
            continue
        if ends and not inside:
            parts = []  # a template may have opened the block in the prompt
        elif not ends:
            parts.append(text[start : tag.start()])
        inside, start = ("", tag.end()) if ends else (name, tag.end())
    return None if inside else "".join([*parts, text[start:]])


def _stated(body: str, rubric: Rubric) -> float | str | None:
    """The score or the class that a reply states in the first known form that it has."""
    outside, fenced = _fences(body)
    for part in (body.strip(), None, *fenced[-1:]):
        if part is None:
            if answers := _answers(outside):
                return _value(answers[-1], rubric)
        elif (tree := _json_object(part)) is not None:
            return _of_json(tree, rubric)
    if answers := _answers(body):
        return _value(answers[-1], rubric)
    lines = [
        _PREFIX.sub("", line) for line in body.splitlines() if line.strip(_ORNAMENT)
    ]
    ends = {
        _value(line, rubric, remark=len(lines) == 1)
        for line in (lines[:1] + lines[-1:])
    } - {None}
    return ends.pop() if len(ends) == 1 else None


def _fences(text: str) -> tuple[str, list[str]]:
    """What stands outside of fences (```), and what stands in each; a fence that does
    not end is no fence.
    """
    outside: list[str] = []
    fenced: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines(keepends=True):
        if inside is None and _FENCE.fullmatch(line.strip()):
            inside = []
        elif inside is None:
            outside.append(line)
        elif "```" in line:
            before, _, after = line.partition("```")
            fenced.append("".join([*inside, before]))
            outside.append(after)
            inside = None
        else:
            inside.append(line)
    return "".join([*outside, *(inside or ())]), fenced


def _answers(text: str) -> list[str]:
    """What stands behind "ANSWER:" in the lines that begin so."""
    found = (_behind_colon(line) for line in text.splitlines())
    return [answer for answer in found if answer is not None]


def _behind_colon(line: str) -> str | None:
    """What follows "answer:", "Final score is =" and the like; None for another line."""
    word = _ANSWER.match(line)
    if word is None:
        return None
    rest = line[word.end() :]
    colon = min(
        (place for place in (rest.find(":"), rest.find("=")) if place >= 0), default=-1
    )
    if colon < 0:
        return None
    between = _without_is(rest[:colon])
    plain = not any(c.isalnum() or c == "_" for c in between)
    return rest[colon + 1 :] if plain else None


def _without_is(text: str) -> str:
    """Text without an "is" at its end, as in "Answer is: 4"."""
    words = text.rstrip()
    ends = words[-2:].lower() == "is" and words[-3:-2].isspace()
    return words[:-2] if ends else words


def _value(text: str, rubric: Rubric, *, remark: bool = True) -> float | str | None:
    """A number or a class at the start of a line, followed by nothing, or by a remark
    without numbers and classes.

    Args:
      remark: whether a number may have one; a line among others may be the first of a
        list.
    """
    text = text.strip(_ORNAMENT)
    if match := _NUMBER.match(text):
        number = _number(match, rubric)
        rest = text[match.end() :].rstrip(".")
        fits = number is not None and _is_remark(rest, rubric) and (remark or not rest)
        return number if fits else None
    words = sorted(
        (w for n, label in rubric.labels.items() for w in (n, *label.also)),
        key=len,
        reverse=True,
    )
    for word in words:
        if text[: len(word)].upper() == word.upper() and _is_remark(
            text[len(word) :], rubric
        ):
            return rubric.label_of(word)
    return None


def _number(match: re.Match[str], rubric: Rubric) -> float | None:
    """The number of a match of `_NUMBER`; None where it does not stand on the scale, or
    is written as on another.
    """
    sign, whole, fraction, scale, percent = match.groups()
    if (
        len(whole) > _DIGITS
        or len(scale or "") > _DIGITS
        or (len(whole) > 1 and whole[0] == "0")
    ):
        return None
    number = float(f"{sign}{whole}{fraction or ''}") + 0.0  # + 0.0: no negative zero
    if scale and float(scale) != rubric.high:
        return None
    if percent and rubric.high != 100:
        return None
    share_of_one = (
        bool(fraction) and 0 < number <= 1 and rubric.high >= 10 and not scale
    )
    return number if rubric.holds(number) and not share_of_one else None


def _is_remark(text: str, rubric: Rubric) -> bool:
    """Whether what follows a value is nothing, or set off by a sign and free of numbers
    and of classes.
    """
    text = text.strip(_ORNAMENT)
    spellings = (w for n, label in rubric.labels.items() for w in (n, *label.also))
    return bool(_REMARK.fullmatch(text)) and not any(
        re.search(rf"\b{re.escape(w)}\b", text) for w in spellings
    )


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):  # nested brackets without end
        return None
    return tree if isinstance(tree, dict) else None


def _of_json(tree: dict[str, Any], rubric: Rubric) -> float | str | None:
    """The value that all known keys agree on; null and "NONE" say nothing."""
    values = [
        value
        for key, value in tree.items()
        if key.lower() in _KEYS and not _says_nothing(value)
    ]
    read = {
        None if isinstance(value, bool | dict | list) else _value(str(value), rubric)
        for value in values
    }
    return read.pop() if len(read) == 1 else None


def _says_nothing(value: Any) -> bool:
    return value is None or (
        isinstance(value, str) and value.strip().upper() in ("NONE", "NULL", "")
    )
