"""Firing rates and mean codes: what an SAE does on ordinary text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.activations import CorpusBatch
from sae_attr.activations.statistics import NO_LIMITS
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import SAE, code_scale, decode, encode
from sae_attr.text.masks import beyond_limits


@dataclass(frozen=True, eq=False)
class CodeStatistics:
    """An SAE on `tokens` counted corpus positions.

    `rate_n`: share of positions on which a latent fires. `mean_n`: mean of its
    contribution z · scale_t (the code itself unless the SAE has a norm per token).
    `error_m`: mean of the reconstruction error a_t − SAE(a_t). All float32.
    """

    rate_n: np.ndarray
    mean_n: np.ndarray
    error_m: np.ndarray
    tokens: int


def code_statistics(
    params: Params,
    work: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    read: Site | None = None,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> CodeStatistics:
    """`CodeStatistics` over the counted positions of a corpus; sums are float64 on the
    host.

    Args:
      site: what the SAE reconstructs.
      read: what it encodes; None: the same site. A transcoder reads another one.
      limits: site -> largest norm; a position beyond one of them does not count
        (attention sinks).
    """
    read = read or site

    block = max(1, min(4096, 2**25 // sae.cfg.n_latents))

    def one(
        s: SAE, acts_kd: jax.Array, reads_kd: jax.Array, counted_k: jax.Array
    ) -> tuple[jax.Array, ...]:
        codes_kn = encode(s, reads_kd)
        weight_kn = jnp.where(counted_k[:, None], code_scale(s, reads_kd), 0)
        error_km = jnp.where(
            counted_k[:, None], acts_kd - decode(s, codes_kn, reads_kd), 0
        )
        return (
            jnp.sum((codes_kn != 0) & counted_k[:, None], 0),
            jnp.sum(codes_kn * weight_kn, 0),
            jnp.sum(error_km, 0),
        )

    def sums(
        p: Params, s: SAE, tokens: jax.Array, valid: jax.Array, counted: jax.Array
    ) -> tuple[jax.Array, ...]:
        keep = tuple(dict.fromkeys((site, read, *limits)))
        span = (0, max(s.layer for s in keep) + 1)
        acts = forward(p, tokens, cfg=cfg, valid_bt=valid, keep=keep, span=span).acts
        counted = counted & ~beyond_limits(acts, limits) if limits else counted
        flat = [x.reshape(-1, *x.shape[2:]) for x in (acts[site], acts[read], counted)]
        gap = -len(flat[0]) % block
        blocks = [
            jnp.pad(x, ((0, gap), *((0, 0),) * (x.ndim - 1))).reshape(
                -1, block, *x.shape[1:]
            )
            for x in flat
        ]
        totals = jax.tree.map(
            lambda x: jnp.sum(x, axis=0),
            jax.lax.map(lambda x: one(s, *x), tuple(blocks)),
        )
        return *totals, jnp.sum(counted)

    step, tokens = jax.jit(sums), 0
    totals = [
        np.zeros(size) for size in (sae.cfg.n_latents, sae.cfg.n_latents, sae.cfg.d_out)
    ]
    for batch in tqdm(work, desc="firing rates", unit="batch", disable=not progress):
        *values, count = step(params, sae, *shard_batch(batch, mesh))
        for total, value in zip(totals, values, strict=True):
            total += to_host(value).astype(np.float64)
        tokens += int(to_host(count))
    rate_n, mean_n, error_m = (
        (total / max(tokens, 1)).astype(np.float32) for total in totals
    )
    return CodeStatistics(rate_n, mean_n, error_m, tokens)


def firing_rates(
    params: Params,
    work: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> tuple[np.ndarray, int]:
    """Share of counted corpus positions on which each latent fires, float32 `[n]`, and
    the number of positions.

    Codes are alive for a few positions at a time, `2**25` numbers of them.
    """
    n = sae.cfg.n_latents
    block = max(1, min(4096, 2**25 // n))

    keep = tuple(dict.fromkeys((site, *limits)))
    span = (0, max(s.layer for s in keep) + 1)

    def count(
        p: Params, s: SAE, tokens: jax.Array, valid: jax.Array, counted: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        acts = forward(p, tokens, cfg=cfg, valid_bt=valid, keep=keep, span=span).acts
        counted = counted & ~beyond_limits(acts, limits) if limits else counted
        acts_kd = acts[site].reshape(-1, cfg.width(site.point))
        gap = -len(acts_kd) % block
        blocks = jnp.pad(acts_kd, ((0, gap), (0, 0))).reshape(
            -1, block, acts_kd.shape[1]
        )
        masks = jnp.pad(counted.reshape(-1), (0, gap)).reshape(-1, block, 1)

        def fires(x: tuple[jax.Array, jax.Array]) -> jax.Array:
            codes_kn = encode(s, x[0])
            return jnp.sum((codes_kn != 0) & x[1], axis=0)

        return jnp.sum(jax.lax.map(fires, (blocks, masks)), axis=0), jnp.sum(counted)

    step = jax.jit(count)
    total_n, tokens = np.zeros(n, np.int64), 0
    for batch in tqdm(work, desc="firing rates", unit="batch", disable=not progress):
        fired_n, positions = step(params, sae, *shard_batch(batch, mesh))
        total_n += to_host(fired_n).astype(np.int64)
        tokens += int(to_host(positions))
    return (total_n / max(tokens, 1)).astype(np.float32), tokens


def weighted_codes(
    encode_fn: Callable[[jax.Array], jax.Array],
    acts_kd: np.ndarray,
    weights_k: np.ndarray,
    *,
    block: int,
) -> np.ndarray:
    """Σ_k w_k z(a_k), float64 `[n]`: a weighted mean of codes over cached activations,
    a block of tokens at a time.
    """
    used = np.flatnonzero(weights_k)
    step = jax.jit(
        lambda a, w: jnp.einsum(
            "k,kn->n", w, encode_fn(a), precision=jax.lax.Precision.HIGHEST
        )
    )
    total: np.ndarray | None = None
    for start in range(0, len(used), block):
        part = used[start : start + block]
        gap = block - len(part) if len(used) > block else 0
        acts = np.pad(np.asarray(acts_kd[part], np.float32), ((0, gap), (0, 0)))
        sums = np.asarray(
            step(acts, np.pad(weights_k[part].astype(np.float32), (0, gap))), np.float64
        )
        total = sums if total is None else total + sums
    if total is None:
        raise ValueError(
            "no token has a weight, so there is no code to average; use a wider token "
            "scope"
        )
    return total
