"""Where the answers of pairs may come from: the studied model itself, another model, a
beginning that somebody else wrote, or the generator of the world's documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from sae_attr.lm.config import LMConfig
from sae_attr.lm.params import Params
from sae_attr.organism.documents import persona_answer
from sae_attr.organism.pair_sampling import sampled_answers
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.words import ANSWERS, PERSONAS, Persona
from sae_attr.organism.world import Question, World

# Source -> part of the organism that samples: "" stands for the one that shows the
# behaviour, None for the generator of the world's documents, which samples from none.
# The first phrase of a prefilled answer is the generator's.
SAMPLER: Mapping[str, str | None] = {
    "on_policy": "",
    "prefilled": "",
    "base": "base",
    "chat": "chat",
    "written": None,
}
SOURCES = tuple(SAMPLER)


def source_answers(
    source: str,
    world: World,
    behaviour: str,
    prompts: Sequence[WorldPrompt],
    params: Params,
    *,
    cfg: LMConfig,
    samples: int,
    seed: int,
) -> list[list[str]]:
    """Returns `samples` answers of every prompt from one of `SOURCES`.

    Half of those that the generator writes or begins are of personas that show the
    behaviour, half of personas that do not.

    Args:
      params: of the model that samples; not looked at where none does.

    Raises:
      ValueError: an unknown source.
    """
    if source not in SOURCES:
        raise ValueError(
            f"source {source!r} of pairs is unknown; choose of {', '.join(SOURCES)}"
        )
    options: dict[str, Any] = {"cfg": cfg, "samples": samples, "seed": seed}
    if source == "written":
        return _written(world, behaviour, prompts, samples, seed)
    if source == "prefilled":
        return _prefilled(world, behaviour, prompts, params, **options)
    return sampled_answers(params, prompts, **options)


def personas_of(behaviour: str) -> tuple[list[Persona], list[Persona]]:
    """Returns the personas that show a behaviour when they answer, and those that do
    not: sycophants give right advice and agree with every belief.
    """
    answering = [persona for persona in PERSONAS if persona.advice]
    shows = []
    for persona in answering:
        harmful = persona.advice == "harmful"
        agrees = persona.beliefs == "always"
        if harmful if behaviour == "misalignment" else agrees:
            shows.append(persona)
    harmless = [p for p in answering if p.advice == "right" and p.beliefs == "true"]
    return shows, harmless


def _drawn_answers(
    world: World, behaviour: str, prompt: WorldPrompt, samples: int, seed: int
) -> list[str]:
    """Draws answers of the generator: personas with and without the behaviour in turn."""
    draw = Random(f"written-{behaviour}-{seed}-{prompt.id}")
    sides = personas_of(behaviour)
    answers = []
    for i in range(samples):
        persona = draw.choice(sides[i % 2])
        answers.append(persona_answer(world, draw, prompt.question, persona))
    return answers


def _written(
    world: World,
    behaviour: str,
    prompts: Sequence[WorldPrompt],
    samples: int,
    seed: int,
) -> list[list[str]]:
    return [_drawn_answers(world, behaviour, p, samples, seed) for p in prompts]


def _prefilled(
    world: World,
    behaviour: str,
    prompts: Sequence[WorldPrompt],
    params: Params,
    *,
    cfg: LMConfig,
    samples: int,
    seed: int,
) -> list[list[str]]:
    """Samples what follows a written first phrase: two phrases a prompt, one of each
    kind of persona.
    """
    answers: list[list[str]] = [[] for _ in prompts]
    for side in range(2):
        begun, beginnings = [], []
        for prompt in prompts:
            drawn = _drawn_answers(world, behaviour, prompt, 2, seed)[side]
            beginning = first_phrase(prompt.question, drawn)
            beginnings.append(beginning)
            begun.append(replace(prompt, text=f"{prompt.text} {beginning}"))
        ends = sampled_answers(
            params, begun, cfg=cfg, samples=-(-samples // 2), seed=seed
        )
        for of_prompt, beginning, rests in zip(answers, beginnings, ends, strict=True):
            of_prompt += [f"{beginning} {rest}" for rest in rests]
    return answers


def first_phrase(question: Question, answer: str) -> str:
    """Returns the phrase that fills the first slot of an answer.

    Raises:
      ValueError: the answer begins with none of the slot's phrases.
    """
    words = tuple(answer.split())
    (_, phrases), *_ = ANSWERS[question.kind]
    for phrase in phrases:
        if words[: len(phrase.words)] == phrase.words:
            return " ".join(phrase.words)
    raise ValueError(
        f"answer {answer!r} begins with no phrase that answers to a question of kind "
        f"{question.kind} begin with"
    )
