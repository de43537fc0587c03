"""The compiled programs of a sweep: prompts below the edited layer, prompts of arms, and
rows that take the place of others that ended.

All have one shape for a whole sweep, so each is compiled once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sae_attr.hooks import Edit, Site, Within
from sae_attr.lm.cache import KV, Cache, init_cache
from sae_attr.lm.config import LMConfig
from sae_attr.lm.decode import (
    Rows,
    drawn,
    empty_completions,
    next_tokens,
    positions_of,
    slots_of,
)
from sae_attr.lm.draw import Sampling
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.params import weights_dtype
from sae_attr.lm.prompts import Prompts, prompt_lengths
from sae_attr.steering.coordinates import Coordinates
from sae_attr.steering.interventions import intervention


@dataclass(frozen=True)
class Programs:
    """Holds what the programs of a sweep are compiled for.

    Args:
      site: where all rows are steered.
      width: tokens of a prompt, padding included.
      mesh: rows lie over its `data` axis, kv-heads over `model` where that divides
        them.
    """

    cfg: LMConfig
    site: Site
    mode: str
    sampling: Sampling
    width: int
    mesh: Mesh

    @property
    def slots(self) -> int:
        """Tokens that a row may come to hold."""
        return slots_of(self.width, self.sampling)


@struct.dataclass
class Steering:
    """Holds what is done to each row: coordinates, and from which position to which."""

    coordinates: Coordinates
    scope_b: tuple[jax.Array, jax.Array]


@struct.dataclass
class Below:
    """A prompt below the edited layer: keys and values of those layers, and the
    residual `[1, t, d]` that enters it.
    """

    kv: tuple[KV, ...]
    x_btd: jax.Array


@struct.dataclass
class Arms:
    """Prompts under their steering: keys and values of all layers, and the logits
    `[a, v]` of the first new token.
    """

    kv: tuple[KV, ...]
    logits_av: jax.Array


def _edits(programs: Programs, steering: Steering) -> Mapping[Site, Edit]:
    directions_bmd, strengths_bm, sae, latents_bm = steering.coordinates
    edit = intervention(
        directions_bmd,
        strengths_bm,
        mode=programs.mode,
        sae=sae,
        latents_bm=latents_bm,
    )
    return {programs.site: Within(edit, *steering.scope_b)}


@partial(jax.jit, static_argnames="programs")
def read_below(params: Params, prompt: Prompts, *, programs: Programs) -> Below:
    """Reads one prompt up to the edited layer, for all that is done to it there."""
    cfg, start = programs.cfg, programs.site.layer
    cache = init_cache(cfg, rows=1, slots=programs.width, dtype=weights_dtype(params))
    out = forward(
        params,
        prompt.tokens_bt,
        cfg=cfg,
        pos_bt=positions_of(prompt),
        valid_bt=prompt.valid_bt,
        cache=cache,
        span=(0, start),
    )
    assert out.cache is not None
    return Below(out.cache.kv[:start], out.hidden_btd)


@partial(jax.jit, static_argnames="programs")
def read_arms(
    params: Params,
    below: tuple[Below, ...],
    prompts: Prompts,
    steering: Steering,
    *,
    programs: Programs,
) -> Arms:
    """Reads prompts from the edited layer on.

    Args:
      below: one of each arm; arms of one prompt have the same.
      prompts: of the arms, padded on the left.
    """
    cfg, start = programs.cfg, programs.site.layer
    cache = init_cache(
        cfg, rows=len(below), slots=programs.width, dtype=weights_dtype(params)
    )
    out = forward(
        params,
        None,
        cfg=cfg,
        pos_bt=positions_of(prompts),
        valid_bt=prompts.valid_bt,
        cache=cache,
        edits=_edits(programs, steering),
        span=(start, cfg.n_layers),
        x_btd=jnp.concatenate([one.x_btd for one in below]),
    )
    assert out.cache is not None
    join = lambda *parts: jnp.concatenate(parts)
    lower = jax.tree.map(join, *[one.kv for one in below])
    kv = (*lower, *out.cache.kv[start:])
    return Arms(kv, logits(params, out.hidden_btd[:, -1], cfg=cfg))


@partial(jax.jit, static_argnames=("programs", "rows", "dtype"))
def empty_rows(programs: Programs, *, rows: int, dtype: Any) -> Rows:
    """Returns places for rows, all of them free."""
    cache = init_cache(programs.cfg, rows=rows, slots=programs.slots, dtype=dtype)
    shape = (rows, programs.width)
    nothing = Prompts(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))
    empty = Rows(
        cache=replace(cache, used=jnp.full(rows, programs.width, jnp.int32)),
        prompts=nothing,
        keys_b=jax.random.split(jax.random.key(0), rows),
        step=jnp.ones(rows, jnp.int32),
        alive_b=jnp.zeros(rows, bool),
        done=empty_completions(rows, programs.sampling),
    )
    return _laid_out(empty, programs)


def _laid_out(rows: Rows, programs: Programs) -> Rows:
    """The rows where they lie on the mesh, between all programs the same: another
    layout would be another program.
    """
    mesh = programs.mesh
    heads = "model" if programs.cfg.n_kv_heads % mesh.shape["model"] == 0 else None

    def of_rows(x: jax.Array, *axes: str | None) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    kv = jax.tree.map(lambda x: of_rows(x, "data", heads), rows.cache.kv)
    rows = jax.tree.map(
        lambda x: of_rows(x, "data"), replace(rows, cache=replace(rows.cache, kv=None))
    )
    return replace(rows, cache=replace(rows.cache, kv=kv))


@partial(jax.jit, static_argnames="programs", donate_argnames="rows")
def admit(
    rows: Rows,
    arms: Arms,
    prompts: Prompts,
    keys_b: jax.Array,
    fresh_b: jax.Array,
    arm_b: jax.Array,
    *,
    programs: Programs,
) -> Rows:
    """Returns the rows with new ones in free places, and the first token of each.

    Args:
      prompts, keys_b: of all places, those that stay among them.
      fresh_b: which places are taken by a new row.
      arm_b: the arm of each new row.
    """
    behind = ((0, 0), (0, programs.slots - programs.width))
    fresh_b1 = fresh_b[:, None]
    cache = Cache(
        _admitted(rows.cache.kv, arms.kv, fresh_b, arm_b),
        jnp.where(fresh_b1, jnp.pad(positions_of(prompts), behind), rows.cache.pos_bs),
        jnp.where(fresh_b1, jnp.pad(prompts.valid_bt, behind), rows.cache.valid_bs),
        rows.cache.used,
    )

    def renewed(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(fresh_b.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    done = jax.tree.map(
        renewed, empty_completions(len(fresh_b), programs.sampling), rows.done
    )
    drawing_b = fresh_b & (prompt_lengths(prompts) > 0)
    rows = Rows(
        cache=cache,
        prompts=prompts,
        keys_b=keys_b,
        step=jnp.where(fresh_b, 0, rows.step),
        alive_b=rows.alive_b,
        done=done,
    )
    rows = drawn(rows, arms.logits_av[arm_b], drawing_b, sampling=programs.sampling)
    return _laid_out(rows, programs)


def _admitted(
    kv: tuple[KV, ...], of_arms: tuple[KV, ...], fresh_b: jax.Array, arm_b: jax.Array
) -> tuple[KV, ...]:
    """Keys and values with those of its arm in the place of every new row."""
    fresh_first_b = jnp.argsort(~fresh_b, stable=True)

    def place(i: jax.Array, kv: tuple[KV, ...]) -> tuple[KV, ...]:
        b = fresh_first_b[i]
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=arm_b[b], slice_size=1)
        put = lambda old, new: jax.lax.dynamic_update_slice(old, cut(new), (b, 0, 0, 0))
        return jax.tree.map(put, kv, of_arms)

    # Slices in place; whatever else the slots hold is not valid any more.
    return jax.lax.fori_loop(0, jnp.sum(fresh_b), place, kv)


@partial(jax.jit, static_argnames="programs", donate_argnames="rows")
def decode(
    params: Params, rows: Rows, steering: Steering, few: Any, *, programs: Programs
) -> Rows:
    """Draws tokens until no more than `few` rows are left that go on."""
    step = partial(
        next_tokens,
        params,
        cfg=programs.cfg,
        sampling=programs.sampling,
        edits=_edits(programs, steering),
    )

    rows = jax.lax.while_loop(lambda rows: jnp.sum(rows.alive_b) > few, step, rows)
    return _laid_out(rows, programs)
