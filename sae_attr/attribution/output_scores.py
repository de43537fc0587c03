"""Scores by what a latent does to the next token when it is added: the output score of
Arad et al. (arXiv:2505.20063) and the change of the model's confidence.

Each costs one short forward pass per latent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.hooks import Add, Site
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward, logits, unembedding
from sae_attr.lm.sites import edited_suffix

STRENGTH = 10.0  # times the largest activation of a latent, as published
NEAREST = 20  # tokens that a latent is expected to promote
ROWS = 256  # latents of a batch


def output_scores(
    params: Params,
    prompts_pt: np.ndarray,
    dec_nd: Any,
    largest_n: np.ndarray,
    *,
    cfg: LMConfig,
    site: Site,
    strength: float = STRENGTH,
) -> dict[str, np.ndarray]:
    """Adds every latent at the last token of neutral prompts and reads the next token's
    probabilities; means over prompts.

    Args:
      prompts_pt: int32, neutral prompts of one length.
      dec_nd: unit decoder rows.
      largest_n: largest activation of each latent; one that never fires is not added.
      strength: of what is added, in `largest_n`.

    Returns:
      `output_score`: (1 − least rank of T / vocabulary) · largest probability of T,
      where T are the latent's nearest tokens by cosine with the unembedding;
      `token_confidence`: rise of the largest probability; `output_kl`: nats from the
      distribution without the latent to that with it. `[n]` each.
    """
    nearest_nc, _ = nearest_tokens(
        jnp.asarray(dec_nd), unembedding(params, cfg=cfg), count=NEAREST
    )
    n = len(dec_nd)
    size = min(n, ROWS)
    padding = -n % size
    dec_nd = np.pad(np.asarray(dec_nd, np.float32), ((0, padding), (0, 0)))
    scale_n = np.pad(np.asarray(strength * largest_n, np.float32), (0, padding))
    nearest_nc = np.pad(np.asarray(nearest_nc), ((0, padding), (0, 0)))
    parts = []
    for start in range(0, n + padding, size):
        part = slice(start, start + size)
        arrays = dec_nd[part], scale_n[part], nearest_nc[part]
        parts.append(_batch(params, prompts_pt, *arrays, cfg=cfg, site=site))
    names = parts[0]
    return {name: np.concatenate([p[name] for p in parts])[:n] for name in names}


@partial(jax.jit, static_argnames=("cfg", "site"))
def _batch(
    params: Params,
    prompts_pt: Any,
    dec_kd: Any,
    scale_k: Any,
    nearest_kc: Any,
    *,
    cfg: LMConfig,
    site: Site,
) -> dict[str, jax.Array]:
    """The scores of one batch of latents, `[k]` each."""
    k, length = len(dec_kd), np.shape(prompts_pt)[1]
    last_kt = jnp.broadcast_to(jnp.arange(length) == length - 1, (k, length))
    # A row of zeros is the model without a latent.
    dec_kd = jnp.concatenate([dec_kd, jnp.zeros_like(dec_kd[:1])])
    scale_k = jnp.concatenate([scale_k, jnp.zeros_like(scale_k[:1])])
    where_kt = jnp.concatenate([last_kt, last_kt[:1]])
    start, edits = edited_suffix({site: Add(dec_kd, scale_k, where_kt)}, cfg)

    def one_prompt(tokens_t: jax.Array) -> dict[str, jax.Array]:
        x_td = forward(params, tokens_t[None], cfg=cfg, span=(0, start)).hidden_btd[0]
        x_ktd = jnp.broadcast_to(x_td, (k + 1, *x_td.shape))
        hidden_ktd = forward(
            params, None, cfg=cfg, edits=edits, span=(start, cfg.n_layers), x_btd=x_ktd
        ).hidden_btd
        log_kv = jax.nn.log_softmax(logits(params, hidden_ktd[:, -1], cfg=cfg), axis=-1)
        return _scores(log_kv[:-1], log_kv[-1], nearest_kc)

    by_prompt = jax.lax.map(one_prompt, jnp.asarray(prompts_pt))
    return jax.tree.map(lambda scores_pk: scores_pk.mean(0), by_prompt)


def _scores(
    log_kv: jax.Array, before_v: jax.Array, nearest_kc: jax.Array
) -> dict[str, jax.Array]:
    largest_k1 = jnp.take_along_axis(log_kv, nearest_kc, axis=1).max(1, keepdims=True)
    least_rank_k = jnp.sum(log_kv > largest_k1, axis=1)
    share_k = 1 - least_rank_k / log_kv.shape[1]
    return {
        "output_score": share_k * jnp.exp(largest_k1[:, 0]),
        "token_confidence": jnp.exp(log_kv.max(1)) - jnp.exp(before_v.max()),
        "output_kl": jnp.sum(jnp.exp(log_kv) * (log_kv - before_v), axis=1),
    }
