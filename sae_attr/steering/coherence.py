"""Coherence without a judge: how likely and how repetitive the unsteered model finds an
answer, beside its own answers.

An answer is coherent if the unsteered model finds it hardly less likely, and hardly
more repetitive, than what it writes itself. Two measures are needed: broken text is
unlikely, but a loop ("the the the") is likely once it has begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.lm.config import LMConfig
from sae_attr.lm.loss import target_nll
from sae_attr.lm.model import Params, forward
from sae_attr.text.batching import RowBatch

GRAM = 3  # tokens of a phrase whose return counts as repetition
# No limit is below it: in a short answer a single phrase that returns is a tenth of all.
LEAST_REPETITION = 0.2
LEAST_SAMPLES = 10  # below that a tail of a distribution means nothing


@dataclass(frozen=True)
class CoherenceLimits:
    """The limits within which an answer counts as coherent, set by the unsteered model's
    own answers.

    Args:
      least_logp: nats per token; an answer below it is incoherent.
      most_repetition: share of repeated phrases; an answer above it is incoherent.
      tail: share of its own answers that lie beyond each limit.
      samples: own answers that the limits come from.
    """

    least_logp: float
    most_repetition: float
    tail: float
    samples: int


@partial(jax.jit, static_argnames="cfg")
def logp_per_token(params: Params, batch: RowBatch, *, cfg: LMConfig) -> jax.Array:
    """Returns the mean log-probability of every row's completion tokens `[b]`, float32
    nats; NaN for a row without any.
    """
    hidden_btd = forward(
        params, batch.tokens_bt, cfg=cfg, valid_bt=batch.valid_bt
    ).hidden_btd
    nll_bc = target_nll(
        params,
        hidden_btd,
        batch.tokens_bt,
        batch.target_bc,
        batch.target_valid_bc,
        cfg=cfg,
    )
    return -jnp.sum(nll_bc, axis=1) / jnp.sum(batch.target_valid_bc, axis=1)


def repetition(ids: Sequence[int]) -> float:
    """Returns the share of phrases of three tokens that occur earlier in the same
    answer: 0 for none, near 1 for a loop.
    """
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    if not grams:
        return 0.0
    return 1 - len(set(grams)) / len(grams)


def coherence_limits(
    logp_r: np.ndarray, repetition_r: np.ndarray, *, tail: float
) -> CoherenceLimits:
    """Returns the limits beyond which a share `tail` of the unsteered model's own
    answers lie, on either measure.

    The limit of repetition is at least `LEAST_REPETITION`.

    Args:
      logp_r, repetition_r: of its own answers; NaN log-probabilities (answers without a
        token) are ignored.

    Raises:
      ValueError: fewer than `LEAST_SAMPLES` answers with a token, or a tail outside 0
        to 1/2.
    """
    if not 0 <= tail < 0.5:
        raise ValueError(
            f"the tail of own answers is {tail}; give a share from 0 to below 0.5"
        )
    finite_r = np.isfinite(logp_r)
    if finite_r.sum() < LEAST_SAMPLES:
        raise ValueError(
            "coherence is measured against the model's own answers, of which only "
            f"{int(finite_r.sum())} have a token; at "
            f"least {LEAST_SAMPLES} are needed: raise coherence_samples or "
            "strength_prompts, or give a judge that tells it"
        )
    # Quantiles of its own answers, not constants: how likely a model finds its text
    # depends on the model, the prompts and the temperature.
    low = float(np.quantile(logp_r[finite_r], tail))
    high = float(np.quantile(repetition_r[finite_r], 1 - tail))
    return CoherenceLimits(low, max(high, LEAST_REPETITION), tail, int(finite_r.sum()))


def coherent(
    logp_r: np.ndarray, repetition_r: np.ndarray, limits: CoherenceLimits
) -> np.ndarray:
    """Returns 1.0 for answers within the limits, 0.0 for those beyond, NaN for those
    without a token; float64 `[r]`.
    """
    within_r = (logp_r >= limits.least_logp) & (repetition_r <= limits.most_repetition)
    return np.where(np.isfinite(logp_r), within_r.astype(np.float64), np.nan)
