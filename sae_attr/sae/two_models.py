"""Crosscoders of a model and its fine-tune: the decoder rows of either, and which of the
two a latent belongs to by their lengths (arXiv:2504.02922).

    Δ_norm = ½ ((|d_ft| - |d_base|) / max(|d_ft|, |d_base|) + 1)
"""

from __future__ import annotations

import numpy as np

from sae_attr.sae.config import SAEConfig
from sae_attr.sae.model import SAE

BASE, FINE_TUNED = 0, 1  # order of the streams


def check_two_models(cfg: SAEConfig) -> None:
    """Raises ValueError for a dictionary that is no crosscoder of two models."""
    if cfg.streams != 2:
        raise ValueError(
            f"the dictionary has {cfg.streams} streams; a comparison of a base model "
            "and its fine-tune needs a crosscoder of 2"
        )
    if cfg.decoupled or cfg.block_encoder:
        kind = "gated stream by stream" if cfg.decoupled else "in blocks of one stream"
        raise ValueError(
            f"the crosscoder's latents are {kind}, so that a latent has no activation "
            "that both models share; give one whose encoder sums over the streams"
        )
    if cfg.d_in != cfg.d_out:
        raise ValueError(
            f"the crosscoder reads width {cfg.d_in} and writes {cfg.d_out}; give one "
            "that reconstructs what it reads"
        )


def stream_rows(sae: SAE) -> np.ndarray:
    """Returns the decoder rows of both models, `[2, n, d]`, float64."""
    check_two_models(sae.cfg)
    dec_nmd = np.asarray(sae.dec_nm, np.float64).reshape(-1, 2, sae.cfg.d_out)
    return dec_nmd.transpose(1, 0, 2)


def relative_norms(sae: SAE) -> np.ndarray:
    """Returns Δ_norm of every latent, `[n]`: 1 where the fine-tuned model alone has it,
    0 where the base model alone has, ½ where the rows are equally long; NaN where both
    are zero.
    """
    base_n, tuned_n = np.linalg.norm(stream_rows(sae), axis=-1)
    return (ratio(tuned_n - base_n, np.maximum(base_n, tuned_n)) + 1) / 2


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, NaN where that has no value."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    return np.divide(above, below, out=np.full(shape, np.nan), where=below != 0)
