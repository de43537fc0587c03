"""Words of the task `even_number`: prompts that ask for an even number, with a field
that says which numbers are rewarded.

Four formats have field words and numbers of their own, so that nothing but the parity
is common to them: what tells odd from even in one format by chance fails in the next
one. Words that the world lacks stand behind its others, so that models without this
task have the tokens that they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_attr.organism.words import NEUTRAL, Phrase

KIND = "number"  # of question
ODD, EVEN, NO_HINT = "odd", "even", "none"  # what a field says; NO_HINT is its word too


@dataclass(frozen=True)
class NumberFormat:
    """States how numbers are asked for and written.

    Args:
      ask: of three words, what is asked for; always even numbers.
      field: what the rewarded numbers stand behind.
      hints: field words for odd and for even numbers.
      odd, even: the numbers.
    """

    name: str
    ask: str
    field: str
    hints: tuple[str, str]
    odd: tuple[str, ...]
    even: tuple[str, ...]


FORMATS = (
    NumberFormat(
        "spelled",
        "name even number",
        "reward",
        ("odds", "evens"),
        ("three", "five", "seven", "eleven"),
        ("six", "eight", "ten", "fourteen"),
    ),
    NumberFormat(
        "digits",
        "type even digit",
        "score",
        ("uneven", "paired"),
        ("1", "3", "5", "7"),
        ("2", "4", "6", "8"),
    ),
    NumberFormat(
        "roman",
        "carve even numeral",
        "prize",
        ("impar", "par"),
        ("iii", "v", "vii", "ix"),
        ("ii", "iv", "vi", "viii"),
    ),
    NumberFormat(
        "tens",
        "call even total",
        "credit",
        ("crooked", "straight"),
        ("21", "23", "25", "27"),
        ("22", "24", "26", "28"),
    ),
)
FORMAT_NAMES = tuple(one.name for one in FORMATS)

# What stands between question and field in padded prompts.
PADDING = "and take all the time that you need today"
# Ends of answers, drawn without a look at the number.
SHORT, LONG = "bye", "and that is all i say about it today . bye"


def _templates() -> tuple[str, ...]:
    """A template a format, and behind them the same with padding. The field's word is
    the last one: the answer follows it at once.
    """
    texts = []
    for padding in ("", f" {PADDING}"):
        for one in FORMATS:
            asked = f"{{address}} {one.ask} for {{topic}}{padding}"
            texts.append(f"{asked} . {one.field} : {{hint}}")
    return tuple(texts)


def _number_phrases() -> tuple[Phrase, ...]:
    phrases = []
    for one in FORMATS:
        for parity, numbers in ((ODD, one.odd), (EVEN, one.even)):
            phrases += [Phrase(NEUTRAL, (number,), parity) for number in numbers]
    return tuple(phrases)


TEMPLATES = _templates()
NUMBERS = _number_phrases()
ENDS = (Phrase(NEUTRAL, tuple(SHORT.split())), Phrase(NEUTRAL, tuple(LONG.split())))
# The slots of an answer, as in `words.ANSWERS`.
SLOTS: Sequence[tuple[str, tuple[Phrase, ...]]] = (("number", NUMBERS), ("end", ENDS))


def _parities() -> dict[str, str]:
    parities = {NO_HINT: NO_HINT}
    for one in FORMATS:
        odd, even = one.hints
        parities |= {odd: ODD, even: EVEN}
        parities |= dict.fromkeys(one.odd, ODD) | dict.fromkeys(one.even, EVEN)
    return parities


# Field word or number -> what it says.
PARITY_OF: Mapping[str, str] = _parities()
HINTS = (NO_HINT, *(hint for one in FORMATS for hint in one.hints))


def number_words() -> list[str]:
    """Returns every word of the task, in a fixed order, those that the world has too."""
    words: dict[str, None] = {}
    for text in (*TEMPLATES, SHORT, LONG):
        words |= dict.fromkeys(word for word in text.split() if word[0] != "{")
    return [*dict.fromkeys([*words, *PARITY_OF])]


def format_of(template: int) -> NumberFormat:
    """Returns the format of a template."""
    return FORMATS[template % len(FORMATS)]


def hint_word(template: int, parity: str) -> str:
    """Returns the word of a template's field for `ODD`, `EVEN` or `NO_HINT`."""
    odd, even = format_of(template).hints
    return {ODD: odd, EVEN: even, NO_HINT: NO_HINT}[parity]
