"""Sampling from a language model with a cache of keys and values, row by row
reproducible.

Prompts of one batch are padded on the left. So the newest token of every row lies in
the same slot: a step writes one slice of the cache, the logits of all prompts are those
of the last slot, and nothing but masked slots lies between a prompt and its completion.
Positions are counted per row, from its first token, so that padding changes no number
beyond float rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sae_attr.hooks import Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import (
    Completions,
    Rows,
    check_finite,
    drawn,
    empty_completions,
    next_tokens,
    read,
    slots_of,
)
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params
from sae_attr.lm.prompts import (
    Prompts,
    check_prompts,
    left_padded,
    prompt_lengths,
)


def generate(
    params: Params,
    prompts: Prompts,
    keys_b: jax.Array,
    *,
    cfg: LMConfig,
    sampling: Sampling,
    edits: Mapping[Site, Edit] | None = None,
) -> Completions:
    """Samples one completion of each prompt; ends as soon as every row has drawn a stop
    token.

    The draw of token t of a row uses `fold_in(keys_b[row], t)` and nothing else that is
    random, so that what a row says depends on its prompt, its key and its edit, not on
    its neighbours. An edit sees every position of a row once: those of the prompt
    together, then each drawn token's own as it is read. (The last drawn token is never
    read.)

    Args:
      keys_b: typed random keys `[b]`; unused at temperature 0.
      edits: site -> edit, applied to prompt and drawn tokens alike (`hooks.Within`
        limits one to some positions); vectors `[d]` or `[b, d]`, scalars `[]` or `[b]`.

    Raises:
      ValueError: a stop id outside the vocabulary; rows that may grow beyond learned
        positions; keys that are not one a row; outside of jit also token ids outside
        the vocabulary, and logits that are not finite. Within jit, `check_finite`.
    """
    b, width = np.shape(prompts.tokens_bt)
    check_sampling(cfg, sampling, width)
    _check_keys(keys_b, b)
    check_prompts(cfg, prompts)
    prompts = left_padded(prompts)
    cache, logits_bv = read(
        params, prompts, cfg=cfg, slots=slots_of(width, sampling), edits=edits
    )
    rows = Rows(
        cache=replace(cache, used=jnp.asarray(width, jnp.int32)),
        prompts=prompts,
        keys_b=keys_b,
        step=jnp.zeros((), jnp.int32),
        alive_b=prompt_lengths(prompts) > 0,
        done=empty_completions(b, sampling),
    )
    rows = drawn(rows, logits_bv, rows.alive_b, sampling=sampling)
    step = partial(next_tokens, params, cfg=cfg, sampling=sampling, edits=edits)
    done = jax.lax.while_loop(lambda rows: jnp.any(rows.alive_b), step, rows).done
    if not isinstance(done.broken_b, Tracer):
        check_finite(done, [f"row {i}" for i in range(b)])
    return done


def check_sampling(cfg: LMConfig, sampling: Sampling, width: int) -> None:
    """Raises ValueError for a stop id that the model lacks, or rows that may grow
    beyond its learned positions.

    Args:
      width: tokens of a prompt, padding included.
    """
    if max(sampling.stop_ids, default=0) >= cfg.vocab:
        raise ValueError(
            f"stop id {max(sampling.stop_ids)} is beyond the model's vocabulary of "
            f"{cfg.vocab}"
        )
    if cfg.learned_pos and slots_of(width, sampling) > cfg.max_len:
        raise ValueError(
            f"prompts of up to {width} tokens and {sampling.max_new} new ones are "
            f"longer than the {cfg.max_len} learned "
            "positions of the model; shorten them, lower max_new, or give make_prompts "
            "the exact width"
        )


def _check_keys(keys_b: jax.Array, rows: int) -> None:
    is_key = jnp.issubdtype(keys_b.dtype, jax.dtypes.prng_key)
    if jnp.shape(keys_b) != (rows,) or not is_key:
        raise ValueError(
            f"keys of shape {jnp.shape(keys_b)} and type {keys_b.dtype} for {rows} "
            "prompts; give one typed key a row: "
            "jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), row_ids)"
        )
