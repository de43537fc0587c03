"""Writes SAEs in the layouts of SAELens and dictionary_learning, and takes single
directions out of a decoder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sae_attr.files.hub import public_name
from sae_attr.files.row_source import RowSource
from sae_attr.files.torch_writing import write_torch
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import dictionary_learning, saelens
from sae_attr.sae.model import SAE

# Gate -> SAELens' architecture.
_ARCHITECTURES = {
    "relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abs_topk": "abstopk", "gated": "gated",
    "matching_pursuit": "matching_pursuit",
}  # fmt: skip
_TRANSCODERS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIP_TRANSCODERS = {"relu": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder"}
_LAYOUT_VERSION = "6.0.0"  # of SAELens: from here on the config has its `metadata`


def latent_directions(
    decoder: RowSource, latents: Sequence[int], *, scale: float = 1.0
) -> dict[int, np.ndarray]:
    """Returns decoder rows `[m]` by latent, with the norm `scale`.

    Args:
      decoder: of `formats.open_decoder`; only these rows are read.
      scale: negative for the opposite directions.

    Raises:
      ValueError: a latent outside the decoder, or one whose row is zero.
    """
    directions = {}
    for latent in latents:
        if not 0 <= latent < len(decoder):
            raise ValueError(
                f"latent {latent} lies outside the SAE, whose latents are "
                f"0..{len(decoder) - 1}"
            )
        row_m = decoder.rows(latent, latent + 1)[0]
        norm = float(np.linalg.norm(row_m))
        if norm == 0:
            raise ValueError(f"latent {latent} has a decoder row of zeros")
        directions[latent] = row_m * np.float32(scale / norm)
    return directions


# ---- SAELens -------------------------------------------------------------------------


def save_saelens(folder: str | os.PathLike[str], sae: SAE) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` as SAELens 6 and `load_sae` read
    them, with the same codes.

    Weights keep their dtype; the model's name is left out where it is a path of this
    machine.

    Raises:
      ValueError: the layout cannot express the SAE: several models or layers, a gate
        that SAELens does not have.
      FileExistsError: the folder has an SAE.
    """
    folder = Path(folder)
    architecture = _architecture(sae)
    make_folder(folder, saelens.WEIGHTS, saelens.CONFIG)
    tensors = _saelens_tensors(sae, architecture)
    save_file(tensors, folder / saelens.WEIGHTS)
    raw = _saelens_config(sae.cfg, architecture, tensors["W_dec"].dtype.name)
    (folder / saelens.CONFIG).write_text(json.dumps(raw, indent=1))


def _architecture(sae: SAE) -> str:
    """SAELens' name for the SAE; ValueError where it has none."""
    cfg = sae.cfg
    if cfg.streams > 1:
        raise ValueError(
            f"a crosscoder of {cfg.streams} streams has no place in SAELens' layout; "
            "write one SAE per stream"
        )
    elsewhere = cfg.site_out not in (None, cfg.site)
    is_transcoder = cfg.skip or cfg.d_out != cfg.d_in or elsewhere
    names = _TRANSCODERS if is_transcoder else _ARCHITECTURES
    if cfg.skip:
        names = _SKIP_TRANSCODERS
    if cfg.gate not in names or cfg.select_by_dec_norm:
        kind = "transcoder" if is_transcoder else "SAE"
        gate = f"gate {cfg.gate}"
        if cfg.select_by_dec_norm:
            gate += " with selection by decoder norm"
        raise ValueError(
            f"SAELens has no {kind} with {gate}; it has {', '.join(names)}"
        )
    if is_transcoder and (cfg.subtract_b_dec or cfg.norm != "none"):
        raise ValueError(
            "SAELens' transcoders neither take b_dec from the input nor normalise it; "
            "this one does"
        )
    if cfg.gate == "gated" and _any(sae.enc_bias_n):
        raise ValueError(
            "SAELens' gated SAEs have no encoder bias beside b_gate and b_mag; this "
            "one has"
        )
    adds_b_dec = cfg.gate == "matching_pursuit" and _any(sae.dec_bias_m)
    if adds_b_dec and not cfg.subtract_b_dec:
        raise ValueError(
            "SAELens' matching pursuit adds b_dec only where it takes it from the "
            "input; this one does not"
        )
    return names[cfg.gate]


