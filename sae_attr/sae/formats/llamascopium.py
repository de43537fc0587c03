"""Llamascopium (OpenMOSS, the successor of Llama Scope's code): config.json +
sae_weights.safetensors or .pt.

W_E [d, n], b_E, W_D [n, d], b_D; the R1-distill release has encoder.weight [n, d] and
decoder.weight [d, n] instead. With sparsity_include_decoder_norm the gate looks at pre
|d_i|, and the code is pre: selection and scale are apart, unlike in Llama Scope. Codes
are in the normalised units of training; input and output are in the site's.
Source: llamascopium `models/sae.py`, `models/sparse_dictionary.py`,
  `activation_functions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import llama_scope, releases
from sae_attr.sae.formats.checks import (
    check_gate,
    check_names,
    check_shapes,
    integer,
    read_json,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source
from sae_attr.sae.formats.schema import brief

WEIGHTS = ("sae_weights.safetensors", "sae_weights.pt")
CONFIG = "config.json"

_AVERAGES = "dataset_average_activation_norm"
_AVERAGE = f"{_AVERAGES}."
_OPTIONS = ("norm_scale", "norm_scale_out", "gate", "threshold", "site")
_THRESHOLD = "log_jumprelu_threshold"
_LINEAR = {
    "encoder.weight": "W_E",
    "encoder.bias": "b_E",
    "decoder.weight": "W_D",
    "decoder.bias": "b_D",
}


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE or transcoder whose weight file is given; config.json lies
    beside it.

    Raises:
      ValueError: another kind of dictionary, a GLU encoder; config and tensors that
        disagree; norms that are missing.
    """
    reject_options(options, "llamascopium", _OPTIONS)
    where = weights.parent / CONFIG
    raw = _read_config(weights, where)
    tensors, averages = _tensors(weights)
    raw[_AVERAGES] = _averages(raw, averages)
    act = str(raw.get("act_fn", "jumprelu" if _THRESHOLD in tensors else "relu"))
    has_bias = bool(raw.get("use_decoder_bias", True))
    d = integer(where, raw, "d_model")
    n = _latents(where, raw, d)
    _check(weights, tensors, act, has_bias, (d, n))
    scale = releases.norm_scale(weights.parent)
    if scale and not raw[_AVERAGES] and "norm_scale" not in options:
        raw[_AVERAGES] = {"in": math.sqrt(d) / scale}
    norm, scale_in, scale_out = llama_scope.norms(where, raw, d, options)
    gate, k = _gate(where, act, raw, options)
    by_norm = bool(raw.get("sparsity_include_decoder_norm", True))
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate=gate,
        k=k,
        norm=norm,
        select_by_dec_norm=by_norm and gate == "topk",
        source="llamascopium",
        architecture=act,
        dtype=tensors["W_D"].dtype.name,
        expected_l0=k,
        folded=llama_scope.folded_scales(scale_in, scale_out),
        **llama_scope.places(where, raw, options),
    )
    return _parts(
        weights,
        cfg,
        tensors,
        (scale_in, scale_out),
        options,
        has_bias=has_bias,
        by_norm=by_norm,
    )


def _read_config(weights: Path, where: Path) -> dict[str, Any]:
    """Reads config.json and refuses what is no plain SAE."""
    if not where.is_file():
        raise ValueError(
            f"{weights} has no {CONFIG} beside it; a llamascopium SAE needs both"
        )
    raw = read_json(where)
    # The library also keeps crosscoders, cross-layer transcoders and attention
    # dictionaries under the same file names.
    kind = raw.get("sae_type", "sae")
    if kind != "sae" or raw.get("use_glu_encoder"):
        raise ValueError(
            f"{where}: sae_type {kind!r} or use_glu_encoder is not loaded; only plain "
            "SAEs are"
        )
    return raw


def _parts(
    weights: Path,
    cfg: SAEConfig,
    tensors: dict[str, np.ndarray],
    scales: tuple[float, float],
    options: LoadOptions,
    *,
    has_bias: bool,
    by_norm: bool,
) -> Parts:
    """Folds the scales of input and output.

    Args:
      has_bias: whether the decoder has a bias.
      by_norm: whether the gate compares code times norm of the decoder row.
    """
    scale_in, scale_out = scales
    dec_bias_m = np.zeros(cfg.d_out, np.float32)
    if has_bias:
        dec_bias_m = tensors["b_D"].astype(np.float32)
    vectors = {
        "enc_bias_n": tensors["b_E"],
        "dec_bias_m": dec_bias_m / np.float32(scale_out),
    }
    code_norm = None
    if cfg.gate == "jumprelu":
        vectors["threshold_n"] = _threshold(tensors, cfg.n_latents, options)
        if by_norm:
            # pre |d| > threshold as pre > threshold / |d|. The rows here are divided by
            # scale_out, those of training were not.
            code_norm = lambda norms_sn: norms_sn[0] * scale_out
    dec = decoder_source(tensors["W_D"], norm_scale=scale_out)
    return Parts(
        weights,
        cfg,
        (dec,),
        (tensors["W_E"],),
        vectors,
        scales=(scale_in,),
        code_norm=code_norm,
    )


