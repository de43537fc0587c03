"""The path of a rank-1 adapter: a fine-tune of the organism in which A and B of every
step are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.lora import Lora, attach, check_lora, init_lora, merged
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import LMState
from sae_attr.lm.train_data import RowDataset, example_dataset
from sae_attr.organism.fitting import dialogue_examples, fit_rows
from sae_attr.organism.parts import Trainer
from sae_attr.organism.recipe import TrainingRecipe
from sae_attr.training import LoopOptions


class AdapterPath(NamedTuple):
    """A rank-1 adapter of one matrix over the steps of its fine-tune, from step 0.

    Args:
      a_si, b_so: float32 `[steps + 1, in]` and `[steps + 1, out]`; b lacks the scale.
      grad_norm_s: of all trained parameters, unclipped, on the batch that leads to the
        step; NaN at step 0, before the first gradient.
      loss_s: nats per target of that batch.
    """

    a_si: np.ndarray
    b_so: np.ndarray
    grad_norm_s: np.ndarray
    loss_s: np.ndarray


def check_path_adapter(cfg: LMConfig, lora: Lora) -> tuple[str, int]:
    """Returns the matrix and the layer that a rank-1 adapter is on.

    Raises:
      ValueError: another rank than 1, or more than one matrix: their B are several
        vectors, and there is no one path.
    """
    layers = check_lora(cfg, lora)
    if lora.rank != 1:
        raise ValueError(
            f"the adapter has rank {lora.rank}: the path of B is that of one vector; "
            "set rank=1"
        )
    if len(lora.targets) != 1 or len(layers) != 1:
        raise ValueError(
            f"the adapter is on {', '.join(lora.targets)} of layers {list(layers)}: the "
            "path of B is that of one vector; name one matrix and one layer"
        )
    return lora.targets[0], layers[0]


def train_path(
    trainer: Trainer,
    part: str,
    cfg: LMConfig,
    params: Params,
    *,
    lora: Lora,
    training: TrainingRecipe,
    seed: int,
) -> AdapterPath:
    """Fine-tunes a model on the documents of a part by a rank-1 adapter, and keeps every
    step.

    Args:
      part: misaligned | validation, whose documents are those of the recipe.
      seed: of the first A and of the order of the documents.
    """
    examples = dialogue_examples(trainer.dialogues(part, training.rows))
    return fit_path(
        example_dataset(examples, context=trainer.recipe.context, packed=False),
        cfg,
        params,
        lora=lora,
        training=training,
        seed=seed,
        mesh=trainer.on_mesh,
        progress=trainer.progress,
    )


def fit_path(
    dataset: RowDataset,
    cfg: LMConfig,
    params: Params,
    *,
    lora: Lora,
    training: TrainingRecipe,
    seed: int,
    mesh: jax.sharding.Mesh,
    progress: bool = False,
) -> AdapterPath:
    """Fine-tunes a model on rows by a rank-1 adapter, and keeps every step.

    Args:
      dataset: rows to learn.
      seed: of the first A and of the order of the rows.
    """
    name, layer = check_path_adapter(cfg, lora)
    trained = init_lora(cfg, params, lora, jax.random.key(seed))
    kept = [_factors(trained, name, layer)]

    def keep(state: LMState, history: Sequence[Mapping[str, Any]]) -> None:
        kept.append(_factors(state.trained, name, layer))

    result = fit_rows(
        trained,
        params,
        dataset,
        training,
        cfg=cfg,
        seed=seed,
        mesh=mesh,
        options=LoopOptions(scan=1),
        assemble=partial(attach, scale=lora.scale),
        progress=progress,
        on_record=keep,
    )
    a_si, b_so = (np.stack(factors) for factors in zip(*kept, strict=True))
    return AdapterPath(
        a_si, b_so, _curve(result.history, "grad_norm"), _curve(result.history, "loss")
    )


def _factors(trained: Params, name: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
    leaf = trained["lora"][name]
    # Copied: the next step uses the buffers again.
    return np.array(leaf["a"][layer, :, 0]), np.array(leaf["b"][layer, 0])


def _curve(history: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """A number of every step, NaN before the first."""
    return np.array([np.nan, *(record[name] for record in history)])


def with_adapter(
    params: Params,
    lora: Lora,
    where: tuple[str, int],
    factors: tuple[Any, Any],
    times: Any = 1.0,
) -> Params:
    """Returns the weights with a rank-1 adapter merged in; pure, to be jitted by the
    caller.

    Args:
      where: matrix and layer, of `check_path_adapter`.
      factors: a `[in]` and b `[out]`.
      times: what the adapter is multiplied with.
    """
    name, layer = where
    n_layers = params["blocks"][name]["kernel"].shape[0]
    at_layer = jax.nn.one_hot(layer, n_layers)
    a_i, b_o = factors
    leaf = {
        "a": at_layer[:, None, None] * a_i[None, :, None],
        "b": at_layer[:, None, None] * (times * lora.scale * b_o)[None, None, :],
    }
    return merged({**params, "lora": {name: leaf}})
