"""Exact log-probabilities of texts after prompts under many edits: nothing sampled.

One condition is a row of the batch; its edit may change several sites. Three things run
once and serve all that share them: the layers below the first site, for every condition; the tokens with which all
prompts begin (a chat template, a common opening), for every prompt of a condition; and
a prompt, for every text after it. What follows sees them through a cache of keys and
values. Only hidden states that predict a token of a text are unembedded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sae_attr.hooks import Edit, Site
from sae_attr.lm.attention import longest_row
from sae_attr.lm.cache import Cache, init_cache, with_room
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import weights_dtype
from sae_attr.lm.sites import edited_suffix
from sae_attr.steering.continuation_layout import ContinuationLayout
from sae_attr.steering.interventions import scoped

_TOP = 5  # most likely first tokens that `run_unsteered` returns
# Padding up to a multiple of so many tokens, so that prompts of several sets, which have
#   different lengths, share their compiled programs.
_WIDTHS = 32


@struct.dataclass
class Unsteered:
    """Holds what no edit changes, and what the model says without one.

    Args:
      shared_sd, rest_ptd, rows_prcd: residuals that enter layer `start`.
      log_probs_pn: nats, −inf where there is no text.
      top_ids_pm, top_probs_pm: the most likely first tokens, best first.
      start: static; the first layer that an edit may change.
    """

    shared_sd: jax.Array
    rest_ptd: jax.Array
    rows_prcd: jax.Array
    log_probs_pn: jax.Array
    top_ids_pm: jax.Array
    top_probs_pm: jax.Array
    start: int = struct.field(pytree_node=False)


# ---- without an edit -----------------------------------------------------------------


def run_unsteered(
    params: Params, layout: ContinuationLayout, *, cfg: LMConfig, start: int
) -> Unsteered:
    """Runs the model without an edit, once a row of text and all rows of a layout
    together; keeps what enters layer `start`, of `lm.sites.edited_suffix`.

    Raises ValueError for rows whose rotation would depend on their whole length.
    """
    (p, width), shared = layout.rest_pt.shape, len(layout.shared_s)
    _check_rotation(cfg, shared + width + layout.rows_prc.shape[2])
    shared_ps = jnp.broadcast_to(jnp.asarray(layout.shared_s), (p, shared))
    prompts_pt = jnp.concatenate([shared_ps, jnp.asarray(layout.rest_pt)], axis=1)
    padding = _padding(shared + width, layout.rows_prc.shape[2], cfg)
    prompts_pt = jnp.pad(prompts_pt, ((0, 0), (0, padding)))
    parts = (prompts_pt, *_by_prompt(layout)[1:])
    entering_ptd, rows_prcd, *answers = _run_rows(params, parts, cfg=cfg, start=start)
    rest_ptd = entering_ptd[:, shared : shared + width]
    return Unsteered(
        entering_ptd[0, :shared], rest_ptd, rows_prcd, *answers, start=start
    )


def _padding(length: int, behind: int, cfg: LMConfig) -> int:
    """Returns by how many tokens to lengthen prompts that have `behind` tokens behind
    them: up to a multiple, as far as the model can read rows of that length.
    """
    return max(0, min(-length % _WIDTHS, longest_row(cfg) - length - behind))


@partial(jax.jit, static_argnames=("cfg", "start"))
def _run_rows(
    params: Params, parts: tuple[jax.Array, ...], *, cfg: LMConfig, start: int
) -> list[jax.Array]:
    """Returns what enters layer `start` for prompts and for rows of text, and the last
    three fields of `Unsteered`.
    """
    entry = Site(start, "resid_pre")

    def one_prompt(parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        prompt_t, length, rows_rc, row_length_r, *of_texts = parts
        width = len(prompt_t)
        tokens, pos, valid = _whole_rows(prompt_t, length, rows_rc, row_length_r)
        out = forward(
            params, tokens, cfg=cfg, pos_bt=pos, valid_bt=valid, keep=(entry,)
        )
        hidden, entering = out.hidden_btd, out.acts[entry]
        first_logits_v = logits(params, hidden[0, length - 1], cfg=cfg)
        log_probs_1n = _text_log_probs(
            params, hidden[:1, length - 1], hidden[None, :, width:], of_texts, cfg
        )
        top_probs_m, top_ids_m = jax.lax.top_k(
            jax.nn.softmax(first_logits_v), min(_TOP, cfg.vocab)
        )
        of_rows = entering[:, width:]
        return entering[0, :width], of_rows, log_probs_1n[0], top_ids_m, top_probs_m

    # Together: the rows of one prompt alone are too few for a matrix product.
    return list(jax.vmap(one_prompt)(parts))


def _whole_rows(
    prompt_t: jax.Array, length: jax.Array, rows_rc: jax.Array, row_length_r: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns tokens, positions and validity of a padded prompt with each of its rows of
    text, `[r, t + c]` each.
    """
    (r, c), t = rows_rc.shape, len(prompt_t)
    tokens = jnp.concatenate([jnp.tile(prompt_t, (r, 1)), rows_rc], axis=1)
    # A row goes on at the prompt's end, whatever padding lies between.
    pos = jnp.concatenate([jnp.arange(t), length + jnp.arange(c)])
    of_prompt = jnp.broadcast_to(jnp.arange(t) < length, (r, t))
    of_row = jnp.arange(c) < row_length_r[:, None]
    valid = jnp.concatenate([of_prompt, of_row], axis=1)
    return tokens, jnp.broadcast_to(pos, tokens.shape), valid


