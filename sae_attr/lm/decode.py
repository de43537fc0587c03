"""Rows in the middle of being sampled: their cache, what was drawn, and one step more.

Prompts are padded on the left, so that the first new token of every row lies in the
same slot and the logits of all prompts are those of the last one. Rows may be at steps
of their own: then one that ended gives its place to another (`steering.sweep`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.hooks import Edit, Site
from sae_attr.lm.cache import Cache, init_cache, outgrown
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling, draw
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import weights_dtype
from sae_attr.lm.prompts import Prompts, prompt_lengths


@struct.dataclass
class Completions:
    """Holds what was drawn; n is `Sampling.max_new`.

    Args:
      tokens_bn: int32, the stop token included; 0 from `length_b` on.
      length_b: tokens of each row, the stop token included.
      stopped_b: whether a stop token ended the row (else it is cut at max_new).
      broken_b: step (from 0) whose logits were NaN or all infinite, where the row ends
        without a token; -1 for none.
      logp_bn: float32, log-probability in nats of every token under the model as it was
        run, edits included, at temperature 1 and before top-k, top-p and min_new; 0
        from `length_b` on.
    """

    tokens_bn: Any
    length_b: Any
    stopped_b: Any
    broken_b: Any
    logp_bn: Any


@struct.dataclass
class Rows:
    """`step` tokens were drawn of every row; all but the last of them are in the cache.

    Args:
      prompts: padded on the left.
      keys_b: typed random keys; the draw of token t uses `fold_in(key, t)`.
      step: int32, `[]` where all rows are at the same one, else `[b]`.
      alive_b: False where a row has ended, or was none from the start.
    """

    cache: Cache
    prompts: Prompts
    keys_b: jax.Array
    step: jax.Array
    alive_b: jax.Array
    done: Completions


def empty_completions(rows: int, sampling: Sampling) -> Completions:
    """Returns completions of which nothing was drawn yet."""
    shape = (rows, sampling.max_new)
    return Completions(
        tokens_bn=jnp.zeros(shape, jnp.int32),
        length_b=jnp.zeros(rows, jnp.int32),
        stopped_b=jnp.zeros(rows, bool),
        broken_b=jnp.full(rows, -1, jnp.int32),
        logp_bn=jnp.zeros(shape, jnp.float32),
    )


def slots_of(width: int, sampling: Sampling) -> int:
    """Returns the slots of a cache for prompts of this width and what follows them."""
    return width + sampling.max_new - 1  # the last drawn token is never read


def read(
    params: Params,
    prompts: Prompts,
    *,
    cfg: LMConfig,
    slots: int,
    edits: Mapping[Site, Edit] | None,
    until_b: jax.Array | None = None,
) -> tuple[Cache, jax.Array]:
    """Reads rows from their first token on; returns a cache that is full up to their
    width, and the logits `[b, v]` after the last token.

    Args:
      prompts: padded on the left; with `until_b`, a row ends before that slot of its.
      slots: of the cache.
    """
    pos_bt = positions_of(prompts)
    rows = len(prompts.tokens_bt)
    cache = init_cache(cfg, rows=rows, slots=slots, dtype=weights_dtype(params))
    out = forward(
        params,
        prompts.tokens_bt,
        cfg=cfg,
        pos_bt=pos_bt,
        valid_bt=prompts.valid_bt,
        cache=cache,
        edits=edits,
    )
    assert out.cache is not None
    if until_b is None:
        last_bd = out.hidden_btd[:, -1]
    else:
        last_b1 = (until_b - 1)[:, None, None]
        last_bd = jnp.take_along_axis(out.hidden_btd, last_b1, axis=1)[:, 0]
    return out.cache, logits(params, last_bd, cfg=cfg)


def positions_of(prompts: Prompts) -> jax.Array:
    """Returns the position of every token of rows that are padded on the left,
    `[b, t]`; 0 on padding.
    """
    return jnp.maximum(jnp.cumsum(prompts.valid_bt, axis=1, dtype=jnp.int32) - 1, 0)


def next_tokens(
    params: Params,
    rows: Rows,
    *,
    cfg: LMConfig,
    sampling: Sampling,
    edits: Mapping[Site, Edit] | None,
) -> Rows:
    """Reads the newest token of every row, and draws one more of those alive."""
    b, width = rows.prompts.tokens_bt.shape
    step_b = jnp.broadcast_to(rows.step, b)
    newest_b1 = (step_b - 1)[:, None]
    pos_b1 = prompt_lengths(rows.prompts)[:, None] + newest_b1
    out = forward(
        params,
        jnp.take_along_axis(rows.done.tokens_bn, newest_b1, axis=1),
        cfg=cfg,
        pos_bt=jnp.maximum(pos_b1, 0),
        cache=replace(rows.cache, used=width + rows.step - 1),
        edits=edits,
    )
    assert out.cache is not None
    cache, logits_bv = out.cache, logits(params, out.hidden_btd[:, 0], cfg=cfg)
    now_b = jnp.where(rows.alive_b, pos_b1[:, 0] + 1, 0)
    slots = rows.cache.pos_bs.shape[1]
    again_b = outgrown(cfg, now_b, slots=slots)
    if again_b is not None:
        anew = lambda: _read_anew(params, rows, again_b, cache, logits_bv, cfg, edits)
        cache, logits_bv = jax.lax.cond(
            jnp.any(again_b), anew, lambda: (cache, logits_bv)
        )
    rows = replace(rows, cache=cache)
    return drawn(rows, logits_bv, rows.alive_b, sampling=sampling)


def _read_anew(
    params: Params,
    rows: Rows,
    again_b: jax.Array,
    cache: Cache,
    logits_bv: jax.Array,
    cfg: LMConfig,
    edits: Mapping[Site, Edit] | None,
) -> tuple[Cache, jax.Array]:
    """Returns cache and logits with those of some rows from reading all their tokens;
    the others stay as they are to the bit.
    """
    slots = cache.pos_bs.shape[1]
    width = rows.prompts.tokens_bt.shape[1]
    until_b = jnp.broadcast_to(width + rows.step, len(again_b))
    drawn_bn = rows.done.tokens_bn[:, : slots - width]
    begun_bn = jnp.arange(width, slots) < until_b[:, None]
    whole = Prompts(
        jnp.concatenate([rows.prompts.tokens_bt, drawn_bn], axis=1),
        jnp.concatenate([rows.prompts.valid_bt, begun_bn], axis=1),
    )
    anew, anew_bv = read(
        params, whole, cfg=cfg, slots=slots, edits=edits, until_b=until_b
    )
    rowwise = again_b[:, None, None, None]
    kv = jax.tree.map(lambda new, old: jnp.where(rowwise, new, old), anew.kv, cache.kv)
    return replace(cache, kv=kv), jnp.where(again_b[:, None], anew_bv, logits_bv)


def drawn(
    rows: Rows, logits_bv: jax.Array, drawing_b: jax.Array, *, sampling: Sampling
) -> Rows:
    """Returns the rows after one more token of those that draw; one without finite
    logits ends, and draws none.
    """
    step_b, done = jnp.broadcast_to(rows.step, len(drawing_b)), rows.done
    # Not finite where there is a NaN, +inf, or nothing but -inf.
    total_b = jax.nn.logsumexp(logits_bv, axis=1)
    finite_b = jnp.isfinite(total_b)
    broken_b = jnp.where(drawing_b & ~finite_b, step_b, done.broken_b)
    whole_b = drawing_b & finite_b
    stops_v = np.isin(np.arange(logits_bv.shape[-1]), sampling.stop_ids)
    allowed_bv = logits_bv
    if sampling.min_new and stops_v.any():
        allowed_bv = _without_stops(logits_bv, step_b < sampling.min_new, stops_v)
    keys_b = jax.vmap(jax.random.fold_in)(rows.keys_b, step_b)
    token_b = jnp.where(whole_b, draw(allowed_bv, keys_b, sampling=sampling), 0)
    logit_b = jnp.take_along_axis(logits_bv, token_b[:, None], axis=1)[:, 0]
    stopped_b = whole_b & jnp.asarray(stops_v)[token_b]
    here_bn = whole_b[:, None] & (jnp.arange(sampling.max_new) == step_b[:, None])
    put = lambda old_bn, new_b: jnp.where(here_bn, new_b[:, None], old_bn)
    done = Completions(
        tokens_bn=put(done.tokens_bn, token_b),
        length_b=done.length_b + whole_b,
        stopped_b=done.stopped_b | stopped_b,
        broken_b=broken_b,
        logp_bn=put(done.logp_bn, (logit_b - total_b).astype(jnp.float32)),
    )
    going_on_b = whole_b & ~stopped_b & (step_b + 1 < sampling.max_new)
    alive_b = jnp.where(drawing_b, going_on_b, rows.alive_b)
    steps = drawing_b.astype(jnp.int32) if jnp.ndim(rows.step) else 1
    return replace(rows, step=rows.step + steps, alive_b=alive_b, done=done)


def _without_stops(
    logits_bv: jax.Array, early_b: jax.Array, stops_v: np.ndarray
) -> jax.Array:
    """Logits by which a row that may not end yet draws no stop token."""
    return jnp.where(early_b[:, None] & stops_v, -jnp.inf, logits_bv)


def check_finite(done: Completions, names: Sequence[str | None]) -> None:
    """Raises ValueError for the first row whose logits were not finite, with the row's
    name and the step.

    Args:
      done: on the host.
      names: of the rows; None for one that nobody asked for.
    """
    for name, step in zip(names, np.asarray(done.broken_b), strict=True):
        if name is not None and step >= 0:
            raise ValueError(
                f"sampling {name}: the logits of step {step} (from 0) are not finite, "
                "so there is no next token; a steering "
                "strength, unit or vector that is too large or NaN, weights that are "
                "damaged, or a dtype with too small a range"
            )
