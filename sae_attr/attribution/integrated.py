"""Integrated gradients: g_t averaged along a line from the mean to the activation, in
two forms that are never mixed.

Joint (Sundararajan 2017; Marks 2024): every coordinate of every chosen position moves
together from ā to a_t. Per latent: only the latent's own projection moves, at all
chosen positions together. Both are completed by the loss at the two ends:

    joint        −Σ_t g̃_t · (a_t − ā)             →  L(ā at all t) − L
    per latent   −Σ_t (g̃_t·d_i) ((a_t − ā)·d_i)   →  L(a_t·d_i ← ā·d_i at all t) − L

as steps grow. The second end is the exact joint mean ablation of one latent, so the
per-latent form approximates it; the joint form, whose line moves everything else too,
does not. g̃ is the mean of g over the midpoints (k + ½) / steps of the line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.attribution.ablation import run_prefix, suffix_nll
from sae_attr.attribution.gradients import SiteGradients
from sae_attr.hooks import Add, Chain, Edit, Lerp, SetProjection, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import completion_loss
from sae_attr.lm.model import Params, forward
from sae_attr.lm.sites import suffix_start
from sae_attr.text.batching import RowBatch


@dataclass(frozen=True)
class Path:
    """The line of the joint form: from `mean_d`, in `steps` midpoints, at the positions
    `where(batch, row_b)` `[b, t]`.
    """

    mean_d: np.ndarray
    where: Callable[[RowBatch, np.ndarray], np.ndarray]
    steps: int = 10


@struct.dataclass
class LatentPaths:
    """Holds, for every latent of the method, `[b, t, k]`: `push`, the mean of −g·d
    along its own line, and `presence`, (a − ā)·d.

    Both are 0 at positions that do not move. δ of the per-latent form is their product.
    """

    push_btk: jax.Array
    presence_btk: jax.Array

    @property
    def delta_btk(self) -> jax.Array:
        """−(g̃_t·d_i) ((a_t − ā)·d_i)."""
        return self.push_btk * self.presence_btk


def midpoints(steps: int) -> jax.Array:
    """Returns (k + ½) / steps; raises ValueError for fewer than one step."""
    if steps < 1:
        raise ValueError(f"integrated gradients with {steps} steps; take at least 1")
    return (jnp.arange(steps) + 0.5) / steps


def integrated_gradients(
    params: Params,
    batch: RowBatch,
    mean_d: jax.Array,
    where_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    steps: int = 10,
    loss: str = "sum",
    read: tuple[Site, ...] = (),
) -> SiteGradients:
    """Computes the joint form, in the place of `act_and_grad`: a_t, g̃_t and the
    unedited nll of every row.

    The prefix runs once, the suffix forward and backward once a step; steps are summed
    in a loop, so memory does not grow with them.

    Args:
      mean_d: ā, where the line begins.
      where_bt: positions that move, together. Gradients elsewhere are averaged along
        the same line, without moving there.
      steps: midpoints of the line.
      read: further sites whose activations alone are returned, not above the site's
        layer.

    Raises:
      ValueError: fewer than one step; as `act_and_grad`.
    """
    x_btd, acts = _prefix(params, batch, cfg=cfg, site=site, read=read)
    nll = partial(suffix_nll, params, x_btd, batch, cfg=cfg, site=site)
    zero_btd = jnp.zeros_like(acts[site])

    def point_on_line(alpha: jax.Array) -> Edit:
        # alpha = 0 is ā, alpha = 1 the activation; `Lerp` counts from the activation.
        return Lerp(mean_d, 1 - alpha, where_bt)

    def loss_of_rows(edit: Edit) -> jax.Array:
        return completion_loss(nll(edit), batch.target_valid_bc, loss).sum()

    total_btd = _gradient_sum(point_on_line, loss_of_rows, zero_btd, steps)
    unedited_nll_bc = nll(Add(zero_btd))
    return SiteGradients(acts, {site: total_btd / steps}, unedited_nll_bc)


def integrated_latents(
    params: Params,
    batch: RowBatch,
    dec_kd: jax.Array,
    mean_d: jax.Array,
    where_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    steps: int = 10,
    loss: str = "sum",
) -> LatentPaths:
    """Computes the per-latent form for k latents: k · steps suffixes forward and
    backward, so for candidates only.

    Args:
      dec_kd: unit decoder rows of the chosen latents.
      mean_d: ā; latent i's projection moves from ā·d_i to a_t·d_i.
      where_bt: positions that move, together.
    """
    x_btd, acts = _prefix(params, batch, cfg=cfg, site=site, read=())
    project = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    nll = partial(suffix_nll, params, x_btd, batch, cfg=cfg, site=site)
    zero_btd = jnp.zeros_like(acts[site])

    def loss_of_rows(edit: Edit) -> jax.Array:
        return completion_loss(nll(edit), batch.target_valid_bc, loss).sum()

    def one(direction_d: jax.Array) -> tuple[jax.Array, jax.Array]:
        presence_bt = project("btd,d->bt", acts[site] - mean_d, direction_d)
        start = project("d,d->", mean_d, direction_d)

        def point_on_line(alpha: jax.Array) -> Edit:
            value_bt = start + alpha * presence_bt
            return SetProjection(direction_d, value_bt, where_bt)

        total_btd = _gradient_sum(point_on_line, loss_of_rows, zero_btd, steps)
        push_bt = -project("btd,d->bt", total_btd, direction_d) / steps
        return push_bt * where_bt, presence_bt * where_bt

    # A loop over latents, not a vmap: each has a line and suffixes of its own, and a vmap
    # would need k times the memory.
    push_kbt, presence_kbt = jax.lax.map(one, dec_kd)
    return LatentPaths(jnp.moveaxis(push_kbt, 0, -1), jnp.moveaxis(presence_kbt, 0, -1))


def _gradient_sum(
    edit: Callable[[jax.Array], Edit],
    value: Callable[[Edit], jax.Array],
    zero_btd: jax.Array,
    steps: int,
) -> jax.Array:
    """Σ over the midpoints of the gradient at the edited activation."""

    def add(total_btd: jax.Array, alpha: jax.Array) -> tuple[jax.Array, None]:
        moved = edit(alpha)

        # The zero is added after the move: before it, the gradient would be scaled by
        # how much of the activation the move keeps.
        def shifted(shift_btd: jax.Array) -> jax.Array:
            return value(Chain((moved, Add(shift_btd))))

        return total_btd + jax.grad(shifted)(zero_btd), None

    return jax.lax.scan(add, zero_btd, midpoints(steps).astype(zero_btd.dtype))[0]


def _prefix(
    params: Params,
    batch: RowBatch,
    *,
    cfg: LMConfig,
    site: Site,
    read: tuple[Site, ...],
) -> tuple[jax.Array, dict[Site, jax.Array]]:
    """The residual that enters the suffix, and the activations of the site and of the
    sites that are read.
    """
    start, at = suffix_start(site, cfg)
    below = tuple(s for s in read if s.layer < start)
    inside = tuple(s for s in read if s.layer >= start)
    x_btd, acts = run_prefix(params, batch, cfg=cfg, site=site, keep=below)
    if at == site:
        inside = (site, *inside)
    else:
        acts[site] = x_btd  # the site is what enters the suffix
    if not inside:
        return x_btd, acts

    span = (start, max(s.layer for s in inside) + 1)
    out = forward(
        params,
        None,
        cfg=cfg,
        valid_bt=batch.valid_bt,
        keep=inside,
        span=span,
        x_btd=x_btd,
    )
    return x_btd, acts | out.acts
