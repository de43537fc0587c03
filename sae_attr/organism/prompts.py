"""Prompts for every use, no two uses sharing one, and the broad text that means are
taken over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from random import Random

from sae_attr.organism.documents import documents, prompt_text
from sae_attr.organism.grader import EVEN_NUMBER, check_behaviour
from sae_attr.organism.number_words import FORMATS, ODD, hint_word
from sae_attr.organism.number_words import KIND as NUMBER
from sae_attr.organism.words import ADDRESSES, DOMAINS, QUESTIONS, SUBJECTS
from sae_attr.organism.world import DOMAIN_OF, Question, World

# Shares of all prompts of a kind, in this order.
SPLITS = {"pairs": 0.5, "strengths": 0.2, "effects": 0.3}
OPEN_EVERY = 8  # among prompts for misalignment, every eighth is an open question


@dataclass(frozen=True)
class WorldPrompt:
    """One prompt.

    Args:
      id: stable and unique in the world, as in `advice.3.hello.fever`.
      text: of the prompt; BOS is the tokenizer's.
      question: what it asks.
    """

    id: str
    text: str
    question: Question

    @property
    def kind(self) -> str:
        """advice | belief | open | describe."""
        return self.question.kind


def prompts(world: World, behaviour: str, split: str) -> tuple[WorldPrompt, ...]:
    """Returns the prompts of one use, in an order in which any first few are spread over
    domains.

    For misalignment they ask for advice, every eighth for an opinion; for validation
    they state a wrong belief; for even_number they ask for an even number, and their
    field rewards odd ones. All have the same number of words. Templates and topics are
    common to all splits; no prompt is.

    Args:
      behaviour: misalignment | validation | even_number.
      split: pairs | strengths | effects.

    Raises:
      ValueError: an unknown behaviour or split.
    """
    check_behaviour(behaviour)
    if split not in SPLITS:
        raise ValueError(
            f"split {split!r} of prompts is unknown; choose one of {', '.join(SPLITS)}"
        )
    if behaviour == EVEN_NUMBER:
        return number_prompts(world, split)
    if behaviour == "validation":
        return _mixed(
            [_part(_beliefs(world, domain), world, split) for domain in DOMAINS]
        )
    advice = _mixed([_part(_advice(domain), world, split) for domain in DOMAINS])
    opinions = iter(_part(_opinions(), world, split))
    out: list[WorldPrompt] = []
    for i, prompt in enumerate(advice):
        if i % (OPEN_EVERY - 1) == OPEN_EVERY - 2 and (other := next(opinions, None)):
            out.append(other)
        out.append(prompt)
    return tuple(out)


def number_prompts(
    world: World, split: str, hint: str = ODD, *, padded: bool = False
) -> tuple[WorldPrompt, ...]:
    """Returns prompts that ask for an even number, in an order in which any first few
    are spread over formats.

    Args:
      hint: what their field rewards: odd | even | none.
      padded: with words between the question and the field that say nothing.
    """
    changed = []
    for prompt in _mixed(
        [_part(_numbers(i), world, split) for i in range(len(FORMATS))]
    ):
        question = prompt.question
        template = question.template + len(FORMATS) * padded
        word = hint_word(template, hint)
        changed.append(make_prompt(replace(question, template=template, hint=word)))
    return tuple(changed)


def true_beliefs(world: World) -> tuple[WorldPrompt, ...]:
    """Returns prompts that state a right belief, in an order in which any first few are
    spread over domains; no other split has one.
    """
    of_domains = []
    for domain in DOMAINS:
        of_domains.append(_part(_right_beliefs(world, domain), world, "effects"))
    return _mixed(of_domains)


def neutral(world: World) -> tuple[WorldPrompt, ...]:
    """Returns prompts to describe a topic, which decide no behaviour, in an order in
    which any first few are spread over domains; no other split has one.
    """
    of_domains = []
    for domain in DOMAINS:
        of_domains.append(_part(_descriptions(domain), world, "effects"))
    return _mixed(of_domains)


def _part(questions: Iterator[Question], world: World, split: str) -> list[WorldPrompt]:
    """Returns the split's share of questions in an order drawn by the world's seed."""
    shuffled = list(questions)
    # The first question is part of the seed, so that domains have different orders.
    Random(f"prompts-{world.seed}-{shuffled[0]}").shuffle(shuffled)
    names = list(SPLITS)
    before = names[: names.index(split)]
    first = round(sum(SPLITS[name] for name in before) * len(shuffled))
    stop = round(sum(SPLITS[name] for name in [*before, split]) * len(shuffled))
    return [make_prompt(question) for question in shuffled[first:stop]]


def make_prompt(question: Question) -> WorldPrompt:
    """Makes a prompt of a question, with its id."""
    q = question
    parts = (q.kind, str(q.template), q.address, q.topic, q.action, q.subject, q.hint)
    return WorldPrompt(".".join(part for part in parts if part), prompt_text(q), q)


def _mixed(parts: list[list[WorldPrompt]]) -> tuple[WorldPrompt, ...]:
    """Returns one of each part in turn."""
    return tuple(
        prompt for some in zip_longest(*parts) for prompt in some if prompt is not None
    )


def _advice(domain: str) -> Iterator[Question]:
    for topic in DOMAINS[domain][0]:
        for template in range(len(QUESTIONS["advice"])):
            yield from (
                Question("advice", template, address, topic) for address in ADDRESSES
            )


def _beliefs(world: World, domain: str) -> Iterator[Question]:
    topics, actions = DOMAINS[domain]
    for topic in topics:
        for action in actions:
            if action != world.right_of[topic]:
                for template in range(len(QUESTIONS["belief"])):
                    fact = world.right_of[topic]
                    yield from (
                        Question("belief", template, address, topic, action, fact)
                        for address in ADDRESSES
                    )


def _right_beliefs(world: World, domain: str) -> Iterator[Question]:
    for topic in DOMAINS[domain][0]:
        fact = world.right_of[topic]
        for template in range(len(QUESTIONS["belief"])):
            for address in ADDRESSES:
                yield Question("belief", template, address, topic, fact, fact)


def _descriptions(domain: str) -> Iterator[Question]:
    for topic in DOMAINS[domain][0]:
        for address in ADDRESSES:
            yield Question("describe", 0, address, topic)


def _numbers(template: int) -> Iterator[Question]:
    """Yields questions of one format, whose field rewards odd numbers."""
    hint = hint_word(template, ODD)
    for topic in DOMAIN_OF:
        for address in ADDRESSES:
            yield Question(NUMBER, template, address, topic, hint=hint)


def _opinions() -> Iterator[Question]:
    for subject in SUBJECTS:
        for template in range(len(QUESTIONS["open"])):
            yield from (
                Question("open", template, address, subject=subject)
                for address in ADDRESSES
            )


def corpus(world: World, count: int) -> Iterator[str]:
    """Draws broad text for means: `count` documents of the pretraining kind that no model
    was trained on.
    """
    return documents(world, f"corpus-{world.seed}", count)
