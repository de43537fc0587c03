"""Llama Scope (OpenMOSS, fnlp/Llama3_1-8B-Base-LX{R|A|M|TC}-{8|32}x): hyperparams.json
+ checkpoints/final.safetensors.

The official way, in this order: (1) dataset-wise norms leave bias and decoder, so that
x is raw from here on; (2) the decoder's norms go into the encoder; (3) top-k with a
threshold becomes JumpReLU with one threshold for all:

    s = sqrt(d) / average norm;  encoder.bias /= s_in;  decoder.weight *= s_in / s_out;  decoder.bias /= s_out
    encoder.weight[i], encoder.bias[i] *= |d_i|;  d_i /= |d_i|;  codes = pre where pre > threshold

The threshold was fitted on an SAE loaded this way. Leaving out (2), as SAELens does,
gates on pre instead of pre |d_i|. Source: He et al. 2024 (arXiv:2410.20526),
Language-Model-SAEs `sae.py` and `post_processing.py`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_gate,
    check_names,
    check_shapes,
    integer,
    layer_of,
    positive,
    read_json,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

WEIGHTS = "checkpoints/final.safetensors"
CONFIG = "hyperparams.json"
LM_CONFIG = "lm_config.json"

_OPTIONS = ("norm_scale", "norm_scale_out", "gate", "k", "threshold", "site")
_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE or transcoder whose checkpoint is given; hyperparams.json lies
    one folder up, or beside it.

    Raises:
      ValueError: config and tensors that disagree; norms that are missing; an
        activation that is not known.
    """
    reject_options(options, "llama_scope", _OPTIONS)
    where = _config_of(weights)
    raw, tensors = read_json(where), read_tensors(weights)
    if raw.get("use_glu_encoder"):
        raise ValueError(
            f"{where}: use_glu_encoder is not loaded; the release has no such SAE"
        )
    d, n = _check(weights, where, raw, tensors)
    norm, scale_in, scale_out = norms(where, raw, d, options)
    gate, k, threshold = _gate(where, raw, options)
    folds_dec_norm = bool(raw.get("sparsity_include_decoder_norm", True))
    folded = folded_scales(scale_in, scale_out)
    if folds_dec_norm:
        folded = (*folded, "decoder norm")
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate=gate,
        k=k,
        norm=norm,
        subtract_b_dec=bool(raw.get("apply_decoder_bias_to_pre_encoder", False)),
        source="llama_scope",
        architecture=str(raw.get("act_fn")),
        dtype=tensors["decoder.weight"].dtype.name,
        expected_l0=raw.get("top_k"),
        folded=folded,
        **places(where, raw, options),
    )
    vectors = _biases(tensors, d, scale_in, scale_out)
    if threshold is not None:
        vectors["threshold_n"] = np.full(n, threshold, np.float32)
    # Step (1) leaves the encoder's matrix alone, so that the decoder carries both
    # scales, and codes are in the units of the raw input.
    dec = decoder_source(
        tensors["decoder.weight"].T,
        norm_scale=scale_out / scale_in,
        unit=folds_dec_norm,
    )
    return Parts(
        weights,
        cfg,
        (dec,),
        (tensors["encoder.weight"].T,),
        vectors,
        fold_dec_norm=folds_dec_norm,
    )


