"""Exact mean ablation of some latents from a prefix that ran once: the reference that
approximations are judged by.

One position (`where_bt` with one True in a row) and all positions jointly are two
quantities. The joint one contains what positions do to each other through attention,
which no sum of single ones does, so the two are never mixed in one correlation.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae_attr.hooks import Add, Chain, Edit, SetProjection, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import completion_loss, target_nll
from sae_attr.lm.model import Params, forward
from sae_attr.lm.sites import suffix_start
from sae_attr.text.batching import RowBatch


@struct.dataclass
class Ablation:
    """Per row (and latent): the exact ΔL and what first order said, all in nats.

    `dloss`: L(ablated) − L. `first_order`: Σ over the ablated positions of δ.
    `end_slope`: the same product with the gradient at the ablated end, so a loss that
    is linear along the way has all three equal. `push`, `end_push`: Σ −g·d at both
    ends.
    """

    dloss: jax.Array
    first_order: jax.Array
    end_slope: jax.Array
    push: jax.Array
    end_push: jax.Array


def run_prefix(
    params: Params,
    batch: RowBatch,
    *,
    cfg: LMConfig,
    site: Site,
    keep: tuple[Site, ...] = (),
) -> tuple[jax.Array, dict[Site, jax.Array]]:
    """Runs the layers below a site once: the residual `[b, t, d]` that enters its suffix,
    reused for every latent, and kept sites.
    """
    start, _ = suffix_start(site, cfg)
    out = forward(
        params,
        batch.tokens_bt,
        cfg=cfg,
        valid_bt=batch.valid_bt,
        keep=keep,
        span=(0, start),
    )
    return out.hidden_btd, out.acts


def suffix_loss(
    params: Params,
    x_btd: jax.Array,
    batch: RowBatch,
    edit: Edit,
    *,
    cfg: LMConfig,
    site: Site,
    loss: str = "sum",
) -> jax.Array:
    """Returns L(C) per row `[b]` from a stored prefix, with an edit at the site."""
    nll_bc = suffix_nll(params, x_btd, batch, edit, cfg=cfg, site=site)
    return completion_loss(nll_bc, batch.target_valid_bc, loss)


def suffix_nll(
    params: Params,
    x_btd: jax.Array,
    batch: RowBatch,
    edit: Edit,
    *,
    cfg: LMConfig,
    site: Site,
) -> jax.Array:
    """Returns nats of the completion's tokens `[b, c]` from a stored prefix, with an edit
    at the site.
    """
    start, at = suffix_start(site, cfg)
    hidden_btd = forward(
        params,
        None,
        cfg=cfg,
        valid_bt=batch.valid_bt,
        edits={at: edit},
        span=(start, cfg.n_layers),
        x_btd=x_btd,
    ).hidden_btd
    return target_nll(
        params,
        hidden_btd,
        batch.tokens_bt,
        batch.target_bc,
        batch.target_valid_bc,
        cfg=cfg,
    )


@struct.dataclass
class Unablated:
    """Holds what ablations of one batch share: the stored prefix, and activation,
    gradient and loss without an edit.
    """

    x_btd: jax.Array
    acts_btd: jax.Array
    grads_btd: jax.Array
    loss_b: jax.Array


def run_unablated(
    params: Params, batch: RowBatch, *, cfg: LMConfig, site: Site, loss: str = "sum"
) -> Unablated:
    """Runs one prefix and one suffix, forward and backward: all that the ablations of a
    batch start from.
    """
    x_btd, _ = run_prefix(params, batch, cfg=cfg, site=site)

    def plain(shift_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = suffix_loss(
            params, x_btd, batch, Add(shift_btd), cfg=cfg, site=site, loss=loss
        )
        return losses.sum(), losses

    shape = (*batch.tokens_bt.shape, cfg.width(site.point))
    grads_btd, loss_b = jax.grad(plain, has_aux=True)(jnp.zeros(shape, x_btd.dtype))
    acts_btd = _site_of(params, x_btd, batch, cfg=cfg, site=site)
    return Unablated(x_btd, acts_btd, grads_btd, loss_b)


def ablate_rows(
    params: Params,
    plain: Unablated,
    batch: RowBatch,
    directions_bd: jax.Array,
    mean_d: jax.Array,
    where_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    loss: str = "sum",
) -> Ablation:
    """Ablates one direction per row to the mean at the positions `where_bt`: `[b]` fields.

    Args:
      directions_bd: unit direction of every row.
      mean_d: ā; a_t · d becomes ā · d.
      where_bt: positions that are ablated, jointly.
    """
    # At default precision a TPU would round both factors to bf16, and the losses that
    # are compared differ little.
    project = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    gap_bt = project("btd,bd->bt", mean_d - plain.acts_btd, directions_bd) * where_bt
    mean_projection_b = project("d,bd->b", mean_d, directions_bd)
    ablate = SetProjection(directions_bd, mean_projection_b, where_bt)

    def edited(shift_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
        edit = Chain((ablate, Add(shift_btd)))
        losses = suffix_loss(
            params, plain.x_btd, batch, edit, cfg=cfg, site=site, loss=loss
        )
        return losses.sum(), losses

    zero_btd = jnp.zeros_like(plain.acts_btd)
    end_grads_btd, end_loss_b = jax.grad(edited, has_aux=True)(zero_btd)

    def slopes(grads: jax.Array) -> tuple[jax.Array, jax.Array]:
        push_bt = project("btd,bd->bt", grads, directions_bd) * where_bt
        return jnp.sum(push_bt * gap_bt, 1), -jnp.sum(push_bt, 1)

    first_order_b, push_b = slopes(plain.grads_btd)
    end_slope_b, end_push_b = slopes(end_grads_btd)
    return Ablation(
        dloss=end_loss_b - plain.loss_b,
        first_order=first_order_b,
        end_slope=end_slope_b,
        push=push_b,
        end_push=end_push_b,
    )


def row_ablation(
    params: Params,
    batch: RowBatch,
    directions_bd: jax.Array,
    mean_d: jax.Array,
    where_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    loss: str = "sum",
) -> Ablation:
    """Ablates one direction per row to the mean, fields `[b]`; with one True per row this
    is ΔL_{i,t} of single positions.
    """
    plain = run_unablated(params, batch, cfg=cfg, site=site, loss=loss)
    return ablate_rows(
        params,
        plain,
        batch,
        directions_bd,
        mean_d,
        where_bt,
        cfg=cfg,
        site=site,
        loss=loss,
    )


def exact_ablation(
    params: Params,
    batch: RowBatch,
    dec_kd: jax.Array,
    mean_d: jax.Array,
    where_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
    loss: str = "sum",
) -> Ablation:
    """Ablates each of k latents to the mean, jointly at all positions `where_bt`: fields
    `[b, k]`.

    The prefix runs once, the suffix once per latent; one compiled program serves any
    latents.

    Args:
      dec_kd: unit decoder rows of the latents.
    """
    plain = run_unablated(params, batch, cfg=cfg, site=site, loss=loss)

    def one(direction_d: jax.Array) -> Ablation:
        shape = (len(plain.loss_b), len(direction_d))
        directions_bd = jnp.broadcast_to(direction_d, shape)
        return ablate_rows(
            params,
            plain,
            batch,
            directions_bd,
            mean_d,
            where_bt,
            cfg=cfg,
            site=site,
            loss=loss,
        )

    by_latent = jax.lax.map(one, dec_kd)
    return jax.tree.map(lambda x_kb: x_kb.T, by_latent)


def _site_of(
    params: Params, x_btd: jax.Array, batch: RowBatch, *, cfg: LMConfig, site: Site
) -> jax.Array:
    """The site's activation from the stored prefix: the prefix itself, or one block
    further.
    """
    start, at = suffix_start(site, cfg)
    if at != site:
        return x_btd
    span = (start, start + 1)
    return forward(
        params,
        None,
        cfg=cfg,
        valid_bt=batch.valid_bt,
        keep=(site,),
        span=span,
        x_btd=x_btd,
    ).acts[site]


def taylor_fails(
    dloss: np.ndarray, first_order: np.ndarray, *, tolerance: float = 0.5
) -> np.ndarray:
    """Finds where the first-order step is off by more than `tolerance` of the larger of
    the two numbers, or has another sign.
    """
    # A step of another sign is off by more than the larger of the two, so it needs no
    # test of its own while `tolerance` is below 1.
    scale = np.maximum(np.abs(dloss), np.abs(first_order))
    # Two zeros agree.
    limit = tolerance * np.where(scale > 0, scale, np.inf)
    return np.abs(dloss - first_order) > limit
