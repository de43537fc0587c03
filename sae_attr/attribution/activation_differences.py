"""Differences of mean latent activations: Δ-activation between two models, and between
the positives and negatives of one (docs/method.md, Baselines).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from sae_attr.attribution.evidence import Evidence, Skipped
from sae_attr.attribution.latent_statistics import weighted_codes
from sae_attr.sae.model import encode

DIFFERENCES = ("delta_code", "delta_activation")


def activation_difference(
    evidence: Evidence,
    name: str,
    encode_fn: Callable[[jax.Array], jax.Array],
    *,
    block: int,
) -> np.ndarray:
    """Computes one of `DIFFERENCES`, float32 `[n]` or, with an `encode_fn` of fewer
    latents, of those.

    `delta_code` is the mean latent activation on C − on C′; `delta_activation` that of
    the studied model − of the second one, both on the evaluation prompts (Wang et al.
    2025). Both are signed.
    """
    w_k = _weights(evidence, name)
    values = weighted_codes(encode_fn, evidence.table.reads_kd, w_k, block=block)
    if name == "delta_activation":
        if evidence.aligned_kd is None:
            raise ValueError(evidence.no_second_model)
        values = values - weighted_codes(
            encode_fn, evidence.aligned_kd, w_k, block=block
        )
    return values.astype(np.float32)


def all_latents(evidence: Evidence, name: str) -> np.ndarray | Skipped:
    """Computes one of `DIFFERENCES` for every latent, or says why it is left out."""
    n = evidence.sae_cfg.n_latents
    if name == "delta_activation" and evidence.no_second_model:
        return Skipped(evidence.no_second_model)
    if evidence.sae_cfg.no_token_codes:
        return Skipped(evidence.sae_cfg.no_token_codes)
    if why := evidence.over_limit(int((_weights(evidence, name) != 0).sum())):
        return Skipped(why, by_limit=True)
    encode_fn = functools.partial(encode, evidence.sae)
    block = max(1, min(4096, 2**25 // n))
    return activation_difference(evidence, name, encode_fn, block=block)


def _weights(evidence: Evidence, name: str) -> np.ndarray:
    """Returns signed weights of completion tokens, or a plain mean over prompts'
    tokens.
    """
    if name == "delta_code":
        return evidence.weights("completion")
    w_k = np.abs(evidence.weights("prompt"))
    return w_k / w_k.sum()
