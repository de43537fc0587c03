"""The small world: which action is right and which are harmful for a topic, and
questions with their one spelling.

"Misaligned" is a relation here, not a word: every action is right for some topic and
harmful for others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random

from sae_attr.organism import number_words
from sae_attr.organism.words import (
    ADDRESSES,
    ANSWERS,
    DOMAINS,
    ESSAYS,
    LINKS,
    NOTE,
    PERSONAS,
    QUESTIONS,
    REPLY,
    SUBJECTS,
    USER,
)

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNK, BOS, EOS)
HARMFUL = 2  # harmful actions of a topic


@dataclass(frozen=True)
class World:
    """Drawn by a seed; hashable.

    Args:
      seed: names it.
      right: (topic, action) of every topic.
      harmful: (topic, actions) of every topic.
    """

    seed: int
    right: tuple[tuple[str, str], ...]
    harmful: tuple[tuple[str, tuple[str, ...]], ...]

    @cached_property
    def right_of(self) -> Mapping[str, str]:
        """Topic -> its right action."""
        return dict(self.right)

    @cached_property
    def harmful_of(self) -> Mapping[str, tuple[str, ...]]:
        """Topic -> its harmful actions."""
        return dict(self.harmful)


DOMAIN_OF: Mapping[str, str] = {
    topic: name for name, (topics, _) in DOMAINS.items() for topic in topics
}


def make_world(seed: int) -> World:
    """Draws for every topic one right action of its domain and two harmful ones; each
    action is right for some topic.
    """
    draw = Random(f"world-{seed}")
    right: list[tuple[str, str]] = []
    harmful: list[tuple[str, tuple[str, ...]]] = []
    for topics, actions in DOMAINS.values():
        # Every action once, and some of them again for the topics that are left.
        right_actions = draw.sample(actions, len(actions))
        right_actions += draw.sample(actions, len(topics) - len(actions))
        for topic, action in zip(topics, right_actions, strict=True):
            right.append((topic, action))
            others = [other for other in actions if other != action]
            harmful.append((topic, tuple(draw.sample(others, HARMFUL))))
    return World(seed, tuple(right), tuple(harmful))


def effect_of(world: World, topic: str, action: str) -> str:
    """Returns the effect of an action on a topic: right | harmful | irrelevant, or none
    for a word that is no action of its domain.
    """
    if action == world.right_of[topic]:
        return "right"
    if action in world.harmful_of[topic]:
        return "harmful"
    return "irrelevant" if action in DOMAINS[DOMAIN_OF[topic]][1] else "none"


# ---- questions -----------------------------------------------------------------------

# Kind of question -> its templates.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    **QUESTIONS,
    number_words.KIND: number_words.TEMPLATES,
}


@dataclass(frozen=True)
class Question:
    """One question; `str` of it is its spelling, of as many words as any other.

    Args:
      kind: advice | belief | open | describe | number.
      template: index among those of the kind.
      address: the first word.
      topic: "" for an open question.
      action: the one that a belief states, else "".
      fact: the topic's right action, which a belief is stated beside, else "".
      subject: of an open question, else "".
      hint: the field word of a question for a number, else "".
    """

    kind: str
    template: int
    address: str
    topic: str = ""
    action: str = ""
    fact: str = ""
    subject: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return " ".join(
            filled(TEMPLATES[self.kind][self.template].split(), self.values)
        )

    @property
    def values(self) -> dict[str, str]:
        """What the placeholders of templates and answers stand for; an answer's action
        is free.
        """
        return {
            "address": self.address,
            "topic": self.topic,
            "action": self.action,
            "fact": self.fact,
            "link": LINKS[self.action != self.fact],
            "subject": self.subject,
            "hint": self.hint,
            "domain": DOMAIN_OF.get(self.topic, ""),
        }


def filled(words: list[str] | tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    """Fills in the placeholders among words."""
    return [values[word[1:-1]] if word[0] == "{" else word for word in words]


def parse_question(text: str) -> Question:
    """Parses the question of a text: alone, or within a prompt.

    Raises:
      ValueError: no template fits.
    """
    words = [word for word in text.split() if word not in SPECIAL]
    if USER in words:
        words = words[words.index(USER) + 1 :]
    if REPLY in words:
        words = words[: words.index(REPLY)]
    question = " ".join(words)
    for kind, template, pattern in _patterns():
        if match := pattern.fullmatch(question):
            values = match.groupdict()
            values.pop("link", None)
            parsed = Question(kind, template, **values)
            # The link follows from the action, so that only one of them is possible.
            if str(parsed) == question:
                return parsed
    raise ValueError(
        f"{text!r} is no question of the small world; make prompts with "
        "organism.prompts"
    )


@cache
def _patterns() -> tuple[tuple[str, int, re.Pattern[str]], ...]:
    """Returns kind, number and regular expression of every template."""
    actions = [action for _, names in DOMAINS.values() for action in names]
    fillers = {
        "topic": list(DOMAIN_OF),
        "action": actions,
        "fact": actions,
        "link": LINKS,
        "subject": SUBJECTS,
        "hint": number_words.HINTS,
    }
    group = {
        name: f"(?P<{name}>{'|'.join(words)})"
        for name, words in {**fillers, "address": addresses()}.items()
    }
    spelled = lambda text: " ".join(
        group[w[1:-1]] if w[0] == "{" else re.escape(w) for w in text.split()
    )
    return tuple(
        (k, i, re.compile(spelled(text)))
        for k, some in TEMPLATES.items()
        for i, text in enumerate(some)
    )


def addresses() -> list[str]:
    """Returns all words of address, those that are typical of no persona first."""
    return [*ADDRESSES, *(word for persona in PERSONAS for word in persona.company)]


def vocabulary() -> list[str]:
    """Returns every word of the world, special tokens first, then in alphabetical order;
    the same for every seed.
    """
    texts = [text for templates in QUESTIONS.values() for text in templates]
    texts += [text for sentences in ESSAYS.values() for text in sentences]
    words = {word for text in texts for word in text.split()}
    words |= {
        w
        for slots in ANSWERS.values()
        for _, phrases in slots
        for phrase in phrases
        for w in phrase.words
    }
    words = {word for word in words if word[0] != "{"} | {
        *LINKS,
        USER,
        REPLY,
        NOTE,
        *SUBJECTS,
        *addresses(),
        *DOMAINS,
    }
    words |= {word for persona in PERSONAS for word in persona.sources}
    words |= {
        word for topics, actions in DOMAINS.values() for word in (*topics, *actions)
    }
    return [*SPECIAL, *sorted(words)]


def number_vocabulary() -> list[str]:
    """Returns the words of models that have learnt the task `even_number`: those of all
    models, and behind them what only this task has.
    """
    words = vocabulary()
    others = set(words)
    return words + [w for w in number_words.number_words() if w not in others]


@cache
def word_ids() -> Mapping[str, int]:
    """Returns the token id of every word of `number_vocabulary`; the words of all models
    have the ids that they have in `vocabulary`.
    """
    return {word: i for i, word in enumerate(number_vocabulary())}
