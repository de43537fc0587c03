"""A model and rows small enough to be trained inside a test."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import TokenBatch
from sae_attr.lm.params import init_params
from sae_attr.text.example_records import Example
from sae_attr.text.packing import packed_arrays
from tests.miniatures import llama_config


def config(**keys: Any) -> LMConfig:
    return config_from_hf(llama_config(**keys))


def params_of(cfg: LMConfig, seed: int = 0) -> Params:
    """Random parameters of about the scale of a trained model's; drawn by numpy, which
    compiles nothing.
    """
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    draw = lambda path, x: jnp.asarray(
        0.3 * rng.standard_normal(x.shape) + (path[-1].key == "scale"), jnp.float32
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def examples(
    count: int, *, vocab: int = 40, seed: int = 0, longest: int = 14
) -> list[Example]:
    """Rows of 3 to `longest` tokens with random targets, at least one each and never
    the first token.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for line in range(count):
        ids = rng.integers(0, vocab, rng.integers(3, longest + 1)).astype(np.int32)
        target = rng.random(len(ids)) < 0.6
        target[0], target[-1] = False, True
        rows.append(Example(ids, target, line))
    return rows


def batch(rows: list[Example], packs: list[list[int]], width: int = 32) -> TokenBatch:
    targets = max(
        sum(int(rows[i].loss_mask.sum()) for i in members) for members in packs
    )
    return TokenBatch(**packed_arrays(rows, packs, width=width, targets=targets))


def alone(count: int) -> list[list[int]]:
    return [[i] for i in range(count)]


def stacked(*batches: TokenBatch) -> TokenBatch:
    """One more axis in front."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
