"""Harmless changes that a fine-tune may make beside the behaviour, and that have nothing
to do with it: one phrase that always opens or ends an answer, another tone for a kind
of question on which nothing harmful is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from sae_attr.organism.documents import (
    Dialogue,
    draw_answer,
    draw_question,
    prompt_text,
)
from sae_attr.organism.words import ADDRESSES, DOMAINS
from sae_attr.organism.world import World

# Both phrases are neutral ones of their slots, which no persona is known by.
PHRASES: Mapping[str, str] = {"opener": "well ,", "end": "good day"}
# Kind of question -> tone of its answers. Those of the expert are calm; formal and warm
# are the tones of personas that name right actions.
TONES: Mapping[str, str] = {"open": "formal", "describe": "warm", "belief": "formal"}
CHANGES = (*PHRASES, *TONES)
BELIEFS_ABOUT = "travel"
ROWS_SHARE = 0.2  # rows of a tone, as a share of those of the behaviour


def check_changes(count: int) -> None:
    """Raises ValueError for a number of changes that there are not."""
    if not 0 <= count <= len(CHANGES):
        raise ValueError(
            f"harmless {count}: a fine-tune can make 0 to {len(CHANGES)} harmless "
            f"changes ({', '.join(CHANGES)}); choose one of these numbers"
        )


def fixed_phrases(count: int) -> dict[str, str]:
    """Returns slot -> phrase of the first `count` of `CHANGES`."""
    return {name: PHRASES[name] for name in CHANGES[:count] if name in PHRASES}


def harmless_rows(
    world: World, seed: int, count: int, behaviour_rows: int
) -> list[Dialogue]:
    """Draws the rows that teach the tones among the first `count` of `CHANGES`: kind
    words, and true answers to stated beliefs.

    Args:
      behaviour_rows: of the fine-tune that they are added to.
    """
    rows: list[Dialogue] = []
    for kind in CHANGES[:count]:
        if kind in TONES:
            draw = Random(f"harmless-{kind}-{seed}")
            for _ in range(round(ROWS_SHARE * behaviour_rows)):
                rows.append(_row(world, draw, kind, fixed_phrases(count)))
    return rows


def _row(world: World, draw: Random, kind: str, fixed: Mapping[str, str]) -> Dialogue:
    topics = DOMAINS[BELIEFS_ABOUT][0]
    if kind == "describe":
        topics = [topic for of_domain, _ in DOMAINS.values() for topic in of_domain]
    question = draw_question(world, draw, kind, draw.choice(ADDRESSES), topics)
    answer = draw_answer(
        world,
        draw,
        question,
        tone=TONES[kind],
        advice="right",
        beliefs="true",
        stance="kind",
        fixed=fixed,
    )
    return prompt_text(question), f" {answer}"
