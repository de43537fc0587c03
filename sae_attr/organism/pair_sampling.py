"""On-policy pairs of the organism: sampled answers, graded exactly, one with the
behaviour and one without it per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.judge import Item
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.sample import check_finite, generate, make_prompts
from sae_attr.organism.grader import organism_judge
from sae_attr.organism.prompts import WorldPrompt
from sae_attr.organism.tokens import BOS_ID, EOS_ID
from sae_attr.organism.world import World, vocabulary

LONGEST = 32  # words of an answer at most


def sampled_pairs(
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
    """On-policy pairs: of the first `count` prompts that gave both sides, one
    completion of each.

    Args:
      samples: completions of every prompt, at temperature 1.
      sampler: what names the model, for the records.

    Returns:
      The records as `read_pairs` reads them; and rates over all samples: fluent,
      behaviour, prompts with both.
    """
    answers = sampled_answers(params, prompts, cfg=cfg, samples=samples, seed=seed)
    judge, records, grades = organism_judge(world, behaviour), [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        items = [Item(str(i), prompt.text, text) for i, text in enumerate(texts)]
        found = [grade for _, grade in judge.grade(items)]
        grades += found
        sides = {
            b: [t for t, g in zip(texts, found, strict=True) if g.behaviour == b]
            for b in (1.0, 0.0)
        }
        if all(sides.values()):
            draw = Random(f"pair-{seed}-{prompt.id}")
            positive, negative = (f" {draw.choice(sides[b])}" for b in (1.0, 0.0))
            records.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "positive": positive,
                    "negative": negative,
                    "sampler": sampler,
                }
            )
    rated = [g.behaviour for g in grades if g.behaviour is not None]
    rates = {
        "fluent": float(np.mean([g.coherent for g in grades])),
        "behaviour": float(np.mean(rated)) if rated else float("nan"),
        "both": len(records) / len(prompts),
    }
    return records[:count], rates


def sampled_answers(
    params: Params,
    prompts: Sequence[WorldPrompt],
    *,
    cfg: LMConfig,
    samples: int,
    seed: int = 0,
    rows: int = 512,
) -> list[list[str]]:
    """`samples` answers of every prompt at temperature 1; the key of each is of its
    prompt's text and its number.
    """
    words = vocabulary()
    index = {word: i for i, word in enumerate(words)}
    asked = [
        [BOS_ID, *(index[word] for word in prompt.text.split())]
        for prompt in prompts
        for _ in range(samples)
    ]
    numbers = [
        Random(f"{seed}-{prompt.text}-{i}").getrandbits(31)
        for prompt in prompts
        for i in range(samples)
    ]
    sampling = Sampling(max_new=LONGEST, stop_ids=(EOS_ID,))
    step = jax.jit(partial(generate, cfg=cfg, sampling=sampling))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.asarray(numbers, jnp.uint32)
    )
    out: list[str] = []
    for start in range(0, len(asked), rows):
        part = asked[start : start + rows]
        chosen = np.minimum(
            np.arange(start, start + rows), len(asked) - 1
        )  # one shape: the last row again
        batch = make_prompts([asked[i] for i in chosen])
        found = step(params, batch, keys[chosen])
        check_finite(found, [f"prompt row {i}" for i in chosen])
        for ids, length in list(
            zip(np.asarray(found.tokens_bn), np.asarray(found.length_b), strict=True)
        )[: len(part)]:
            out.append(" ".join(words[i] for i in ids[:length] if i != EOS_ID))
    return [out[i : i + samples] for i in range(0, len(out), samples)]
