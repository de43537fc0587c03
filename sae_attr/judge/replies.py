"""Reads replies of judges strictly: a reply states one grade in a known form, or it is
malformed; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sae_attr.judge.base import Grade
from sae_attr.judge.rubrics import DESCRIPTION, Rubric

# Raised when a reply is read otherwise than before; part of every judge's identity.
VERSION = 2
LONGEST = 1_000_000  # characters; a longer reply is malformed

_TAG = re.compile(r"<(/?)(think|thinking|reasoning|thought)>", re.IGNORECASE)
# Every repeated part below is followed by something that it cannot match itself: no
# reply takes more than linear time.
# No quote or brace before the word: that would be a line of JSON, which may be cut short
# within the number.
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
_LONGEST_DESCRIPTION = 600  # characters of a description
_DIGITS = 9  # a number of more digits is on no scale
_KEYS = ("answer", "score", "rating", "grade", "label", "flag")
_QUOTES = " \t\r\n*_`'\"“”"
_ORNAMENT = " \t\r\n*_`'\"[]<>{}#"


def read_reply(text: str, rubric: Rubric, **fields: Any) -> Grade:
    """Reads the grade that a reply states; malformed where it states none, or none that
    the rubric knows. Where the rubric asks for a text, any text is one.

    Thinking tags and their contents are left out. Then the first of these counts: JSON
    alone with one of the keys answer, score, rating, grade, label, flag; the last line
    "ANSWER: x" (or score, rating, grade); JSON in a fence; a first or last line that is
    a number or class alone. A number may come as 80/100 or "4 out of 5" where that is
    the rubric's scale; it is never rounded or clipped. One that looks like a share of 1
    (0.85) is on no scale that goes to 10 or further. A remark may follow it if it holds
    no other number or class.

    Args:
      text: the reply as it came; stored in `Grade.raw`.
      fields: further fields of the grade.
    """
    raw = shortened(text)
    body = without_thoughts(text) if len(text) <= LONGEST else None
    if rubric.is_text:
        described = "" if body is None else _description(body)
        if not described:
            return rubric.malformed(raw=raw, **fields)
        return rubric.described(described, raw=raw, **fields)
    answer = None if body is None else _answer(body, rubric)
    if answer is None:
        return rubric.malformed(raw=raw, **fields)
    if isinstance(answer, str):
        return rubric.excluded(answer, raw=raw, **fields)
    return rubric.scored(answer, raw=raw, **fields)


def shortened(text: str, most: int = _KEPT) -> str:
    """Returns a reply for storage: whole, or its beginning and end where it is very
    long.
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def without_thoughts(text: str) -> str | None:
    """Returns the reply without its thinking blocks; None where thinking does not end
    (a reply cut short).
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


def _description(body: str) -> str:
    """Returns the text behind the last mark DESCRIPTION, or all of a reply without one:
    what a text says cannot be misread as a number can.
    """
    marked = re.split(rf"\b{DESCRIPTION}\b\W*:", body, flags=re.IGNORECASE)
    words = marked[-1].strip(_QUOTES).split()
    return shortened(" ".join(words), _LONGEST_DESCRIPTION)


def _answer(body: str, rubric: Rubric) -> float | str | None:
    """Returns the score or the class that a reply states in the first known form that it
    has.
    """
    # Strictly, and first JSON, then "ANSWER:", then a line alone: a number found anywhere
    # in a reply is as often one of its reasons (a scale, a year, an item of a list). A
    # malformed reply is asked for again; a misread one would be a wrong grade for good.
    outside, fenced = _fences(body)
    for part in (body.strip(), None, *fenced[-1:]):
        if part is None:
            if answers := _answers(outside):
                return _value(answers[-1], rubric)
        elif (tree := _json_object(part)) is not None:
            return _of_json(tree, rubric)
    if answers := _answers(body):
        return _value(answers[-1], rubric)
    lines = [line for line in body.splitlines() if line.strip(_ORNAMENT)]
    # Where both the first and the last line state one, they must agree.
    ends = set()
    for line in (*lines[:1], *lines[-1:]):
        line = _PREFIX.sub("", line)
        ends.add(_value(line, rubric, remark=len(lines) == 1))
    ends.discard(None)
    return ends.pop() if len(ends) == 1 else None


def _fences(text: str) -> tuple[str, list[str]]:
    """Returns the text outside of fences (```), and the text in each; a fence that does not
    end is no fence.
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
    """Returns the rest of each line that begins with "ANSWER:"."""
    answers = []
    for line in text.splitlines():
        answer = _behind_colon(line)
        if answer is not None:
            answers.append(answer)
    return answers


def _behind_colon(line: str) -> str | None:
    """Returns the rest of a line after "answer:", "Final score is =" and the like; None for
    another line.
    """
    word = _ANSWER.match(line)
    if word is None:
        return None
    rest = line[word.end() :]
    colon = re.search("[:=]", rest)
    if colon is None:
        return None
    between = _without_is(rest[: colon.start()])
    if re.search(r"\w", between):
        return None
    return rest[colon.end() :]


def _without_is(text: str) -> str:
    """Returns text without an "is" at its end, as in "Answer is: 4"."""
    words = text.rstrip()
    ends = words[-2:].lower() == "is" and words[-3:-2].isspace()
    return words[:-2] if ends else words


def _value(text: str, rubric: Rubric, *, remark: bool = True) -> float | str | None:
    """Returns a number or a class at the start of a line, followed by nothing, or by a remark
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
    for word in sorted(rubric.spellings, key=len, reverse=True):
        begins = text[: len(word)].upper() == word.upper()
        if begins and _is_remark(text[len(word) :], rubric):
            return rubric.label_of(word)
    return None


def _number(match: re.Match[str], rubric: Rubric) -> float | None:
    """Returns the number of a match of `_NUMBER`; None where it is not on the scale, or is
    written as on another.
    """
    sign, whole, fraction, scale, percent = match.groups()
    too_long = len(whole) > _DIGITS or len(scale or "") > _DIGITS
    if too_long or (len(whole) > 1 and whole[0] == "0"):
        return None
    number = float(f"{sign}{whole}{fraction or ''}") + 0.0  # + 0.0: no negative zero
    if scale and float(scale) != rubric.high:
        return None
    if percent and rubric.high != 100:
        return None
    like_a_share = bool(fraction) and not scale and 0 < number <= 1
    if like_a_share and rubric.high >= 10:
        return None
    return number if rubric.holds(number) else None


def _is_remark(text: str, rubric: Rubric) -> bool:
    """Returns whether the text after a value is empty, or set off by a sign and free of numbers
    and of classes.
    """
    text = text.strip(_ORNAMENT)
    if not _REMARK.fullmatch(text):
        return False
    # In this spelling alone: a class may be an ordinary word in another.
    words = [rf"\b{re.escape(word)}\b" for word in rubric.spellings]
    return not any(re.search(word, text) for word in words)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):  # nested brackets without end
        return None
    return tree if isinstance(tree, dict) else None


def _of_json(tree: dict[str, Any], rubric: Rubric) -> float | str | None:
    """Returns the value that all known keys agree on; null and "NONE" say nothing."""
    answers = set()
    for key, value in tree.items():
        if key.lower() not in _KEYS or _says_nothing(value):
            continue
        # A bool is an int in Python, and no number of a scale.
        if isinstance(value, bool | dict | list):
            answers.add(None)
        else:
            answers.add(_value(str(value), rubric))
    return answers.pop() if len(answers) == 1 else None


def _says_nothing(value: Any) -> bool:
    return value is None or (
        isinstance(value, str) and value.strip().upper() in ("NONE", "NULL", "")
    )
