"""What a word in the prompt does to the behaviour: the control that needs neither an
SAE nor a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.organism.exact import PromptPaths, exact_rates, prompt_paths
from sae_attr.organism.ground_truth import BUDGET, GroundTruth
from sae_attr.organism.prompts import WorldPrompt, make_prompt
from sae_attr.organism.words import PERSONAS
from sae_attr.organism.world import World


def prompting_ground_truth(
    params: Params,
    world: World,
    behaviour: str,
    strength_prompts: Sequence[WorldPrompt],
    effect_prompts: Sequence[WorldPrompt],
    *,
    cfg: LMConfig,
    sign: int,
    budget: float = BUDGET,
) -> tuple[GroundTruth, str]:
    """Addresses the model as one of the personas' company would: chooses the word of the
    largest effect within the budget, as a latent's strength is chosen, and measures its
    effect on other prompts.

    Args:
      sign: -1 away from the behaviour, +1 toward it.

    Returns:
      The effect as that of one direction, and the word; "" where every word costs too
      much coherence.
    """

    def rates(prompts: Sequence[WorldPrompt], word: str) -> tuple[Any, Any]:
        addressed = [_addressed(prompt, word) for prompt in prompts]
        paths = prompt_paths(world, behaviour, addressed)
        behaviour_1p, coherent_1p = _plain(params, paths, cfg=cfg)
        return np.asarray(behaviour_1p[0]), np.asarray(coherent_1p[0])

    before_p, coherent_p = rates(strength_prompts, "")
    largest, word_of_largest = -np.inf, ""
    for persona in PERSONAS:
        for word in persona.company:
            after_p, coherent_after_p = rates(strength_prompts, word)
            effect = sign * float((after_p - before_p).mean())
            if (coherent_p - coherent_after_p).mean() <= budget and effect > largest:
                largest, word_of_largest = effect, word
    before_p, coherent_p = rates(effect_prompts, "")
    after_p, coherent_after_p = rates(effect_prompts, word_of_largest)
    loss_1 = (coherent_p - coherent_after_p).mean(keepdims=True)
    effect_1p = sign * (after_p - before_p)[None]
    effect = GroundTruth(effect_1p, np.full(1, np.nan), loss_1, float(before_p.mean()))
    return effect, word_of_largest


def _addressed(prompt: WorldPrompt, word: str) -> WorldPrompt:
    """The prompt with another word of address; as it is without one."""
    if not word:
        return prompt
    return make_prompt(replace(prompt.question, address=word))


@partial(jax.jit, static_argnames="cfg")
def _plain(
    params: Params, prompts: PromptPaths, *, cfg: LMConfig
) -> tuple[jax.Array, jax.Array]:
    return exact_rates(params, prompts, {}, cfg=cfg)