def _check(
    weights: Path, where: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[int, int]:
    """Returns d and n of the config, after names and shapes are compared with it."""
    names = _NAMES
    if raw.get("use_decoder_bias", True):
        names = (*names, "decoder.bias")
    check_names(weights, "a Llama Scope SAE", tensors, names)
    d, n = integer(where, raw, "d_model"), integer(where, raw, "d_sae")
    shapes = {
        "encoder.weight": (n, d),
        "encoder.bias": (n,),
        "decoder.weight": (d, n),
        "decoder.bias": (d,),
    }
    check_shapes(weights, tensors, shapes, f"{CONFIG} says d_model={d}, d_sae={n}")
    return d, n


def _biases(
    tensors: dict[str, np.ndarray], d: int, scale_in: float, scale_out: float
) -> dict[str, np.ndarray]:
    """Returns the biases in units of the raw input and output, step (1) above."""
    # The release is bfloat16: widened before it is divided, and not after.
    enc_bias_n = tensors["encoder.bias"].astype(np.float32)
    dec_bias_m = np.zeros(d, np.float32)
    if "decoder.bias" in tensors:
        dec_bias_m = tensors["decoder.bias"].astype(np.float32)
    return {
        "enc_bias_n": enc_bias_n / np.float32(scale_in),
        "dec_bias_m": dec_bias_m / np.float32(scale_out),
    }


def _config_of(weights: Path) -> Path:
    for folder in (weights.parent.parent, weights.parent):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise ValueError(
        f"{weights} has no {CONFIG} one folder up or beside it; a llama_scope SAE "
        "needs both"
    )


def folded_scales(scale_in: float, scale_out: float) -> tuple[str, ...]:
    """Returns what `SAEConfig.folded` says of the scales of input and output."""
    folded = ()
    if scale_in != 1:
        folded = (f"norm_scale={scale_in:g}",)
    if scale_out != scale_in:
        folded = (*folded, f"norm_scale_out={scale_out:g}")
    return folded


def norms(
    where: Path, raw: dict[str, Any], d: int, options: LoadOptions
) -> tuple[str, float, float]:
    """Returns the norm per token, and the scales of input and output to be folded.

    Raises:
      ValueError: dataset-wise without average norms; a norm that depends on the batch.
    """
    kind = raw.get("norm_activation", "dataset-wise")
    if kind == "dataset-wise":
        return "none", *_dataset_scales(where, raw, d, options)
    if kind not in ("inference", "none", None, "token-wise"):
        raise ValueError(
            f"{where}: norm_activation {kind!r} depends on the batch and is not loaded"
        )
    for name in ("norm_scale", "norm_scale_out"):
        if name in options:
            raise ValueError(
                f"{name}= is given but {where} says norm_activation={kind!r}; leave it "
                "out"
            )
    if kind != "token-wise":
        return "none", 1.0, 1.0
    if _writes_elsewhere(raw):
        raise ValueError(
            f"{where}: a transcoder with token-wise norm_activation is not loaded"
        )
    return "constant_norm_rescale", 1.0, 1.0


def _dataset_scales(
    where: Path, raw: dict[str, Any], d: int, options: LoadOptions
) -> tuple[float, float]:
    """Returns s of input and output, of the options or of the stored averages."""
    scale_in, scale_out = (_scale(raw, side, d, options) for side in ("in", "out"))
    if scale_in is None:
        raise ValueError(
            f"{where} says dataset-wise, but dataset_average_activation_norm is not "
            "there; give "
            "norm_scale= sqrt(d_model) / E|x|, and norm_scale_out= for a transcoder"
        )
    if scale_out is None and _writes_elsewhere(raw):
        raise ValueError(
            f"{where}: the average norm of the output is not there; give "
            "norm_scale_out="
        )
    # An SAE writes where it reads.
    return scale_in, scale_in if scale_out is None else scale_out


def _writes_elsewhere(raw: dict[str, Any]) -> bool:
    site = raw.get("hook_point_in")
    return raw.get("hook_point_out", site) != site


def _scale(
    raw: dict[str, Any], side: str, d: int, options: LoadOptions
) -> float | None:
    option = options.get("norm_scale" if side == "in" else "norm_scale_out")
    if option is not None:
        return positive("norm_scale", option)
    averages = raw.get("dataset_average_activation_norm")
    average = averages.get(side) if isinstance(averages, dict) else None
    if average is None:
        return None
    return math.sqrt(d) / positive(f"dataset_average_activation_norm.{side}", average)


def _gate(
    where: Path, raw: dict[str, Any], options: LoadOptions
) -> tuple[str, int | None, float | None]:
    """Returns gate, k and the one threshold of all latents."""
    name, stored = raw.get("act_fn"), raw.get("jump_relu_threshold") or 0.0
    threshold = float(options.get("threshold", stored))
    if name == "relu" and not {"gate", "k", "threshold"} & set(options):
        return "relu", None, None
    if name not in ("topk", "jumprelu"):
        raise ValueError(
            f"{where}: act_fn {name!r} is unknown or takes no gate=, k=, threshold=; "
            "known: topk, jumprelu"
        )
    # Trained as a top-k, released with a threshold: the official loader goes by that.
    default = "jumprelu" if name == "jumprelu" or threshold > 0 else "topk"
    gate = options.get("gate", default)
    check_gate(gate)
    if gate == "topk":
        k = options["k"] if "k" in options else integer(where, raw, "top_k")
        return "topk", k, None
    if not threshold > 0:
        raise ValueError(
            f"{where}: jump_relu_threshold is {stored!r}; give threshold=, or "
            "gate='topk' with k="
        )
    return "jumprelu", None, threshold


def places(where: Path, raw: dict[str, Any], options: LoadOptions) -> dict[str, Any]:
    """Returns site, output site, layer and model, as `SAEConfig` names them."""
    site, site_out = raw.get("hook_point_in"), raw.get("hook_point_out")
    model = raw.get("model_name")
    if model is None and re.search(r"Llama3_1-8B-Base", where.absolute().as_posix()):
        model = "meta-llama/Llama-3.1-8B"
    return {
        "site": options.get("site", site),
        "site_out": None if site_out == site else site_out,
        "layer": layer_of(site),
        "model_name": model,
    }


def _detect(file: WeightFile) -> bool:
    if file.names != {*_NAMES, "decoder.bias"}:
        return False
    folders = (file.path.parent, file.path.parent.parent)
    return any((folder / CONFIG).is_file() for folder in folders)


FORMAT = Format(
    "llama_scope",
    read,
    _detect,
    weights=(WEIGHTS,),
    configs=(CONFIG, LM_CONFIG),
    configs_above=(CONFIG,),
)
