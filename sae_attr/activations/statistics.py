"""Mean, mean norm and median norm of activations at a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.activations.corpus_pass import (
    NO_LIMITS,
    CorpusBatch,
    Statistic,
    measure_corpus,
)
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, forward
from sae_attr.text.batching import RowBatch
from sae_attr.text.masks import norm_limit


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
    """Returns the activations at a site, `[b, t, d]`; layers above it are not run."""
    span = (0, site.layer + 1)
    return forward(
        params, tokens_bt, cfg=cfg, valid_bt=valid_bt, keep=(site,), span=span
    ).acts[site]


# ---- the mean ------------------------------------------------------------------------


class _Sums(NamedTuple):
    """Sums over counted positions, in float64: partial sums of a million float32
    activations would lose digits that ā needs.
    """

    acts_d: np.ndarray = np.zeros(())
    norms: float = 0.0
    squares: float = 0.0
    tokens: int = 0
    outliers: int = 0

    def plus(
        self, sum_bd: np.ndarray, norms: np.ndarray, tokens: int, outliers: int = 0
    ) -> _Sums:
        """Returns the sums with some positions more."""
        norms = norms.astype(np.float64)
        return _Sums(
            self.acts_d + sum_bd.astype(np.float64).sum(0),
            self.norms + norms.sum(),
            self.squares + (norms**2).sum(),
            self.tokens + tokens,
            self.outliers + outliers,
        )

    def mean(self, what: str) -> MeanActivation:
        """Returns the mean; raises ValueError where it is none, `what` names the
        activations.
        """
        if not self.tokens:
            raise ValueError(
                "no corpus position counts towards the mean activation; exclude fewer "
                "tokens or give more text"
            )
        if not np.isfinite(self.acts_d).all():
            raise ValueError(
                f"{what} are NaN or infinite on the corpus; try float32 weights"
            )
        return MeanActivation(
            self.acts_d / self.tokens,
            float(self.norms / self.tokens),
            self.tokens,
            float(self.squares / self.tokens),
            self.outliers,
        )


def mean_statistic(site: Site) -> Statistic:
    """Returns the statistic whose result is the `MeanActivation` at a site."""

    def measure(
        _: Any, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Not a product with the mask: a NaN where nothing counts would stay a NaN.
        acts_btd = jnp.where(counted_bt[..., None], acts[site], 0)
        return jnp.sum(acts_btd, axis=1), jnp.linalg.norm(acts_btd, axis=-1)

    def add(
        sums: _Sums,
        measured: tuple[np.ndarray, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> _Sums:
        tokens = int(counted_bt.sum())
        return sums.plus(*measured, tokens, int(batch.counted_bt.sum()) - tokens)

    what = f"activations at {site}"
    return Statistic((site,), measure, _Sums, add, lambda sums: sums.mean(what))


def mean_activation(
    params: Params,
    batches: Iterable[CorpusBatch],
    *,
    cfg: LMConfig,
    site: Site,
    mesh: jax.sharding.Mesh,
    limits: Mapping[Site, float] = NO_LIMITS,
    progress: bool = False,
) -> MeanActivation:
    """Returns ā: the mean of a_t over the counted positions of a corpus.

    Args:
      limits: site -> largest norm; a position beyond one of them does not count
        (attention sinks).

    Raises:
      ValueError: no position counts, or an activation is NaN or infinite.
    """
    return measure_corpus(
        params,
        batches,
        {"mean": mean_statistic(site)},
        cfg=cfg,
        mesh=mesh,
        limits=limits,
        description="mean activation",
        progress=progress,
    )["mean"]


def mean_of(chunks: Iterable[np.ndarray]) -> MeanActivation:
    """Returns the same of arrays [k, d] of counted tokens, such as a stream's batches.

    Raises:
      ValueError: no token, or a value is NaN or infinite.
    """
    sums = _Sums()
    for chunk in chunks:
        x_kd = np.asarray(chunk, np.float32)
        sums = sums.plus(x_kd, np.linalg.norm(x_kd, axis=-1), len(x_kd))
    return sums.mean("activations")


# ---- norms ---------------------------------------------------------------------------


def norm_statistic(sites: Sequence[Site]) -> Statistic:
    """Returns the statistic whose result is site -> norms of counted positions, `[k]`."""

    def measure(
        _: Any, acts: Mapping[Site, jax.Array], counted_bt: jax.Array
    ) -> dict[Site, jax.Array]:
        return {site: _norms(acts[site]) for site in sites}

    def add(
        norms: dict[Site, list[np.ndarray]],
        measured: dict[Site, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> dict[Site, list[np.ndarray]]:
        return {site: [*norms[site], measured[site][counted_bt]] for site in sites}

    def finish(norms: dict[Site, list[np.ndarray]]) -> dict[Site, np.ndarray]:
        return {site: np.concatenate(norms[site] or [np.zeros(0)]) for site in sites}

    initial = lambda: dict.fromkeys(sites, ())
    return Statistic(tuple(sites), measure, initial, add, finish)


def _norms(acts_btd: jax.Array) -> jax.Array:
    # Squares summed in bfloat16 would leave two digits, and in float16 overflow.
    return jnp.linalg.norm(acts_btd.astype(jnp.float32), axis=-1)


def norm_limits(
    params: Params,
    batches: Iterable[CorpusBatch],
    outlier: float | None,
    *,
    cfg: LMConfig,
    sites: Sequence[Site],
    mesh: jax.sharding.Mesh,
) -> dict[Site, float]:
    """Measures the largest norm that counts at each site: `outlier` times the median
    over counted positions.

    Args:
      outlier: multiple of the median; None gives no limits, and computes nothing.

    Raises:
      ValueError: no position counts.
    """
    if outlier is None:
        return {}
    statistics = {"norms": norm_statistic(sites)}
    norms = measure_corpus(params, batches, statistics, cfg=cfg, mesh=mesh)["norms"]
    if not all(len(norms_k) for norms_k in norms.values()):
        raise ValueError(
            "no token of the corpus counts, so no median norm is known; exclude fewer "
            "tokens or give more text"
        )
    return {site: norm_limit(norms_k, outlier) for site, norms_k in norms.items()}


# ---- positions and their activations -------------------------------------------------


def counted_statistic() -> Statistic:
    """Returns the statistic whose result is the positions of each batch that count."""
    return Statistic(
        sites=(),
        measure=lambda inputs, acts, counted_bt: (),
        initial=tuple,
        add=lambda masks, measured, batch, counted_bt: (*masks, counted_bt),
        finish=list,
    )


def activation_statistic(sites: Sequence[Site]) -> Statistic:
    """Returns the statistic whose result is site -> activations of counted positions,
    float32 `[k, d]`, batch after batch.
    """

    def add(
        parts: tuple[dict[Site, np.ndarray], ...],
        measured: dict[Site, np.ndarray],
        batch: CorpusBatch,
        counted_bt: np.ndarray,
    ) -> tuple[dict[Site, np.ndarray], ...]:
        part = {}
        for site, acts_btd in measured.items():
            part[site] = acts_btd.astype(np.float32)[counted_bt]
        return *parts, part

    def finish(parts: tuple[dict[Site, np.ndarray], ...]) -> dict[Site, np.ndarray]:
        return {site: np.concatenate([part[site] for part in parts]) for site in sites}

    measure = lambda _, acts, counted_bt: {site: acts[site] for site in sites}
    return Statistic(tuple(sites), measure, tuple, add, finish)


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
        `batching.batches` returns them.
      limits: site -> largest norm that counts; at least one.
    """
    work = list(work)
    batches = [CorpusBatch(b.tokens_bt, b.valid_bt, b.valid_bt) for b, _ in work]
    statistics = {"counted": counted_statistic()}
    counted = measure_corpus(
        params, batches, statistics, cfg=cfg, mesh=mesh, limits=limits
    )["counted"]
    beyond: dict[int, np.ndarray] = {}
    for (batch, row_b), counted_bt in zip(work, counted, strict=True):
        beyond_bt = batch.valid_bt & ~counted_bt
        beyond |= {int(row): beyond_bt[b] for b, row in enumerate(row_b) if row >= 0}
    return beyond