def _saelens_tensors(sae: SAE, architecture: str) -> dict[str, np.ndarray]:
    fields: dict[str, Any] = {"W_dec": sae.dec_nm, "b_dec": sae.dec_bias_m}
    if architecture != "matching_pursuit":
        fields["W_enc"] = sae.enc_dn
    if architecture not in ("matching_pursuit", "gated"):
        fields["b_enc"] = sae.enc_bias_n
    if architecture == "gated":
        fields["b_gate"] = sae.gate_bias_n
        fields["b_mag"] = sae.mag_bias_n
        fields["r_mag"] = sae.mag_scale_n
    if sae.cfg.gate == "jumprelu":
        fields["threshold"] = sae.threshold_n
    if sae.cfg.skip and sae.skip_dm is not None:
        fields["W_skip"] = sae.skip_dm.T  # stored [d_out, d_in]
    return {name: np.ascontiguousarray(value) for name, value in fields.items()}


def _saelens_config(cfg: SAEConfig, architecture: str, dtype: str) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "architecture": architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.n_latents,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": cfg.subtract_b_dec,
        "normalize_activations": cfg.norm,
        "reshape_activations": "hook_z" if cfg.flatten_heads else "none",
    }
    metadata = {
        "sae_lens_version": _LAYOUT_VERSION,
        "model_name": public_name(cfg.model_name),
        "hook_name": cfg.site,
        "hook_name_out": cfg.site_out,
        "hook_head_index": cfg.head_index,
        "context_size": cfg.context_size,
        "prepend_bos": cfg.prepend_bos,
        "exclude_special_tokens": cfg.exclude_special,
        "masks": None if cfg.masks is None else cfg.masks.to_dict(),
        "l0": cfg.expected_l0,
    }
    raw["metadata"] = stated(metadata)
    if cfg.gate in ("topk", "abs_topk"):
        raw["k"] = cfg.k
        raw["rescale_acts_by_decoder_norm"] = cfg.rescale_by_dec_norm
    if cfg.gate == "matching_pursuit":
        raw["residual_threshold"] = cfg.residual_threshold
        raw["max_iterations"] = cfg.max_iterations
        raw["stop_on_duplicate_support"] = cfg.stop_on_duplicate_support
    if "transcoder" in architecture:
        raw["d_out"] = cfg.d_out
    return raw


# ---- dictionary_learning -------------------------------------------------------------


def save_dictionary_learning(folder: str | os.PathLike[str], sae: SAE) -> None:
    """Writes `ae.pt` and `config.json` as dictionary_learning's `load_dictionary` and
    `load_sae` read them.

    topk becomes AutoEncoderTopK, gated GatedAutoEncoder, jumprelu with one threshold
    BatchTopKSAE, and any other jumprelu and relu (as jumprelu with threshold 0, since
    AutoEncoder is normalised on loading) JumpReluAutoEncoder. That class takes no b_dec
    from its input: there it is folded into the encoder's bias, and codes agree to
    rounding.

    Raises:
      ValueError: the layout cannot express the SAE.
      FileExistsError: the folder has an SAE.
    """
    folder, cfg = Path(folder), sae.cfg
    name, tensors = _dictionary(sae)
    weights = dictionary_learning.WEIGHTS[0]
    make_folder(folder, weights, dictionary_learning.CONFIG)
    trainer = {
        "dict_class": name,
        "activation_dim": cfg.d_in,
        "dict_size": cfg.n_latents,
        "layer": cfg.layer,
        "lm_name": public_name(cfg.model_name),
        "submodule_name": cfg.site,
    }
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    buffer = {
        "ctx_len": cfg.context_size,
        "remove_bos": cfg.exclude_special,
        "masks": None if cfg.masks is None else cfg.masks.to_dict(),
    }
    write_torch(folder / weights, tensors)
    raw = {"trainer": trainer, "buffer": stated(buffer)}
    (folder / dictionary_learning.CONFIG).write_text(json.dumps(raw, indent=1))


