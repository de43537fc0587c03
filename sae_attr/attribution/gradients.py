"""Activations and gradients at sites: one forward pass, and a backward pass that stops
at the lowest site.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from sae_attr.hooks import Add, Edit, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import check_loss, completion_loss, target_nll
from sae_attr.lm.lrp import PLAIN, Rules
from sae_attr.lm.model import Params, forward
from sae_attr.text.batching import RowBatch


@struct.dataclass
class SiteGradients:
    """Per site `acts` and `grads` `[b, t, d]` (sites that are only read have no grads),
    and `nll_bc` in nats.
    """

    acts: dict[Site, jax.Array]
    grads: dict[Site, jax.Array]
    nll_bc: jax.Array


def act_and_grad(
    params: Params,
    batch: RowBatch,
    *,
    cfg: LMConfig,
    sites: tuple[Site, ...],
    loss: str = "sum",
    edits: Mapping[Site, Edit] | None = None,
    remat: bool = False,
    unroll: bool = False,
    rules: Rules = PLAIN,
    read: tuple[Site, ...] = (),
) -> SiteGradients:
    """Computes a_t and g_t = dL(C)/da_t at the sites, for every row by itself.

    The gradient is taken with respect to a zero that is added at each site, so nothing
    below the lowest site is differentiated and no parameter gradient exists.

    Args:
      batch: rows of prompt + completion; losses of rows are summed, so rows do not mix.
      sites: several sites cost one backward pass; an upper site's gradient is its own
        total derivative.
      loss: `sum` over the completion's tokens, or `mean`.
      edits: interventions that are in force while the gradient is taken, at other sites
        than `sites`.
      remat: recompute blocks in the backward pass: less memory, about a third more
        operations.
      rules: backward rules, a set of `sae_attr.lm.lrp.RULES`; with them g_t is what
        RelP propagates instead.
      read: further sites whose activations alone are returned, for instance a
        transcoder's input.

    Raises:
      ValueError: unknown loss, a site outside the model, or an edit at one of `sites`.
    """
    check_loss(loss)
    edits = dict(edits or {})
    both = sorted(set(edits) & set(sites))
    if both:
        raise ValueError(
            f"site {both[0]} is edited and differentiated at once; give the edit "
            "another site"
        )
    b, t = batch.tokens_bt.shape
    zeros = {
        site: jnp.zeros((b, t, cfg.width(site.point)), cfg.resid_dtype)
        for site in sites
    }

    def total(
        shift: dict[Site, jax.Array],
    ) -> tuple[jax.Array, tuple[dict[Site, jax.Array], jax.Array]]:
        adds = {site: Add(x_btd) for site, x_btd in shift.items()}
        out = forward(
            params,
            batch.tokens_bt,
            cfg=cfg,
            valid_bt=batch.valid_bt,
            edits={**edits, **adds},
            keep=(*sites, *read),
            remat=remat,
            unroll=unroll,
            rules=rules,
        )
        nll_bc = target_nll(
            params,
            out.hidden_btd,
            batch.tokens_bt,
            batch.target_bc,
            batch.target_valid_bc,
            cfg=cfg,
            rules=rules,
        )
        return jnp.sum(completion_loss(nll_bc, batch.target_valid_bc, loss)), (
            out.acts,
            nll_bc,
        )

    grads, (acts, nll_bc) = jax.grad(total, has_aux=True)(zeros)
    return SiteGradients(acts, grads, nll_bc)
