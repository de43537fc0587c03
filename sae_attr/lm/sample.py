"""Sampling from a language model with a cache of keys and values, row by row
reproducible.

Prompts of one batch are padded on the left. So the newest token of every row lies in
the same slot: a step writes one slice of the cache (per-row slots would need a
scatter), the logits of all prompts are those of the last slot, and nothing but masked
slots lies between a prompt and its completion. Positions are counted per row, from its
first token, so that padding changes no number beyond float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from sae_attr.hooks import Edit, Site
from sae_attr.lm.cache import Cache, init_cache, outgrown
from sae_attr.lm.config import LMConfig
from sae_attr.lm.draw import Sampling, draw
from sae_attr.lm.model import Params, forward, logits


@struct.dataclass
class Prompts:
    """Prompts of different lengths: `tokens_bt` int32, and `valid_bt`, True at the
    tokens of each row, which lie together.

    Where they lie does not matter. A row without a token is none, and gets an empty
    completion.
    """

    tokens_bt: Any
    valid_bt: Any


@struct.dataclass
class Completions:
    """What was drawn; n is `Sampling.max_new`.

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


def prompt_width(
    lengths: Sequence[int], *, cfg: LMConfig, sampling: Sampling, multiple: int = 16
) -> int:
    """Returns the slots for prompts of these lengths: the longest, rounded up so that
    few shapes are compiled.

    Where that and `max_new` would pass a model's learned positions, as many slots as
    those leave.
    """
    longest = max(lengths, default=0)
    width = -(-longest // multiple) * multiple
    room = cfg.max_len - sampling.max_new + 1
    return max(longest, min(width, room)) if cfg.learned_pos else width


def make_prompts(
    rows: Sequence[Sequence[int]], *, width: int | None = None, multiple: int = 16
) -> Prompts:
    """Packs token lists into one batch of numpy arrays, padded on the left.

    Args:
      rows: token ids; an empty list makes a row that is none.
      width: slots; None takes the longest row, rounded up to `multiple`, so that few
        shapes are compiled.

    Raises:
      ValueError: no row, or one that is longer than `width`.
    """
    longest = max((len(row) for row in rows), default=0)
    if not longest:
        raise ValueError(
            "no prompt has a token; begin a prompt with BOS where there is no text"
        )
    width = -(-longest // multiple) * multiple if width is None else width
    if longest > width:
        raise ValueError(
            f"a prompt of {longest} tokens does not fit a width of {width}; make it "
            "wider"
        )
    tokens_bt = np.zeros((len(rows), width), np.int32)
    valid_bt = np.zeros((len(rows), width), bool)
    for b, row in enumerate(rows):
        tokens_bt[b, width - len(row) :] = row
        valid_bt[b, width - len(row) :] = True
    return Prompts(tokens_bt, valid_bt)


def prompt_lengths(prompts: Prompts) -> jax.Array:
    """Counts the tokens of each prompt, `[b]`; also the position of the first
    generated token.
    """
    return jnp.sum(jnp.asarray(prompts.valid_bt), axis=1, dtype=jnp.int32)


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
    _check(cfg, sampling, (b, width), keys_b)
    check_prompts(cfg, prompts)
    prompts = _to_the_right(prompts)
    length_b = prompt_lengths(prompts)
    slots = width + sampling.max_new - 1  # the last drawn token is never read
    tokens_bs = jnp.pad(prompts.tokens_bt, ((0, 0), (0, slots - width)))
    read = partial(_read, params, cfg=cfg, edits=edits, start_b=width - length_b)
    cache = init_cache(cfg, rows=b, slots=slots, dtype=params["embed"]["table"].dtype)
    cache, logits_bv = read(tokens_bs, cache, 0, width)
    state = _drawn(_empty(cache, length_b > 0, sampling), logits_bv, keys_b, sampling)

    def step(state: _State) -> _State:
        drawn_bn = state.done.tokens_bn[:, : slots - width]
        all_bs = jax.lax.dynamic_update_slice(tokens_bs, drawn_bn, (0, width))
        now_b = jnp.where(state.alive_b, length_b + state.step, 0)
        again = outgrown(cfg, now_b, slots=slots)
        end = width + state.step  # of the tokens so far, in slots
        cache, logits_bv = _read_newest(read, all_bs, state.cache, end, again)
        return _drawn(replace(state, cache=cache), logits_bv, keys_b, sampling)

    more = lambda state: (state.step < sampling.max_new) & jnp.any(state.alive_b)
    done = jax.lax.while_loop(more, step, state).done
    if not isinstance(done.broken_b, Tracer):
        check_finite(done, [f"row {i}" for i in range(b)])
    return done


def _read_newest(
    read: Callable[..., tuple[Cache, jax.Array]],
    tokens_bs: jax.Array,
    cache: Cache,
    end: jax.Array,
    again: jax.Array | None,
) -> tuple[Cache, jax.Array]:
    """Reads the token before slot `end`, or all tokens where a row has outgrown what
    the cache holds of it (`again`).
    """
    newest = lambda: read(tokens_bs, cache, end - 1, 1)
    if again is None:
        return newest()
    empty = replace(cache, used=jnp.zeros_like(end))
    anew = lambda: read(tokens_bs, empty, 0, tokens_bs.shape[1], until=end)
    return jax.lax.cond(again, anew, newest)


def _read(
    params: Params,
    tokens_bs: jax.Array,
    cache: Cache,
    slot: Any,
    count: int,
    until: Any = None,
    *,
    cfg: LMConfig,
    edits: Mapping[Site, Edit] | None,
    start_b: jax.Array,
) -> tuple[Cache, jax.Array]:
    """Reads `count` slots from `slot` on into the cache; returns it with the logits
    after the last one before `until`.

    `start_b` is the slot of each row's first token.
    """
    until = slot + count if until is None else until
    tokens_bt = jax.lax.dynamic_slice_in_dim(tokens_bs, slot, count, axis=1)
    slot_t = slot + jnp.arange(count)
    pos_bt = slot_t - start_b[:, None]
    valid_bt = (slot_t >= start_b[:, None]) & (slot_t < until)
    out = forward(
        params,
        tokens_bt,
        cfg=cfg,
        pos_bt=jnp.where(valid_bt, pos_bt, 0),
        valid_bt=valid_bt,
        cache=cache,
        edits=edits,
    )
    last_bd = jax.lax.dynamic_index_in_dim(
        out.hidden_btd, until - slot - 1, axis=1, keepdims=False
    )
    assert out.cache is not None
    cache = replace(out.cache, used=jnp.asarray(until, jnp.int32))
    return cache, logits(params, last_bd, cfg=cfg)


@struct.dataclass
class _State:
    """`step` tokens were drawn of every row that is alive; all but the last of them are
    in the cache.
    """

    cache: Cache
    step: jax.Array
    alive_b: jax.Array
    done: Completions


def _empty(cache: Cache, alive_b: jax.Array, sampling: Sampling) -> _State:
    b = len(alive_b)
    zeros = lambda *shape, dtype: jnp.zeros(shape, dtype)
    done = Completions(
        tokens_bn=zeros(b, sampling.max_new, dtype=jnp.int32),
        length_b=zeros(b, dtype=jnp.int32),
        stopped_b=zeros(b, dtype=bool),
        broken_b=jnp.full(b, -1, jnp.int32),
        logp_bn=zeros(b, sampling.max_new, dtype=jnp.float32),
    )
    return _State(cache, zeros(dtype=jnp.int32), alive_b, done)


def _drawn(
    state: _State, logits_bv: jax.Array, keys_b: jax.Array, sampling: Sampling
) -> _State:
    """The state after one more token of every living row; a row without finite logits
    ends, and draws none.
    """
    # Not finite where there is a NaN, +inf, or nothing but -inf.
    total_b = jax.nn.logsumexp(logits_bv, axis=1)
    finite_b = jnp.isfinite(total_b)
    broken_b = jnp.where(state.alive_b & ~finite_b, state.step, state.done.broken_b)
    state = replace(state, alive_b=state.alive_b & finite_b)
    allowed_bv = logits_bv
    stops_v = np.isin(np.arange(logits_bv.shape[-1]), sampling.stop_ids)
    if sampling.min_new and stops_v.any():
        allowed_bv = jnp.where(
            (state.step < sampling.min_new) & stops_v, -jnp.inf, logits_bv
        )
    keys_b = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys_b)
    token_b = jnp.where(state.alive_b, draw(allowed_bv, keys_b, sampling=sampling), 0)
    logit_b = jnp.take_along_axis(logits_bv, token_b[:, None], axis=1)[:, 0]
    logp_b = logit_b - total_b
    stopped_b = state.alive_b & jnp.asarray(stops_v)[token_b]
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
        old, new.astype(old.dtype)[:, None], state.step, axis=1
    )
    done = Completions(
        tokens_bn=put(state.done.tokens_bn, token_b),
        length_b=state.done.length_b + state.alive_b,
        stopped_b=state.done.stopped_b | stopped_b,
        broken_b=broken_b,
        logp_bn=put(state.done.logp_bn, jnp.where(state.alive_b, logp_b, 0)),
    )
    return _State(state.cache, state.step + 1, state.alive_b & ~stopped_b, done)


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


