"""Firing rates and mean codes: what an SAE does on ordinary text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.activations import CorpusBatch, site_acts
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import SAE, encode, encode_latents


def firing_rates(
    params: Params,
    work: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    latents: np.ndarray | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, int]:
    """Share of counted corpus positions on which each latent fires, float32 `[n]`, and the number of positions.

    Codes are alive for a few positions at a time, `2**25` numbers of them. With `latents`, only those are encoded (not for topk
    gates, whose codes need all).
    """
    n = sae.cfg.n_latents if latents is None else len(latents)
    block = max(1, min(4096, 2**25 // n))

    def count(p: Params, s: SAE, tokens: jax.Array, valid: jax.Array, counted: jax.Array) -> jax.Array:
        acts_kd = site_acts(p, tokens, valid, cfg=cfg, site=site).reshape(-1, cfg.width(site.point))
        gap = -len(acts_kd) % block
        blocks = jnp.pad(acts_kd, ((0, gap), (0, 0))).reshape(-1, block, acts_kd.shape[1])
        masks = jnp.pad(counted.reshape(-1), (0, gap)).reshape(-1, block, 1)

        def fires(x: tuple[jax.Array, jax.Array]) -> jax.Array:
            codes_kn = encode(s, x[0]) if latents is None else encode_latents(s, x[0], latents)
            return jnp.sum((codes_kn != 0) & x[1], axis=0)

        return jnp.sum(jax.lax.map(fires, (blocks, masks)), axis=0)

    step = jax.jit(count)
    total_n, tokens = np.zeros(n, np.int64), 0
    for batch in tqdm(work, desc="firing rates", unit="batch", disable=not progress):
        total_n += to_host(step(params, sae, *shard_batch(batch, mesh))).astype(np.int64)
        tokens += int(batch[2].sum())
    return (total_n / max(tokens, 1)).astype(np.float32), tokens


def weighted_codes(
    encode_fn: Callable[[jax.Array], jax.Array], acts_kd: np.ndarray, weights_k: np.ndarray, *, block: int
) -> np.ndarray:
    """Σ_k w_k z(a_k), float64 `[n]`: a weighted mean of codes over cached activations, a block of tokens at a time."""
    used = np.flatnonzero(weights_k)
    step = jax.jit(lambda a, w: jnp.einsum("k,kn->n", w, encode_fn(a), precision=jax.lax.Precision.HIGHEST))
    total: np.ndarray | None = None
    for start in range(0, len(used), block):
        part = used[start : start + block]
        gap = block - len(part) if len(used) > block else 0
        acts = np.pad(np.asarray(acts_kd[part], np.float32), ((0, gap), (0, 0)))
        sums = np.asarray(step(acts, np.pad(weights_k[part].astype(np.float32), (0, gap))), np.float64)
        total = sums if total is None else total + sums
    if total is None:
        raise ValueError("no token has a weight, so there is no code to average; use a wider token scope")
    return total
