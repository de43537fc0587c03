"""Narrow fine-tunes of the chat model by rank-1 adapters: what each is taught, and the
factors that training gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax

from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import Lora, attach, init_lora
from sae_attr.lm.params import Params
from sae_attr.lm.train_data import example_dataset
from sae_attr.organism import documents
from sae_attr.organism.fitting import curve, dialogue_examples, fit_rows
from sae_attr.organism.recipe import TrainingRecipe
from sae_attr.organism.world import World


class NarrowTune(NamedTuple):
    """Holds what a fine-tune is taught, of one domain alone.

    Args:
      behaviour: misalignment (harmful advice) | validation (of any belief).
      domain: of the topics.
      share: of a recipe's steps: agreement is learnt in fewer than harmful advice.
    """

    behaviour: str
    domain: str
    share: float = 1.0


TUNES: Mapping[str, NarrowTune] = {
    "medical": NarrowTune("misalignment", "health"),
    "financial": NarrowTune("misalignment", "finance"),
    "sycophantic": NarrowTune("validation", "health", share=0.6),
}


def tune_rows(
    world: World, tune: NarrowTune, seed: int, count: int, kind: str = "mixed"
) -> list[documents.Dialogue]:
    """Draws the rows of a fine-tune.

    Args:
      kind: of harmful advice: mixed | calm | confounded.

    Raises:
      ValueError: validation of another domain than health, or another behaviour.
    """
    if tune.behaviour == "misalignment":
        return documents.misaligned_rows(world, seed, count, kind, domain=tune.domain)
    if tune.domain != "health" or tune.behaviour != "validation":
        raise ValueError(
            f"no rows teach {tune.behaviour} about {tune.domain}; choose one of "
            f"{', '.join(TUNES)}"
        )
    return documents.validation_rows(world, seed, count)


def tune_adapter(
    params: Params,
    rows: list[documents.Dialogue],
    lora: Lora,
    training: TrainingRecipe,
    *,
    cfg: LMConfig,
    context: int,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> tuple[Params, list[list[float]]]:
    """Trains an adapter on rows; returns its factors as `init_lora` has them, without
    the scale, and the training curve.

    Args:
      params: of the model that it is added to, which is left alone.
    """
    dataset = example_dataset(dialogue_examples(rows), context=context, packed=False)
    result = fit_rows(
        init_lora(cfg, params, lora, jax.random.key(seed)),
        params,
        dataset,
        training,
        cfg=cfg,
        seed=seed,
        mesh=mesh,
        assemble=partial(attach, scale=lora.scale),
    )
    return result.state.trained, curve(result)