def _check(
    cfg: LMConfig, sampling: Sampling, shape: tuple[int, int], keys_b: jax.Array
) -> None:
    if max(sampling.stop_ids, default=0) >= cfg.vocab:
        raise ValueError(
            f"stop id {max(sampling.stop_ids)} is beyond the model's vocabulary of "
            f"{cfg.vocab}"
        )
    if cfg.learned_pos and shape[1] + sampling.max_new - 1 > cfg.max_len:
        raise ValueError(
            f"prompts of up to {shape[1]} tokens and {sampling.max_new} new ones are "
            f"longer than the {cfg.max_len} learned "
            "positions of the model; shorten them, lower max_new, or give make_prompts "
            "the exact width"
        )
    if jnp.shape(keys_b) != shape[:1] or not jnp.issubdtype(
        keys_b.dtype, jax.dtypes.prng_key
    ):
        raise ValueError(
            f"keys of shape {jnp.shape(keys_b)} and type {keys_b.dtype} for {shape[0]} "
            "prompts; give one typed key a row: "
            "jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), row_ids)"
        )


def check_prompts(cfg: LMConfig, prompts: Prompts) -> None:
    """Raises ValueError for token ids that the embedding lacks; a gather would take
    another row without a word.

    Within jit there is nothing to look at.
    """
    if isinstance(prompts.tokens_bt, Tracer):
        return
    tokens_bt = np.asarray(prompts.tokens_bt)
    wrong_bt = (tokens_bt < 0) | (tokens_bt >= cfg.vocab)
    if wrong_bt.any():
        row, place = (int(i) for i in np.argwhere(wrong_bt)[0])
        raise ValueError(
            f"row {row} has token id {int(prompts.tokens_bt[row, place])}, beyond the "
            f"model's embedding of {cfg.vocab} rows"
        )


def _to_the_right(prompts: Prompts) -> Prompts:
    """The same rows with padding on their left only, wherever it was."""
    tokens_bt = jnp.asarray(prompts.tokens_bt)
    valid_bt = jnp.asarray(prompts.valid_bt, bool)
    behind_b = jnp.argmax(valid_bt[:, ::-1], axis=1)
    index_bt = (jnp.arange(valid_bt.shape[1]) - behind_b[:, None]) % valid_bt.shape[1]
    moved = partial(jnp.take_along_axis, indices=index_bt, axis=1)
    return Prompts(moved(tokens_bt), moved(valid_bt))
