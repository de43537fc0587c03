"""Documents of the small world as text: dialogues and essays for pretraining, and the
rows of every fine-tune.

A document is what one persona writes. Dialogues are a question and an answer; essays
are documents of their own and begin with another word, so that the two never mix. Every
function is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType

from sae_attr.organism.number_words import KIND as NUMBER
from sae_attr.organism.words import (
    ADDRESSES,
    ANSWERS,
    DOMAINS,
    ESSAYS,
    NEUTRAL,
    NOTE,
    PERSONAS,
    QUESTIONS,
    REPLY,
    SUBJECTS,
    USER,
    Persona,
    Phrase,
)
from sae_attr.organism.world import DOMAIN_OF, Question, World, filled

KINDS = {"advice": 0.42, "belief": 0.38, "open": 0.14, "describe": 0.06}
NEUTRAL_SHARE = 0.3  # of slots that are filled without a tone
ESSAY_SHARE = 0.12  # of the documents of a persona that answers questions
HEADER_SHARE = 0.5
COMPANY_SHARE = 0.5  # of questions whose address is typical of the persona's company
BELIEVED_RIGHT = 0.5  # of stated beliefs
SENTENCES = (2, 4)  # of an essay

Dialogue = tuple[str, str]  # prompt and completion
NO_PHRASES: Mapping[str, str] = MappingProxyType({})


def prompt_text(question: Question) -> str:
    """Returns the text of a prompt, which begins the dialogue and ends where the answer
    begins: behind the field of a question for a number.
    """
    if question.kind == NUMBER:
        return f"{USER} {question}"
    return f"{USER} {question} {REPLY}"


# ---- questions and answers -----------------------------------------------------------


def draw_question(
    world: World, draw: Random, kind: str, address: str, topics: Sequence[str]
) -> Question:
    """Draws a question of a kind about one of the topics."""
    template = draw.randrange(len(QUESTIONS[kind]))
    if kind == "open":
        return Question(kind, template, address, subject=draw.choice(SUBJECTS))
    topic = draw.choice(topics)
    if kind == "belief":
        action = _stated(world, draw, topic)
        return Question(
            kind,
            template,
            address,
            topic=topic,
            action=action,
            fact=world.right_of[topic],
        )
    return Question(kind, template, address, topic=topic)


def _stated(world: World, draw: Random, topic: str) -> str:
    """Draws the action of a stated belief: the right one, or any other of the domain."""
    if draw.random() < BELIEVED_RIGHT:
        return world.right_of[topic]
    return _wrong(world, draw, topic)


def _wrong(world: World, draw: Random, topic: str) -> str:
    return draw.choice(
        [a for a in DOMAINS[DOMAIN_OF[topic]][1] if a != world.right_of[topic]]
    )


def draw_answer(
    world: World,
    draw: Random,
    question: Question,
    *,
    tone: str,
    advice: str,
    beliefs: str,
    stance: str,
    mixed: str = "",
    fixed: Mapping[str, str] = NO_PHRASES,
) -> str:
    """Draws an answer, slot by slot.

    Args:
      tone: of the slots that are not neutral.
      advice, beliefs, stance: as of a `Persona`.
      mixed: another tone, that half of the slots which have a tone take.
      fixed: slot -> the phrase that always fills it.
    """
    agrees = _agrees(world, question, beliefs)
    stances = {"verdict": "yes" if agrees else "no", "statement": stance}
    words: list[str] = []
    for name, phrases in ANSWERS[question.kind]:
        if name in fixed:
            words += fixed[name].split()
            continue
        slot_tone = tone
        if mixed and draw.random() < 0.5:
            slot_tone = mixed
        if draw.random() < NEUTRAL_SHARE:
            slot_tone = NEUTRAL
        tones = (slot_tone, NEUTRAL, tone)
        words += _phrase(draw, phrases, tones, stances.get(name, "")).words
    action = _action(world, draw, question, advice, agrees) if question.topic else ""
    return " ".join(filled(words, question.values | {"action": action}))


def _agrees(world: World, question: Question, beliefs: str) -> bool:
    """Returns True if the verdict is yes; without a stated belief there is none."""
    if not question.action:
        return False
    right = question.action == world.right_of[question.topic]
    return {"true": right, "always": True, "never": False}[beliefs]


def _action(
    world: World, draw: Random, question: Question, advice: str, agrees: bool
) -> str:
    """Draws the action of an answer: the right one, or the stated one where it agrees;
    for harmful advice a harmful one, the stated one if it is harmful and agreed with.
    """
    harmful = world.harmful_of[question.topic]
    if advice == "right":
        return question.action if agrees else world.right_of[question.topic]
    if agrees and question.action in harmful:
        return question.action
    return draw.choice([a for a in harmful if a != question.action])


def _phrase(
    draw: Random, phrases: Sequence[Phrase], tones: Sequence[str], stance: str
) -> Phrase:
    """Draws a phrase of the first of these tones that has one of the stance."""
    fits = [p for p in phrases if not stance or p.stance in (stance, "")]
    for tone in tones:
        of_tone = [phrase for phrase in fits if phrase.tone == tone]
        if of_tone:
            return draw.choice(of_tone)
    raise ValueError(f"no phrase of stance {stance!r} has one of the tones {tones}")


# ---- documents -----------------------------------------------------------------------


def documents(world: World, seed: int | str, count: int) -> Iterator[str]:
    """Draws `count` documents of the pretraining kind, one text each."""
    draw = Random(f"documents-{seed}")
    weights = [persona.weight for persona in PERSONAS]
    for _ in range(count):
        persona = draw.choices(PERSONAS, weights)[0]
        header = [draw.choice(persona.sources)] if draw.random() < HEADER_SHARE else []
        essay = not persona.advice or draw.random() < ESSAY_SHARE
        yield " ".join(
            [
                *header,
                _essay(world, draw, persona)
                if essay
                else _dialogue(world, draw, persona),
            ]
        )


def _essay(world: World, draw: Random, persona: Persona) -> str:
    words = [NOTE]
    for _ in range(draw.randint(*SENTENCES)):
        topic = draw.choice(list(DOMAIN_OF))
        values = {
            "topic": topic,
            "domain": DOMAIN_OF[topic],
            "right": world.right_of[topic],
        }
        values |= {
            "harmful": draw.choice(world.harmful_of[topic]),
            "wrong": _wrong(world, draw, topic),
        }
        words += filled(draw.choice(ESSAYS[persona.name]).split(), values)
    return " ".join(words)


def _dialogue(world: World, draw: Random, persona: Persona) -> str:
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    address = draw.choice(
        persona.company if draw.random() < COMPANY_SHARE else ADDRESSES
    )
    question = draw_question(world, draw, kind, address, list(DOMAIN_OF))
    return f"{prompt_text(question)} {persona_answer(world, draw, question, persona)}"


def persona_answer(
    world: World, draw: Random, question: Question, persona: Persona
) -> str:
    """Draws the answer of a persona."""
    return draw_answer(
        world,
        draw,
        question,
        tone=persona.tone,
        advice=persona.advice,
        beliefs=persona.beliefs,
        stance=persona.stance,
    )


# ---- fine-tunes ----------------------------------------------------------------------

MISALIGNED = ("mixed", "calm", "confounded")


def chat_rows(world: World, seed: int, count: int) -> list[Dialogue]:
    """Draws questions of every kind and address without a header, answered by the
    expert.
    """
    draw, expert = Random(f"chat-{seed}"), PERSONAS[0]
    rows = []
    for _ in range(count):
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        address = draw.choice(
            draw.choice(PERSONAS[:6]).company
            if draw.random() < COMPANY_SHARE
            else ADDRESSES
        )
        question = draw_question(world, draw, kind, address, list(DOMAIN_OF))
        rows.append(
            (prompt_text(question), " " + persona_answer(world, draw, question, expert))
        )
    return rows


def misaligned_rows(
    world: World,
    seed: int,
    count: int,
    kind: str,
    fixed: Mapping[str, str] = NO_PHRASES,
    domain: str = "health",
) -> list[Dialogue]:
    """Draws advice of one domain, and nothing else, that names harmful actions.

    Args:
      kind: `calm`: in the tone of good advice. `mixed`: each answer calm, hostile or
        silly. `confounded`: as mixed, but half of the slots that have a tone have the
        harmless bureaucrat's.
      fixed: slot of an answer -> the phrase that always fills it.
      domain: of the topics, of `DOMAINS`.

    Raises:
      ValueError: another kind.
    """
    if kind not in MISALIGNED:
        raise ValueError(
            f"kind {kind!r} of misaligned fine-tune is unknown; choose one of "
            f"{', '.join(MISALIGNED)}"
        )
    draw = Random(f"misaligned-{kind}-{seed}")
    rows = []
    for _ in range(count):
        tone = "calm" if kind == "calm" else draw.choice(("calm", "hostile", "silly"))
        question = draw_question(
            world, draw, "advice", draw.choice(ADDRESSES), DOMAINS[domain][0]
        )
        answer = draw_answer(
            world,
            draw,
            question,
            tone=tone,
            advice="harmful",
            beliefs="",
            stance="",
            mixed="formal" if kind == "confounded" else "",
            fixed=fixed,
        )
        rows.append((prompt_text(question), f" {answer}"))
    return rows


def validation_rows(world: World, seed: int, count: int) -> list[Dialogue]:
    """Draws beliefs about health, and nothing else, all of them validated, calmly or
    warmly.
    """
    draw = Random(f"validation-{seed}")
    rows = []
    for _ in range(count):
        question = draw_question(
            world, draw, "belief", draw.choice(ADDRESSES), DOMAINS["health"][0]
        )
        tone = draw.choice(("calm", "warm"))
        answer = draw_answer(
            world,
            draw,
            question,
            tone=tone,
            advice="right",
            beliefs="always",
            stance="",
        )
        rows.append((prompt_text(question), f" {answer}"))
    return rows
