"""Writes crosscoders as science-of-finetuning's fork of dictionary_learning has them,
which its loader and `load_sae` read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.hub import public_name
from sae_attr.files.torch_writing import write_torch
from sae_attr.sae.export import make_folder, stated
from sae_attr.sae.formats.crosscoder import NORMALIZATIONS
from sae_attr.sae.formats.dictionary_learning import CONFIG, WEIGHTS
from sae_attr.sae.model import SAE

WEIGHT_FILE = WEIGHTS[1]  # of the file names, the fork's
# Thresholds divided by norms and multiplied again are equal to rounding.
_ROUNDING = 1e-4


def save_crosscoder(folder: str | os.PathLike[str], sae: SAE) -> None:
    """Writes `model_final.pt` and `config.json` of a CrossCoder (relu) or a
    BatchTopKCrossCoder (one threshold of code times the sum of row norms).

    A b_dec that is taken from the input is folded into the encoder's bias: codes agree
    to rounding. The model's name is left out where it is a path of this machine.

    Raises:
      ValueError: no crosscoder, or one that the fork's classes cannot express.
      FileExistsError: the folder has an SAE.
    """
    _check(sae)
    cfg, tensors = sae.cfg, _linear(sae)
    trainer: dict[str, Any] = {
        "dict_class": "CrossCoder",
        "activation_dim": cfg.d_in,
        "dict_size": cfg.n_latents,
        "layer": cfg.layer,
        "lm_name": public_name(cfg.model_name),
        "submodule_name": cfg.site,
        "code_normalization": NORMALIZATIONS[0],
    }
    if cfg.gate == "jumprelu":
        trainer["dict_class"] = "BatchTopKCrossCoder"
        k = max(1, round(cfg.expected_l0 or 1))
        trainer["k"] = k
        tensors["k"] = np.asarray(k, np.int32)
        tensors["threshold"] = np.asarray(_threshold(sae), np.float32)
    folder = Path(folder)
    make_folder(folder, WEIGHT_FILE, CONFIG)
    write_torch(folder / WEIGHT_FILE, tensors)
    text = json.dumps({"trainer": stated(trainer)}, indent=1)
    (folder / CONFIG).write_text(text)


def _check(sae: SAE) -> None:
    cfg = sae.cfg
    if cfg.streams < 2:
        raise ValueError(
            f"an SAE of {cfg.streams} stream is no crosscoder; write it with "
            "save_saelens or save_dictionary_learning"
        )
    has_parts = cfg.decoupled or cfg.block_encoder or cfg.norm != "none"
    if has_parts or cfg.gate not in ("relu", "jumprelu") or cfg.d_in != cfg.d_out:
        raise ValueError(
            f"the fork has crosscoders with gate relu or jumprelu, one code for all "
            f"streams and one width; this one has gate {cfg.gate}, "
            f"decoupled={cfg.decoupled}, block_encoder={cfg.block_encoder}, widths "
            f"{cfg.d_in} and {cfg.d_out}"
        )


def _linear(sae: SAE) -> dict[str, np.ndarray]:
    """Returns encoder, decoder and biases, and the normaliser's buffers as they are
    where there is none: NaN.
    """
    cfg = sae.cfg
    streams, d, n = cfg.streams, cfg.d_in, cfg.n_latents
    enc_dn = np.asarray(sae.enc_dn, np.float32)
    bias_n = np.asarray(sae.enc_bias_n, np.float64)
    if cfg.subtract_b_dec:
        dec_bias_m = np.asarray(sae.dec_bias_m, np.float64)
        bias_n = bias_n - dec_bias_m @ enc_dn.astype(np.float64)
    dec_nsd = np.asarray(sae.dec_nm, np.float32).reshape(n, streams, d)
    unset_sd = np.full((streams, d), np.nan, np.float32)
    return {
        "encoder.weight": enc_dn.reshape(streams, d, n),
        "encoder.bias": bias_n.astype(np.float32),
        "decoder.weight": dec_nsd.transpose(1, 0, 2),
        "decoder.bias": np.asarray(sae.dec_bias_m, np.float32).reshape(streams, d),
        "target_rms": np.asarray(1.0, np.float32),
        "activation_mean": unset_sd,
        "activation_std": unset_sd,
        "activation_global_scale": np.ones(streams, np.float32),
        "code_normalization_id": np.asarray(1),  # the first of NORMALIZATIONS
    }


def _threshold(sae: SAE) -> float:
    """Returns the one threshold of code times norm; ValueError where latents differ."""
    cfg = sae.cfg
    dec_nsd = np.asarray(sae.dec_nm, np.float64).reshape(-1, cfg.streams, cfg.d_out)
    norm_n = np.linalg.norm(dec_nsd, axis=-1).sum(-1)
    # A latent without rows is never selected, whatever its threshold.
    level_k = np.asarray(sae.threshold_n, np.float64)[norm_n > 0] * norm_n[norm_n > 0]
    if len(level_k) and np.ptp(level_k) > _ROUNDING * np.abs(level_k).max():
        raise ValueError(
            "thresholds of code times norm are from "
            f"{level_k.min():.4g} to {level_k.max():.4g}, and the fork's "
            "BatchTopKCrossCoder has one for all latents"
        )
    return float(np.median(level_k)) if len(level_k) else 0.0