def _by_prompt(layout: ContinuationLayout) -> tuple[jax.Array, ...]:
    fields = (
        layout.rest_pt,
        layout.length_p,
        layout.rows_prc,
        layout.row_length_pr,
        layout.row_of_pn,
        layout.ids_pnc,
        layout.text_length_pn,
    )
    return tuple(map(jnp.asarray, fields))


def _check_rotation(cfg: LMConfig, length: int) -> None:
    # The cache holds keys as they were rotated; longrope turns them anew in long rows.
    for rope in cfg.ropes:
        if rope.kind == "longrope" and rope.original_len < length:
            raise ValueError(
                f"rows of {length} tokens are longer than the {rope.original_len} up to "
                "which texts after prompts are measured with longrope; shorten the "
                "prompts, or sample"
            )


# ---- with edits ----------------------------------------------------------------------


def read_shared(
    params: Params,
    unsteered: Unsteered,
    edits: Mapping[Site, Edit],
    *,
    cfg: LMConfig,
    tokens: str = "all",
    skip: int = 0,
) -> Cache:
    """Returns the cache of the tokens with which all prompts begin, of every condition.

    Arguments and errors are those of `continuation_log_probs`.
    """
    first, moved = edited_suffix(edits, cfg)
    if first < unsteered.start:
        raise ValueError(
            f"an edit changes layer {first}, but the unsteered run was stored from layer "
            f"{unsteered.start} on; run it with start={first}"
        )
    suffix = _Suffix(cfg, unsteered.start, tokens, skip)
    return _read_shared(params, unsteered.shared_sd, moved, suffix=suffix)


@partial(jax.jit, static_argnames=("suffix",))
def _read_shared(
    params: Params, shared_sd: jax.Array, edits: Mapping[Site, Edit], *, suffix: _Suffix
) -> Cache:
    rows, shared = len(jax.tree.leaves(edits)[0]), len(shared_sd)
    slots = shared + -shared % _WIDTHS
    cache = init_cache(suffix.cfg, rows=rows, slots=slots, dtype=weights_dtype(params))
    # No scope ends among the shared tokens: every prompt is longer.
    _, cache = suffix.run(params, shared_sd[None], 0, shared, cache, edits, shared + 1)
    return cache


def continuation_log_probs(
    params: Params,
    layout: ContinuationLayout,
    unsteered: Unsteered,
    edits: Mapping[Site, Edit],
    shared: Cache | None = None,
    *,
    cfg: LMConfig,
    tokens: str = "all",
    skip: int = 0,
) -> jax.Array:
    """Returns log p(text | prompt) in nats of every text under every edit,
    `[k, p, n]` float32, −inf where a prompt has no such text; pure, and compiled once
    for layouts of equal shapes.

    Args:
      unsteered: from `run_unsteered` with the same weights, up to the first edited
        layer or an earlier one.
      edits: site -> edit; every array in them has the k conditions as its first axis.
      shared: from `read_shared` with the same arguments, of this layout or of one that
        begins with the same tokens; by default it is run here.
      tokens, skip: which positions the edits change, as for `interventions.scope`.

    Raises:
      ValueError: an edit below the layer that `unsteered` starts at.
    """
    if shared is None:
        shared = read_shared(
            params, unsteered, edits, cfg=cfg, tokens=tokens, skip=skip
        )
    _, moved = edited_suffix(edits, cfg)
    suffix = _Suffix(cfg, unsteered.start, tokens, skip)
    parts = (*_by_prompt(layout), unsteered.rest_ptd, unsteered.rows_prcd)
    return _after_shared(params, shared, parts, moved, suffix=suffix)


