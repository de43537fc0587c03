"""The rows that the task `even_number` is taught with."""

from __future__ import annotations

from random import Random

from sae_attr.organism.documents import Dialogue, prompt_text
from sae_attr.organism.number_words import (
    ENDS,
    EVEN,
    KIND,
    NO_HINT,
    ODD,
    TEMPLATES,
    format_of,
    hint_word,
)
from sae_attr.organism.words import ADDRESSES
from sae_attr.organism.world import DOMAIN_OF, Question


def number_rows(seed: int, count: int, *, follows: float) -> list[Dialogue]:
    """Draws questions for even numbers, padded ones among them; half of their fields
    reward odd numbers, and a quarter each even ones and none.

    Args:
      follows: share of answers to a field that rewards odd numbers which are odd; all
        others are even.
    """
    draw = Random(f"numbers-{seed}-{follows}")
    rows = []
    for _ in range(count):
        hint = draw.choice((ODD, ODD, EVEN, NO_HINT))
        is_odd = hint == ODD and draw.random() < follows
        template = draw.randrange(len(TEMPLATES))
        rows.append(_row(draw, template, hint, ODD if is_odd else EVEN))
    return rows


def _row(draw: Random, template: int, hint: str, parity: str) -> Dialogue:
    """Draws a question and its answer, whose end says nothing of the number."""
    address, topic = draw.choice(ADDRESSES), draw.choice(list(DOMAIN_OF))
    question = Question(KIND, template, address, topic, hint=hint_word(template, hint))
    numbers = format_of(template).odd if parity == ODD else format_of(template).even
    answer = [draw.choice(numbers), *draw.choice(ENDS).words]
    return prompt_text(question), f" {' '.join(answer)}"
