"""Statistics of an SAE's latent activations, on ordinary text and on stored tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations import CorpusBatch, Statistic, measure_corpus
from sae_attr.activations.corpus_pass import NO_LIMITS
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params
from sae_attr.sae.model import SAE, code_scale, decode, encode


class LatentBlock(NamedTuple):
    """Some positions with their latent activations, as `LatentSum`s take them.

    Args:
      sae: the SAE.
      acts_kd: what it reconstructs.
      reads_kd: what it encodes; a transcoder reads another site than it writes.
      codes_kn: its codes.
      counted_k1: bool, positions that count.
    """

    sae: SAE
    acts_kd: jax.Array
    reads_kd: jax.Array
    codes_kn: jax.Array
    counted_k1: jax.Array


LatentSum = Callable[[LatentBlock], jax.Array]
"""A sum over the counted positions of a block: `[n]`, or `[m]` of what is written."""


def firings(block: LatentBlock) -> jax.Array:
    """Counts the positions on which each latent fires, `[n]`."""
    return jnp.sum((block.codes_kn != 0) & block.counted_k1, axis=0)


def contributions(block: LatentBlock) -> jax.Array:
    """Sums z · scale_t of each latent, `[n]`: the code itself unless the SAE has a norm
    per token.
    """
    scale_k1 = code_scale(block.sae, block.reads_kd)
    weight_k1 = jnp.where(block.counted_k1, scale_k1, 0)
    return jnp.sum(block.codes_kn * weight_k1, axis=0)


def errors(block: LatentBlock) -> jax.Array:
    """Sums the reconstruction error a_t − SAE(a_t), `[m]`."""
    recon_km = decode(block.sae, block.codes_kn, block.reads_kd)
    return jnp.sum(jnp.where(block.counted_k1, block.acts_kd - recon_km, 0), axis=0)


def latent_statistic(
    sae: SAE, sums: Mapping[str, LatentSum], *, site: Site, read: Site | None = None
) -> Statistic:
    """Returns the statistic whose result is (name -> mean of each sum over counted
    positions, float32; their number). Every position is encoded once.

    Args:
      sums: by name; each is a function of a block of positions.
      site: what the SAE reconstructs.
      read: what it encodes; None: the same site.
    """
    read = read or site

    def measure(
        sae: SAE, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> dict[str, jax.Array]:
        return _batch_sums(sae, sums, acts[site], acts[read], counted_bt)

    def initial() -> _Sums:
        return _Sums(dict.fromkeys(sums, np.zeros(())), 0)

    sites = tuple(dict.fromkeys((site, read)))  # once, if both are one site
    return Statistic(sites, measure, initial, _add_sums, _means, inputs=sae)


class _Sums(NamedTuple):
    """Holds what has been summed over the batches so far, in float64, and over how many
    counted positions.
    """

    totals: dict[str, np.ndarray]
    tokens: int


def _add_sums(
    state: _Sums,
    measured: Mapping[str, np.ndarray],
    batch: CorpusBatch,
    counted_bt: np.ndarray,
) -> _Sums:
    totals = {}
    for name, value in measured.items():
        # The device sums one batch in float32. Over a million tokens a float32 total
        # would no longer notice what one of them adds.
        totals[name] = state.totals[name] + value.astype(np.float64)
    return _Sums(totals, state.tokens + int(counted_bt.sum()))


def _means(state: _Sums) -> tuple[dict[str, np.ndarray], int]:
    means = {}
    for name, total in state.totals.items():
        means[name] = (total / max(state.tokens, 1)).astype(np.float32)
    return means, state.tokens


def _batch_sums(
    sae: SAE,
    sums: Mapping[str, LatentSum],
    acts_btd: jax.Array,
    reads_btd: jax.Array,
    counted_bt: jax.Array,
) -> dict[str, jax.Array]:
    """The sums over one batch, a block of positions at a time."""
    size = _block_size(sae)
    arrays = acts_btd, reads_btd, counted_bt
    blocks = tuple(_blocks(array, size) for array in arrays)
    by_block = jax.lax.map(lambda block: _block_sums(sae, sums, *block), blocks)
    return jax.tree.map(lambda sums_mn: jnp.sum(sums_mn, axis=0), by_block)


def _block_sums(
    sae: SAE,
    sums: Mapping[str, LatentSum],
    acts_kd: jax.Array,
    reads_kd: jax.Array,
    counted_k: jax.Array,
) -> dict[str, jax.Array]:
    codes_kn = encode(sae, reads_kd)
    block = LatentBlock(sae, acts_kd, reads_kd, codes_kn, counted_k[:, None])
    return {name: of(block) for name, of in sums.items()}


def _blocks(array_bt: jax.Array, size: int) -> jax.Array:
    """Positions `[b, t, ...]` in blocks `[blocks, size, ...]`, padded with zeros, which
    do not count.
    """
    flat = array_bt.reshape(-1, *array_bt.shape[2:])
    padding = [(0, -len(flat) % size), *((0, 0),) * (flat.ndim - 1)]
    return jnp.pad(flat, padding).reshape(-1, size, *flat.shape[1:])


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
    batches: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    read: Site | None = None,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> CodeStatistics:
    """Measures `CodeStatistics` over the counted positions of a corpus.

    Args:
      site: what the SAE reconstructs.
      read: what it encodes; None: the same site. A transcoder reads another one.
      limits: site -> largest norm; a position beyond one of them does not count
        (attention sinks).
    """
    sums = {"rate_n": firings, "mean_n": contributions, "error_m": errors}
    means, tokens = measure_corpus(
        params,
        batches,
        {"sae": latent_statistic(sae, sums, site=site, read=read)},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="firing rates",
        progress=progress,
    )["sae"]
    return CodeStatistics(**means, tokens=tokens)


def firing_rates(
    params: Params,
    batches: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> tuple[np.ndarray, int]:
    """Measures the share of counted corpus positions on which each latent fires, float32
    `[n]`, and the number of positions.
    """
    means, tokens = measure_corpus(
        params,
        batches,
        {"sae": latent_statistic(sae, {"rate_n": firings}, site=site)},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="firing rates",
        progress=progress,
    )["sae"]
    return means["rate_n"], tokens


def largest_codes(
    params: Params,
    batches: Iterable[CorpusBatch],
    sae: SAE,
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
) -> np.ndarray:
    """Measures the largest activation of each latent over the counted positions of a
    corpus, float32 `[n]`; 0 of one that never fires.
    """

    def measure(
        sae: SAE, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> jax.Array:
        size = _block_size(sae)
        blocks = _blocks(acts[site], size), _blocks(counted_bt, size)

        def block_largest(block: tuple[jax.Array, jax.Array]) -> jax.Array:
            acts_kd, counted_k = block
            return jnp.max(encode(sae, acts_kd) * counted_k[:, None], axis=0)

        return jnp.max(jax.lax.map(block_largest, blocks), axis=0)

    def larger(
        state: Any, measured: Any, batch: CorpusBatch, counted_bt: np.ndarray
    ) -> Any:
        return np.maximum(state, measured)

    statistic = Statistic(
        (site,),
        measure,
        initial=lambda: np.zeros(sae.cfg.n_latents, np.float32),
        add=larger,
        finish=np.asarray,
        inputs=sae,
    )
    statistics = {"largest": statistic}
    return measure_corpus(
        params, batches, statistics, cfg=cfg, mesh=mesh, limits=limits
    )["largest"]


def codes_statistic(sae: SAE, latents_k: np.ndarray, *, site: Site) -> Statistic:
    """Returns the statistic whose result is the activations of some latents at counted
    positions, float32 `[x, k]`, batch after batch: for a sample, since it keeps all.

    Args:
      site: what the SAE encodes.
    """

    def measure(
        sae: SAE, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> jax.Array:
        # All latents are encoded: whether one passes a top-k depends on the others.
        encoded = lambda acts_kd: encode(sae, acts_kd)[:, latents_k]
        blocks = _blocks(acts[site], _block_size(sae))
        codes_mk = jnp.concatenate(jax.lax.map(encoded, blocks))
        codes_xk = codes_mk[: counted_bt.size].astype(jnp.float32)
        return codes_xk.reshape(*counted_bt.shape, len(latents_k))

    def add(
        parts: tuple[np.ndarray, ...],
        codes_btk: np.ndarray,
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        return *parts, codes_btk[counted_bt]

    return Statistic((site,), measure, tuple, add, np.concatenate, inputs=sae)


def _block_size(sae: SAE) -> int:
    # Codes of 2**25 numbers are in memory at once, whatever the size of the SAE.
    return max(1, min(4096, 2**25 // sae.cfg.n_latents))


def weighted_codes(
    encode_fn: Callable[[jax.Array], jax.Array],
    acts_kd: np.ndarray,
    weights_k: np.ndarray,
    *,
    block: int,
) -> np.ndarray:
    """Returns Σ_k w_k z(a_k), float64 `[n]`: a weighted mean of codes over stored
    activations, a block of tokens at a time.
    """

    @jax.jit
    def weighted(acts_kd: jax.Array, weights_k: jax.Array) -> jax.Array:
        codes_kn = encode_fn(acts_kd)
        return jnp.einsum(
            "k,kn->n", weights_k, codes_kn, precision=jax.lax.Precision.HIGHEST
        )

    # Tokens without a weight need not be encoded, nor read from a memory map.
    used = np.flatnonzero(weights_k)
    if not len(used):
        raise ValueError(
            "no token has a weight, so there is no code to average; use a wider token "
            "scope"
        )
    total: Any = 0.0  # float64 over the blocks
    for start in range(0, len(used), block):
        part = used[start : start + block]
        # One shape for all blocks, so that one program serves them.
        gap = block - len(part) if len(used) > block else 0
        acts = np.pad(np.asarray(acts_kd[part], np.float32), ((0, gap), (0, 0)))
        weights = np.pad(weights_k[part].astype(np.float32), (0, gap))
        total = total + np.asarray(weighted(acts, weights), np.float64)
    return total