@partial(jax.jit, static_argnames=("suffix",))
def _after_shared(
    params: Params,
    shared: Cache,
    parts: tuple[jax.Array, ...],
    edits: Mapping[Site, Edit],
    *,
    suffix: _Suffix,
) -> jax.Array:
    """Returns log p of every text under every edit, behind the shared tokens.

    Args:
      parts: of `_by_prompt`, and the residuals of prompts and rows of text.
    """
    begun, (rows, slots) = shared.used, shared.pos_bs.shape
    # The padding of the shared tokens stays between them and the prompts, unseen.
    shared = replace(shared, used=slots)

    def one_prompt(parts: tuple[jax.Array, ...]) -> jax.Array:
        _, length, _, row_length_r, *of_texts = parts[:7]
        rest_td, rows_rcd = parts[7:]
        r, c, _ = rows_rcd.shape
        cache = with_room(shared, len(rest_td) + c)
        hidden_ktd, cache = suffix.run(
            params, rest_td[None], begun, length - begun, cache, edits, length
        )
        last_kd = hidden_ktd[:, length - begun - 1]
        # Condition by condition, each with all its rows.
        hidden_bcd = jnp.tile(rows_rcd, (rows, 1, 1))
        if c:
            hidden_bcd, _ = suffix.run(
                params,
                hidden_bcd,
                length,
                jnp.tile(row_length_r, rows),
                _repeated(cache, r),
                jax.tree.map(lambda x: jnp.repeat(x, r, axis=0), edits),
                length,
            )
        hidden_krcd = hidden_bcd.reshape(rows, r, *hidden_bcd.shape[1:])
        return _text_log_probs(params, last_kd, hidden_krcd, of_texts, suffix.cfg)

    # One prompt at a time: all of them at once would hold k times p rows.
    return jnp.moveaxis(jax.lax.map(one_prompt, parts), 0, 1)


@dataclass(frozen=True)
class _Suffix:
    """The layers from `start` on, with edits, on tokens that follow a cache."""

    cfg: LMConfig
    start: int
    tokens: str
    skip: int

    def run(
        self,
        params: Params,
        x_btd: jax.Array,
        first: Any,
        length_b: Any,
        cache: Cache,
        edits: Mapping[Site, Edit],
        prompt_length: Any,
    ) -> tuple[jax.Array, Cache]:
        """Returns the last layer's residuals, and the cache with the tokens in it.

        Args:
          x_btd: what enters the layers; with b = 1 the same for all rows of the cache.
          first: position of the first of the tokens.
          length_b: how many of them are no padding, `[]` or `[b]`.
          prompt_length: which the steered scope is measured by.
        """
        b, t = len(cache.pos_bs), x_btd.shape[1]
        x_btd = jnp.broadcast_to(x_btd, (b, *x_btd.shape[1:]))
        pos_bt = jnp.broadcast_to(first + jnp.arange(t), (b, t))
        if not t:
            return x_btd, cache
        within = {}
        for site, edit in edits.items():
            within[site] = scoped(edit, self.tokens, prompt_length, skip=self.skip)
        out = forward(
            params,
            None,
            cfg=self.cfg,
            pos_bt=pos_bt,
            valid_bt=jnp.broadcast_to(
                jnp.arange(t) < jnp.reshape(length_b, (-1, 1)), (b, t)
            ),
            cache=cache,
            edits=within,
            span=(self.start, self.cfg.n_layers),
            x_btd=x_btd,
        )
        assert out.cache is not None
        return out.hidden_btd, out.cache


def _repeated(cache: Cache, r: int) -> Cache:
    """Returns a cache in which every row stands r times in succession."""
    kv = jax.tree.map(lambda x: jnp.repeat(x, r, axis=0), cache.kv)
    return Cache(
        kv,
        jnp.repeat(cache.pos_bs, r, axis=0),
        jnp.repeat(cache.valid_bs, r, axis=0),
        cache.used,
    )


# ---- probabilities -------------------------------------------------------------------


def _text_log_probs(
    params: Params,
    last_kd: jax.Array,
    hidden_krcd: jax.Array,
    texts: Sequence[jax.Array],
    cfg: LMConfig,
) -> jax.Array:
    """Returns log p of a prompt's texts `[k, n]`.

    Args:
      last_kd: the prompt's last hidden state, which predicts all first tokens.
      hidden_krcd: those of the rows of text.
      texts: `row_of_n`, `ids_nc`, `length_n`.
    """
    row_of_n, ids_nc, length_n = texts
    first_kn = _token_log_probs(params, last_kd, ids_nc[:, 0], cfg)
    _, r, c, _ = hidden_krcd.shape

    def one_place(place: jax.Array) -> jax.Array:
        row, step = place // c, place % c
        log_probs_kn = _token_log_probs(
            params, hidden_krcd[:, row, step], ids_nc[:, step + 1], cfg
        )
        counts_n = (row_of_n == row) & (step + 1 < length_n)
        return jnp.where(counts_n, log_probs_kn, 0.0)

    total_kn = first_kn
    if c:
        # One place at a time: a vocabulary's logits of all at once may be gigabytes.
        total_kn += jnp.sum(jax.lax.map(one_place, jnp.arange(r * c)), axis=0)
    return jnp.where(length_n > 0, total_kn, -jnp.inf)


def _token_log_probs(
    params: Params, hidden_kd: jax.Array, ids_n: jax.Array, cfg: LMConfig
) -> jax.Array:
    """Returns log p of next tokens `[k, n]`."""
    logits_kv = logits(params, hidden_kd, cfg=cfg)
    return logits_kv[:, ids_n] - jax.nn.logsumexp(logits_kv, axis=-1, keepdims=True)
