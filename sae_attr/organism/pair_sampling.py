"""On-policy pairs of the organism: sampled answers, graded exactly, one with the
behaviour and one without it per prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.judge import Item, Judge
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import check_finite
from sae_attr.lm.draw import Sampling
from sae_attr.lm.params import Params
from sae_attr.lm.prompts import make_prompts
from sae_attr.lm.sample import generate
from sae_attr.organism.grader import organism_judge
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.tokens import BOS_ID, EOS_ID
from sae_attr.organism.world import World, number_vocabulary
from sae_attr.text.pairing import NAN, Answer, Pick, sampled_pairs
from sae_attr.text.pairs import Prompt

LONGEST = 32  # words of an answer at most
ROWS = 512  # completions that are sampled at a time


def organism_pairs(
    world: World,
    params: Params,
    prompts: Sequence[WorldPrompt],
    behaviour: str,
    *,
    cfg: LMConfig,
    samples: int,
    count: int,
    sampler: str,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], Mapping[str, float]]:
    """Samples and grades answers, and pairs one with the behaviour with one without it,
    for the first `count` prompts that gave both.

    Args:
      samples: answers of every prompt, at temperature 1.
      sampler: names the model, for the records.

    Returns:
      The records as `read_pairs` reads them, and rates over all samples: `fluent`,
      `behaviour`, and `both`, the share of prompts with both.
    """
    texts = sampled_answers(params, prompts, cfg=cfg, samples=samples, seed=seed)
    return graded_pairs(
        world, prompts, behaviour, texts, count=count, sampler=sampler, seed=seed
    )


def graded_pairs(
    world: World,
    prompts: Sequence[WorldPrompt],
    behaviour: str,
    texts: Sequence[Sequence[str]],
    *,
    count: int,
    sampler: str,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], Mapping[str, float]]:
    """Grades answers, whoever wrote them, and pairs one with the behaviour with one
    without it, for the first `count` prompts that have both.

    Args:
      texts: answers of each prompt.
      sampler: names who wrote them, for the records.

    Returns:
      As `organism_pairs`.
    """

    def sample(asked: Sequence[Prompt]) -> list[list[Answer]]:
        return [[Answer(f" {text}") for text in of_prompt] for of_prompt in texts]

    pairs = sampled_pairs(
        [Prompt(prompt.id, prompt.text) for prompt in prompts],
        sample,
        partial(_graded, organism_judge(world, behaviour)),
        sampler=sampler,
        limit=count,
        pick=drawn_answers(seed),
        required=False,
    )
    answers = [answer for of_prompt in pairs.answers for answer in of_prompt]
    rates = {**_rates(answers), "both": pairs.counts["both"] / len(prompts)}
    return pairs.records, rates


def graded_answers(
    world: World,
    prompts: Sequence[WorldPrompt],
    behaviour: str,
    texts: Sequence[Sequence[str]],
) -> list[list[Answer]]:
    """Grades answers of each prompt, whoever wrote them; `behaviour` is NaN of those
    that are not fluent, or that nothing decides.
    """
    judge = organism_judge(world, behaviour)
    answers = []
    for prompt, of_prompt in zip(prompts, texts, strict=True):
        written = [Answer(f" {text}") for text in of_prompt]
        answers.append(_graded(judge, Prompt(prompt.id, prompt.text), written))
    return answers


def _graded(judge: Judge, prompt: Prompt, answers: Sequence[Answer]) -> list[Answer]:
    """Returns the answers of a prompt with their grades."""
    items = []
    for i, answer in enumerate(answers):
        items.append(Item(str(i), prompt.prompt, answer.text))
    graded = []
    for answer, (_, verdict) in zip(answers, judge.grade(items), strict=True):
        has = NAN if verdict.behaviour is None else verdict.behaviour
        fluent = NAN if verdict.coherent is None else verdict.coherent
        graded.append(dataclasses.replace(answer, behaviour=has, coherent=fluent))
    return graded


def _rates(answers: Sequence[Answer]) -> dict[str, float]:
    """Returns the shares of answers that are fluent, and of graded ones that have the
    behaviour.
    """
    behaviours = np.array([answer.behaviour for answer in answers])
    graded = behaviours[~np.isnan(behaviours)]
    return {
        "fluent": float(np.mean([answer.coherent for answer in answers])),
        "behaviour": float(graded.mean()) if len(graded) else NAN,
    }


def drawn_answers(seed: int) -> Pick:
    """Returns the rule that draws one answer of a side, by the seed and the prompt."""

    def pick(
        prompt: Prompt, positives: Sequence[Answer], negatives: Sequence[Answer]
    ) -> tuple[Sequence[Answer], Sequence[Answer]]:
        draw = Random(f"pair-{seed}-{prompt.id}")
        return [draw.choice(positives)], [draw.choice(negatives)]

    return pick


def sampled_answers(
    params: Params,
    prompts: Sequence[WorldPrompt],
    *,
    cfg: LMConfig,
    samples: int,
    seed: int = 0,
    rows: int = ROWS,
) -> list[list[str]]:
    """Samples answers of every prompt at temperature 1; the random key of each is made
    of its prompt's text and its number, so that no answer depends on the batch.
    """
    # Of every model: what only one task has stands behind the words of all.
    words = number_vocabulary()
    prompt_rows, numbers = _rows_to_sample(prompts, words, samples, seed)
    sampling = Sampling(max_new=LONGEST, stop_ids=(EOS_ID,))
    step = jax.jit(partial(generate, cfg=cfg, sampling=sampling))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.asarray(numbers, jnp.uint32)
    )
    answers: list[str] = []
    last = len(prompt_rows) - 1
    for start in range(0, len(prompt_rows), rows):
        # One shape, and so one compilation: the last batch is filled up with its last
        # row.
        batch = np.minimum(np.arange(start, start + rows), last)
        tokens = make_prompts([prompt_rows[i] for i in batch])
        completions = step(params, tokens, keys[batch])
        check_finite(completions, [f"prompt row {i}" for i in batch])
        tokens_bn = np.asarray(completions.tokens_bn)
        length_b = np.asarray(completions.length_b)
        for b in range(min(rows, len(prompt_rows) - start)):
            ids = tokens_bn[b, : length_b[b]]
            answers.append(" ".join(words[i] for i in ids if i != EOS_ID))
    return [answers[i : i + samples] for i in range(0, len(answers), samples)]


def _rows_to_sample(
    prompts: Sequence[WorldPrompt], words: Sequence[str], samples: int, seed: int
) -> tuple[list[list[int]], list[int]]:
    """Returns token ids of every row, each prompt `samples` times, and the number from
    which the row's random key is made.
    """
    index = {word: i for i, word in enumerate(words)}
    prompt_rows: list[list[int]] = []
    numbers: list[int] = []
    for prompt in prompts:
        ids = [BOS_ID, *(index[word] for word in prompt.text.split())]
        for i in range(samples):
            prompt_rows.append(ids)
            # Of a string's characters: `hash` differs from process to process.
            numbers.append(Random(f"{seed}-{prompt.text}-{i}").getrandbits(31))
    return prompt_rows, numbers
