"""How far latents of a crosscoder take the base model's activations to the fine-tuned
model's predictions (arXiv:2504.02922, section 4).

    h_S = h_base + Σ_{j in S} f_j (d_j^ft - d_j^base)      KL(p_ft ‖ p of the fine-tuned model with h_S)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Replace, Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits
from sae_attr.lm.sites import edited_suffix
from sae_attr.sae.metrics import bare
from sae_attr.sae.model import SAE, encode
from sae_attr.sae.two_models import BASE, FINE_TUNED, check_two_models


def patch_kl(
    params: Params,
    sae: SAE,
    tokens_bt: Any,
    x_btmd: Any,
    counted_bt: Any,
    sets_sn: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> np.ndarray:
    """Returns the KL divergence, nats, of every position under every set of latents,
    `[s, b, t]`; the prefix runs once for all sets.

    Args:
      params: of the fine-tuned model.
      sae: a crosscoder of two models.
      tokens_bt: right-padded rows.
      x_btmd: activations of both models at the site, `[b, t, 2, d]`.
      counted_bt: positions whose activation is replaced; elsewhere it is the fine-tuned
        model's own.
      sets_sn: bool, the latents of every set; none gives the base model's activation.

    Raises:
      ValueError: no crosscoder of two models.
    """
    check_two_models(sae.cfg)
    arrays = map(jnp.asarray, (tokens_bt, x_btmd, counted_bt, sets_sn))
    return np.asarray(_patch_kl(params, bare(sae), *arrays, cfg=cfg, site=site))


@partial(jax.jit, static_argnames=("cfg", "site"))
def _patch_kl(
    params: Params,
    sae: SAE,
    tokens_bt: jax.Array,
    x_btmd: jax.Array,
    counted_bt: jax.Array,
    sets_sn: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
) -> jax.Array:
    rows_nmd = sae.dec_nm.reshape(sae.cfg.n_latents, 2, -1)
    change_nd = rows_nmd[:, FINE_TUNED] - rows_nmd[:, BASE]
    codes_btn = encode(sae, x_btmd)
    fine_tuned = Replace(x_btmd[:, :, FINE_TUNED], counted_bt)
    start, moved = edited_suffix({site: fine_tuned}, cfg)
    (place,) = moved
    before_btd = forward(params, tokens_bt, cfg=cfg, span=(0, start)).hidden_btd

    def log_probs(x_btd: jax.Array) -> jax.Array:
        hidden_btd = forward(
            params,
            None,
            cfg=cfg,
            edits={place: Replace(x_btd, counted_bt)},
            span=(start, cfg.n_layers),
            x_btd=before_btd,
        ).hidden_btd
        return jax.nn.log_softmax(logits(params, hidden_btd, cfg=cfg), axis=-1)

    tuned_btv = log_probs(x_btmd[:, :, FINE_TUNED])

    def one_set(set_n: jax.Array) -> jax.Array:
        part_btn = jnp.where(set_n, codes_btn, 0)
        change_btd = jnp.matmul(part_btn, change_nd, precision="highest")
        patched_btv = log_probs(x_btmd[:, :, BASE] + change_btd)
        ratio_btv = tuned_btv - patched_btv
        return jnp.sum(jnp.exp(tuned_btv) * ratio_btv, axis=-1)

    # One set at a time: logits of all at once would not fit.
    return jax.lax.map(one_set, sets_sn)
