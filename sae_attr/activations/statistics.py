"""Mean, mean length and mean square of activations: of a model on ordinary text, or of a stream for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.parallel import shard_batch, to_host

CorpusBatch = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens_bt, valid_bt, counted_bt


@dataclass(frozen=True)
class MeanActivation:
    """ā over `tokens` counted positions.

    Args:
      mean_d: float64, the mean of a_t.
      norm: the mean length of a_t, the unit of steering.
      mean_square: the mean of |a_t|²; what inputs are scaled by so that they have d on average.
    """

    mean_d: np.ndarray
    norm: float
    tokens: int
    mean_square: float = float("nan")


def site_acts(params: Params, tokens_bt: jax.Array, valid_bt: jax.Array, *, cfg: LMConfig, site: Site) -> jax.Array:
    """Activations at a site, `[b, t, d]`; layers above it are not run."""
    span = (0, site.layer + 1)
    return forward(params, tokens_bt, cfg=cfg, valid_bt=valid_bt, keep=(site,), span=span).acts[site]


def mean_activation(
    params: Params,
    work: Iterable[CorpusBatch],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    progress: bool = False,
) -> MeanActivation:
    """ā: the mean of a_t over the counted positions of a corpus; sums are float64 on the host.

    Args:
      work: (tokens_bt, valid_bt, counted_bt) batches; a position counts where all masks of the run let it.

    Raises:
      ValueError: no position counts, or an activation is NaN or infinite.
    """

    def sums(p: Params, tokens: jax.Array, valid: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
        acts_btd = site_acts(p, tokens, valid, cfg=cfg, site=site)
        acts_btd = jnp.where(counted[..., None], acts_btd, 0)
        return jnp.sum(acts_btd, axis=1), jnp.linalg.norm(acts_btd, axis=-1)

    step = jax.jit(sums)

    def parts() -> Iterable[_Sums]:
        with tqdm(desc="mean activation", unit="tok", unit_scale=True, disable=not progress) as bar:
            for batch in work:
                sum_bd, norm_bt = step(params, *shard_batch(batch, mesh))
                count = int(batch[2].sum())
                bar.update(count)
                yield to_host(sum_bd), to_host(norm_bt), count

    return _mean(parts(), f"activations at {site}")


def mean_of(chunks: Iterable[np.ndarray]) -> MeanActivation:
    """The same of arrays [k, d] of counted tokens, for example of some batches of a stream.

    Raises:
      ValueError: no token, or a value is NaN or infinite.
    """
    wide = (np.asarray(chunk, np.float32) for chunk in chunks)
    return _mean(((x, np.linalg.norm(x, axis=-1), len(x)) for x in wide), "activations")


_Sums = tuple[np.ndarray, np.ndarray, int]  # partial sums [..., d], lengths (0 where not counted), tokens


def _mean(parts: Iterable[_Sums], what: str) -> MeanActivation:
    total_d, norm, square, tokens = np.zeros(()), 0.0, 0.0, 0
    for sum_bd, norms, count in parts:
        total_d = total_d + sum_bd.astype(np.float64).sum(0)
        norms = norms.astype(np.float64)
        norm, square, tokens = norm + norms.sum(), square + (norms**2).sum(), tokens + count
    if not tokens:
        raise ValueError(
            "no corpus position counts towards the mean activation; exclude fewer tokens or give more text"
        )
    if not np.isfinite(total_d).all():
        raise ValueError(f"{what} are NaN or infinite on the corpus; try float32 weights")
    return MeanActivation(total_d / tokens, float(norm / tokens), tokens, float(square / tokens))
