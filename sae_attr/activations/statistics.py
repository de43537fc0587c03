"""Mean, mean length and mean square of activations: of a model on ordinary text, or of
a stream for training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host
from sae_attr.text.batching import RowBatch
from sae_attr.text.masks import beyond_limits, norm_limit

CorpusBatch = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # tokens_bt, valid_bt, counted_bt
NO_LIMITS: Mapping[Site, float] = MappingProxyType({})


@dataclass(frozen=True)
class MeanActivation:
    """ā over `tokens` counted positions.

    Args:
      mean_d: float64, the mean of a_t.
      norm: the mean length of a_t, the unit of steering.
      mean_square: the mean of |a_t|²; what inputs are scaled by so that they have d on
        average.
      outliers: positions that were left out for their norm.
    """

    mean_d: np.ndarray
    norm: float
    tokens: int
    mean_square: float = float("nan")
    outliers: int = 0


def site_acts(
    params: Params,
    tokens_bt: jax.Array,
    valid_bt: jax.Array,
    *,
    cfg: LMConfig,
    site: Site,
) -> jax.Array:
    """Activations at a site, `[b, t, d]`; layers above it are not run."""
    span = (0, site.layer + 1)
    return forward(
        params, tokens_bt, cfg=cfg, valid_bt=valid_bt, keep=(site,), span=span
    ).acts[site]


def norm_limits(
    params: Params,
    work: Iterable[CorpusBatch],
    outlier: float | None,
    *,
    cfg: LMConfig,
    sites: Sequence[Site],
    mesh: jax.sharding.Mesh,
) -> dict[Site, float]:
    """Measures the largest norm that counts at each site: `outlier` times the median
    over counted positions.

    Args:
      work: (tokens_bt, valid_bt, counted_bt) batches of ordinary text.
      outlier: multiple of the median; None gives no limits, and computes nothing.

    Raises:
      ValueError: no position counts.
    """
    if outlier is None:
        return {}
    span = (0, max(site.layer for site in sites) + 1)

    def norms(p: Params, tokens: jax.Array, valid: jax.Array) -> dict[Site, jax.Array]:
        acts = forward(
            p, tokens, cfg=cfg, valid_bt=valid, keep=tuple(sites), span=span
        ).acts
        return {
            site: jnp.linalg.norm(acts[site].astype(jnp.float32), axis=-1)
            for site in sites
        }

    step = jax.jit(norms)
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    for tokens_bt, valid_bt, counted_bt in work:
        for site, norms_bt in step(
            params, *shard_batch((tokens_bt, valid_bt), mesh)
        ).items():
            parts[site].append(to_host(norms_bt)[counted_bt])
    joined = {
        site: np.concatenate(norms_k) if norms_k else np.zeros(0)
        for site, norms_k in parts.items()
    }
    if not all(len(norms_k) for norms_k in joined.values()):
        raise ValueError(
            "no corpus position counts, so no median norm is known; exclude fewer "
            "tokens or give more text"
        )
    return {site: norm_limit(norms_k, outlier) for site, norms_k in joined.items()}


def rows_beyond(
    params: Params,
    work: Iterable[tuple[RowBatch, np.ndarray]],
    limits: Mapping[Site, float],
    *,
    cfg: LMConfig,
    mesh: jax.sharding.Mesh,
) -> dict[int, np.ndarray]:
    """Finds the positions of rows whose norm exceeds a limit: row -> bool `[t]`, as
    long as the batch.

    Args:
      work: batches and the numbers of their rows, -1 for an empty one, as
        `data.batches` gives them.
      limits: site -> largest norm that counts; at least one.
    """
    sites = tuple(limits)
    span = (0, max(site.layer for site in sites) + 1)

    def beyond(p: Params, batch: RowBatch) -> jax.Array:
        acts = forward(
            p, batch.tokens_bt, cfg=cfg, valid_bt=batch.valid_bt, keep=sites, span=span
        ).acts
        return beyond_limits(acts, limits) & batch.valid_bt

    step = jax.jit(beyond)
    found: dict[int, np.ndarray] = {}
    for batch, row_b in work:
        beyond_bt = to_host(step(params, shard_batch(batch, mesh)))
        found |= {int(row): beyond_bt[b] for b, row in enumerate(row_b) if row >= 0}
    return found


def mean_activation(
    params: Params,
    work: Iterable[CorpusBatch],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> MeanActivation:
    """ā: the mean of a_t over the counted positions of a corpus; sums are float64 on
    the host.

    Args:
      work: (tokens_bt, valid_bt, counted_bt) batches; a position counts where the masks
        of the run let it.
      limits: site -> largest norm; a position beyond one of them does not count
        (attention sinks).

    Raises:
      ValueError: no position counts, or an activation is NaN or infinite.
    """

    sites = tuple(dict.fromkeys((site, *limits)))
    span = (0, max(s.layer for s in sites) + 1)

    def sums(
        p: Params, tokens: jax.Array, valid: jax.Array, counted: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        acts = forward(p, tokens, cfg=cfg, valid_bt=valid, keep=sites, span=span).acts
        kept = counted & ~beyond_limits(acts, limits) if limits else counted
        acts_btd = jnp.where(kept[..., None], acts[site], 0)
        return (
            jnp.sum(acts_btd, axis=1),
            jnp.linalg.norm(acts_btd, axis=-1),
            jnp.sum(kept),
        )

    step, outliers = jax.jit(sums), 0

    def parts() -> Iterable[_Sums]:
        nonlocal outliers
        with tqdm(
            desc="mean activation", unit="tok", unit_scale=True, disable=not progress
        ) as bar:
            for batch in work:
                sum_bd, norm_bt, kept = step(params, *shard_batch(batch, mesh))
                count = int(to_host(kept))
                outliers += int(batch[2].sum()) - count
                bar.update(count)
                yield to_host(sum_bd), to_host(norm_bt), count

    mean = _mean(parts(), f"activations at {site}")
    return replace(mean, outliers=outliers)


def mean_of(chunks: Iterable[np.ndarray]) -> MeanActivation:
    """The same of arrays [k, d] of counted tokens, for example of some batches of a
    stream.

    Raises:
      ValueError: no token, or a value is NaN or infinite.
    """
    wide = (np.asarray(chunk, np.float32) for chunk in chunks)
    return _mean(((x, np.linalg.norm(x, axis=-1), len(x)) for x in wide), "activations")


_Sums = tuple[
    np.ndarray, np.ndarray, int
]  # partial sums [..., d], lengths (0 where not counted), tokens


def _mean(parts: Iterable[_Sums], what: str) -> MeanActivation:
    total_d, norm, square, tokens = np.zeros(()), 0.0, 0.0, 0
    for sum_bd, norms, count in parts:
        total_d = total_d + sum_bd.astype(np.float64).sum(0)
        norms = norms.astype(np.float64)
        norm = norm + norms.sum()
        square = square + (norms**2).sum()
        tokens = tokens + count
    if not tokens:
        raise ValueError(
            "no corpus position counts towards the mean activation; exclude fewer "
            "tokens or give more text"
        )
    if not np.isfinite(total_d).all():
        raise ValueError(
            f"{what} are NaN or infinite on the corpus; try float32 weights"
        )
    return MeanActivation(
        total_d / tokens, float(norm / tokens), tokens, float(square / tokens)
    )