def _dictionary(sae: SAE) -> tuple[str, dict[str, np.ndarray]]:
    """Class and state dict of dictionary_learning."""
    cfg = sae.cfg
    _check_dictionary(cfg)
    enc_dn, dec_nm = np.asarray(sae.enc_dn), np.asarray(sae.dec_nm)
    dec_bias_m = np.asarray(sae.dec_bias_m)
    linear = {"encoder.weight": enc_dn.T, "decoder.weight": dec_nm.T}
    if cfg.gate == "gated":
        if _any(sae.enc_bias_n):
            raise ValueError(
                "dictionary_learning's GatedAutoEncoder has no encoder bias beside its "
                "gates'; this one has"
            )
        return "GatedAutoEncoder", {
            **linear,
            "decoder_bias": dec_bias_m,
            "r_mag": np.asarray(sae.mag_scale_n),
            "gate_bias": np.asarray(sae.gate_bias_n),
            "mag_bias": np.asarray(sae.mag_bias_n),
        }
    biased = {
        **linear,
        "encoder.bias": np.asarray(sae.enc_bias_n),
        "b_dec": dec_bias_m,
    }
    if cfg.gate == "topk":
        k, threshold = np.asarray(cfg.k, np.int32), np.asarray(-1, np.float32)
        return "AutoEncoderTopK", {**biased, "k": k, "threshold": threshold}
    threshold_n = np.zeros(cfg.n_latents, np.float32)
    if cfg.gate == "jumprelu":
        threshold_n = np.asarray(sae.threshold_n).astype(np.float32)
        one_threshold = np.ptp(threshold_n) == 0
        if cfg.subtract_b_dec and cfg.expected_l0 and one_threshold:
            k = np.asarray(max(1, round(cfg.expected_l0)), np.int32)
            threshold = np.asarray(threshold_n[0])
            return "BatchTopKSAE", {**biased, "k": k, "threshold": threshold}
    bias_n = np.asarray(sae.enc_bias_n, np.float64)
    if cfg.subtract_b_dec:
        bias_n = bias_n - dec_bias_m.astype(np.float64) @ enc_dn.astype(np.float64)
    return "JumpReluAutoEncoder", {
        "W_enc": enc_dn,
        "W_dec": dec_nm,
        "b_dec": dec_bias_m,
        "b_enc": bias_n.astype(np.float32),
        "threshold": threshold_n,
    }


def _check_dictionary(cfg: SAEConfig) -> None:
    """Raises ValueError for an SAE that no class of dictionary_learning is."""
    writes_elsewhere = cfg.d_in != cfg.d_out or cfg.site_out not in (None, cfg.site)
    has_norm = cfg.norm != "none" or cfg.rescale_by_dec_norm or cfg.select_by_dec_norm
    has_parts = cfg.streams > 1 or cfg.skip or cfg.flatten_heads
    if writes_elsewhere or has_norm or has_parts:
        raise ValueError(
            "dictionary_learning has autoencoders without norms, skips, heads and "
            "streams; this is another"
        )
    subtracts = cfg.subtract_b_dec or cfg.gate in ("relu", "jumprelu")
    if cfg.gate not in ("relu", "jumprelu", "topk", "gated") or not subtracts:
        raise ValueError(
            f"dictionary_learning has no SAE with gate {cfg.gate}, "
            f"subtract_b_dec={cfg.subtract_b_dec}"
        )


def make_folder(folder: Path, *files: str) -> None:
    """Makes a folder for an SAE; raises FileExistsError where one of the files is there."""
    if any((folder / name).exists() for name in files):
        raise FileExistsError(f"{folder} holds an SAE already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)


def stated(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _any(vector_n: Any) -> bool:
    return bool(np.asarray(vector_n, np.float32).any())
