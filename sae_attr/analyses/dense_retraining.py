"""The retraining test on planted data: dense latents come from a dense direction of the
data, not from the training (arXiv:2506.15679, section 3).

An SAE learns a Gaussian direction as a pair of opposite latents, since a latent's
activation is never negative. Trained again without that direction it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sae_attr.analyses.dense_classes import antipodality
from sae_attr.analyses.dense_settings import DenseSettings, RetrainingSettings
from sae_attr.sae.model import SAE, encode
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.training import LoopOptions

AS_IT_IS, WITHOUT_DENSE, WITHOUT_RANDOM = "as_it_is", "without_dense", "without_random"
Batches = Callable[[int], np.ndarray]
"""Number of a batch -> activations `[b, d]`."""


def planted_batches(
    settings: RetrainingSettings, seed: int
) -> tuple[Batches, np.ndarray]:
    """Returns batches of planted data, and the dense direction in it, `[d]`.

    A token is the sum of the sparse features that are active, each 1 to 2 long, and of
    the dense direction times a normal number.
    """
    rng = np.random.default_rng(seed)
    directions_fd = rng.standard_normal((1 + settings.features, settings.width))
    directions_fd /= np.linalg.norm(directions_fd, axis=1, keepdims=True)
    dense_d = directions_fd[0]

    def batch(step: int) -> np.ndarray:
        rng = np.random.default_rng((seed, 1 + step))
        shape = settings.tokens, settings.features
        active_bf = rng.random(shape) < settings.rate
        sizes_bf = active_bf * rng.uniform(1, 2, shape)
        dense_b = settings.deviation * rng.standard_normal(settings.tokens)
        x_bd = sizes_bf @ directions_fd[1:] + dense_b[:, None] * dense_d
        return x_bd.astype(np.float32)

    return batch, dense_d


def retraining_rows(settings: DenseSettings) -> list[dict[str, Any]]:
    """Returns a row per training: as it is, without the span of its dense latents,
    without a random span of the same size. `dense`: latents that are; `pairs`: those of
    them that have an antipode; `cosine`: the largest, in size, of a dense latent with
    the planted direction, NaN where none is dense.
    """
    planted = settings.retraining
    batch, dense_d = planted_batches(planted, settings.seed)
    trained = _trained(planted, batch, settings.seed)
    rates_n = densities(trained, batch, planted)
    dense_nd = np.asarray(trained.dec_nm)[rates_n > settings.dense]
    span_rd = span_of(dense_nd)
    # Not the stream that the planted directions were drawn from.
    rng = np.random.default_rng((settings.seed, 0, 1))
    random_rd = span_of(rng.standard_normal(span_rd.shape))
    rows = [_row(AS_IT_IS, trained, rates_n, dense_d, settings)]
    for name, basis_rd in ((WITHOUT_DENSE, span_rd), (WITHOUT_RANDOM, random_rd)):
        rest = without_span(batch, basis_rd)
        trained = _trained(planted, rest, settings.seed)
        rates_n = densities(trained, rest, planted)
        rows.append(_row(name, trained, rates_n, dense_d, settings))
    return rows


def span_of(rows_kd: np.ndarray) -> np.ndarray:
    """Returns an orthonormal basis `[r, d]` of the span of some rows; of a pair of nearly
    opposite rows it has both directions, as the published test has.
    """
    _, values_r, basis_rd = np.linalg.svd(rows_kd, full_matrices=False)
    return basis_rd[values_r > 1e-6 * values_r.max(initial=0)]


def without_span(batch: Batches, basis_rd: np.ndarray) -> Batches:
    """Returns batches with the part in a span taken out."""

    def projected(step: int) -> np.ndarray:
        x_bd = batch(step)
        return x_bd - ((x_bd @ basis_rd.T) @ basis_rd).astype(np.float32)

    return projected


def densities(sae: SAE, batch: Batches, settings: RetrainingSettings) -> np.ndarray:
    """Returns the firing rate of every latent on tokens that no training has seen,
    `[n]`.
    """
    fired_n, count = np.zeros(sae.cfg.n_latents), 0
    encoded = jax.jit(encode)
    while count < settings.measured:
        x_bd = batch(settings.steps + count // settings.tokens)
        fired_n += np.asarray(encoded(sae, x_bd) != 0).sum(0)
        count += len(x_bd)
    return fired_n / count


def _trained(settings: RetrainingSettings, batch: Batches, seed: int) -> SAE:
    cfg = TrainConfig(
        d_in=settings.width,
        n_latents=settings.latents,
        steps=settings.steps,
        k=settings.k,
        seed=seed,
    )
    options = LoopOptions(log_every=settings.steps, save_every=settings.steps)
    result = train_sae(cfg, batch, options=options, progress=False)
    return finished(cfg, result.state)


def _row(
    name: str,
    sae: SAE,
    rates_n: np.ndarray,
    dense_d: np.ndarray,
    settings: DenseSettings,
) -> dict[str, Any]:
    dense_k = np.flatnonzero(rates_n > settings.dense)
    dec_nm = np.asarray(sae.dec_nm)
    row = {
        "data": name,
        "dense": len(dense_k),
        "pairs": 0,
        "antipodality": np.nan,
        "cosine": np.nan,
    }
    if len(dense_k):
        antipodes = antipodality(np.asarray(sae.enc_dn).T, dec_nm, dense_k)
        pair_k = (antipodes.score_k > settings.antipodal) & (antipodes.cosine_k < 0)
        rows_kd = dec_nm[dense_k]
        cosines_k = rows_kd @ dense_d / np.linalg.norm(rows_kd, axis=1)
        row["pairs"] = int(pair_k.sum())
        row["antipodality"] = float(antipodes.score_k.max())
        row["cosine"] = float(np.abs(cosines_k).max())
    return row