def _check(
    weights: Path,
    tensors: dict[str, np.ndarray],
    act: str,
    has_bias: bool,
    widths: tuple[int, int],
) -> None:
    """Compares names and shapes with the config.

    Args:
      act: the activation.
      has_bias: whether the decoder has a bias.
      widths: d and n.
    """
    names = ["W_E", "b_E", "W_D"]
    if has_bias:
        names.append("b_D")
    if act == "jumprelu":
        names.append(_THRESHOLD)
    kind = f"a llamascopium SAE with act_fn {act}"
    check_names(weights, kind, tensors, names, (_THRESHOLD,))
    d, n = widths
    shapes = {"W_E": (d, n), "b_E": (n,), "W_D": (n, d), "b_D": (d,), _THRESHOLD: (n,)}
    source = f"{CONFIG} says d_model={d}, {n} latents (expansion_factor)"
    check_shapes(weights, tensors, shapes, source)


def _tensors(weights: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns tensors under the names of the current code, and the average norms that
    lie among them.
    """
    renamed: dict[str, np.ndarray] = {}
    averages: dict[str, float] = {}
    for full, value in read_tensors(weights).items():
        name = full.removeprefix("sae.").removeprefix("activation_function.")
        if name.startswith(_AVERAGE):
            # One buffer per hook, named after it.
            number = float(value.reshape(-1)[0]) if value.size == 1 else math.nan
            averages[name.removeprefix(_AVERAGE)] = number
        elif name in _LINEAR:
            # torch's Linear has [out, in], the current code [in, out].
            renamed[_LINEAR[name]] = value.T if value.ndim == 2 else value
        else:
            renamed[name] = value
    return renamed, averages


def _averages(raw: dict[str, Any], stored: dict[str, float]) -> dict[str, float]:
    """Returns average norms of input and output; buffers that training never set hold
    whatever lay in memory.
    """
    averages = raw.get(_AVERAGES)
    by_side = dict(averages) if isinstance(averages, Mapping) else {}
    for side in ("in", "out"):
        value = stored.get(str(raw.get(f"hook_point_{side}")), math.nan)
        # Bounds that the norm of no activation leaves; NaN fails both.
        if 1e-3 < value < 1e6:
            by_side[side] = value
    return by_side


def _latents(where: Path, raw: dict[str, Any], d: int) -> int:
    value = raw.get("expansion_factor")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    factor = float(value) if is_number else 0.0  # pyright: ignore[reportArgumentType]
    if not 0 < factor < 1e6:
        raise ValueError(
            f"{where}: expansion_factor is {brief(value)}, not a number above 0"
        )
    return int(d * factor)


def _gate(
    where: Path, act: str, raw: dict[str, Any], options: LoadOptions
) -> tuple[str, int | None]:
    if act in ("relu", "jumprelu"):
        if "gate" in options or (act == "relu" and "threshold" in options):
            raise ValueError(
                f"gate= or threshold= means nothing for act_fn {act!r} of {where}; "
                "leave it out"
            )
        return act, None
    if act not in ("topk", "batchtopk"):
        raise ValueError(
            f"{where}: act_fn {act!r} is not loaded; known: relu, jumprelu, topk, "
            "batchtopk"
        )
    default = "topk" if act == "topk" else None
    if "threshold" in options:
        default = "jumprelu"
    gate = options.get("gate", default)
    if gate is None:
        raise ValueError(
            f"{where}: batchtopk selects over a whole batch, which is not defined for "
            "single tokens; give threshold=, "
            "or gate='topk' to keep top_k latents per token"
        )
    check_gate(gate)
    if gate == "jumprelu" and "threshold" not in options:
        raise ValueError(
            f"{where}: gate='jumprelu' for act_fn {act!r} needs threshold="
        )
    return gate, integer(where, raw, "top_k") if gate == "topk" else None


def _threshold(
    tensors: dict[str, np.ndarray], n: int, options: LoadOptions
) -> np.ndarray:
    if "threshold" in options:
        return np.full(n, options["threshold"], np.float32)
    # An infinite threshold is found where the weights are read.
    with np.errstate(over="ignore"):
        return np.exp(tensors[_THRESHOLD].astype(np.float32))


def _detect(file: WeightFile) -> bool:
    if not file.beside(CONFIG):
        return False
    thresholds = {_THRESHOLD, f"activation_function.{_THRESHOLD}"} & file.names
    distilled = "encoder.weight" in file.names and bool(thresholds)
    return distilled or "W_E" in file.names


FORMAT = Format(
    "llamascopium",
    read,
    _detect,
    weights=WEIGHTS,
    configs=(CONFIG, llama_scope.LM_CONFIG),
)
