"""Transcoders of single layers as circuit-tracer reads them: layer_{L}.safetensors,
with one config.yaml for the set.

    relu or jumprelu(x @ W_enc.T + b_enc) @ W_dec + b_dec (+ x @ W_skip.T);   W_enc [n, d], W_dec [n, d], W_skip [d, d]

b_dec belongs to the output and is not taken from the input. So are mwhanna's
transcoders of Qwen3, the largest of which have no config. Source: circuit-tracer's
single_layer_transcoder.py, SAELens' mwhanna loader (which names the sites).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import saelens
from sae_attr.sae.formats.checks import (
    check_gate,
    check_names,
    check_shapes,
    integer,
    matrix_shape,
    read_yaml,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

CONFIG = "config.yaml"
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
_THRESHOLD = "activation_function.threshold"


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the transcoder in a file; config.yaml lies beside it, or is missing.

    Raises:
      ValueError: tensors that disagree, an unknown activation, or a config that is no
        YAML.
    """
    reject_options(options, "circuit_tracer", ("gate", "k", "threshold", "site"))
    where = weights.parent / CONFIG
    raw, tensors = read_yaml(where) if where.is_file() else {}, read_tensors(weights)
    check_names(
        weights, "a circuit-tracer transcoder", tensors, _NAMES, (_THRESHOLD, "W_skip")
    )
    n, d = matrix_shape(weights, tensors, "W_enc")
    _, m = matrix_shape(weights, tensors, "W_dec")
    shapes = {"W_dec": (n, m), "b_enc": (n,), "b_dec": (m,), "W_skip": (m, d)}
    check_shapes(
        weights,
        tensors,
        shapes,
        f"W_enc and W_dec say {n} latents, d_in={d}, d_out={m}",
    )
    gate, k = _gate(weights, raw, tensors, options)
    layer, site, site_out = _places(weights, raw)
    cfg = SAEConfig(
        d_in=d,
        d_out=m,
        n_latents=n,
        gate=gate,
        k=k,
        skip="W_skip" in tensors,
        source="circuit_tracer",
        architecture="transcoder",
        dtype=tensors["W_dec"].dtype.name,
        site=options.get("site", site),
        site_out=site_out,
        layer=layer,
        model_name=raw.get("model_name"),
        expected_l0=k,
    )
    vectors = {"enc_bias_n": tensors["b_enc"], "dec_bias_m": tensors["b_dec"]}
    if gate == "jumprelu":
        vectors["threshold_n"] = _threshold(weights, tensors, n, options)
    if cfg.skip:
        vectors["skip_dm"] = tensors["W_skip"].T
    return Parts(
        weights,
        cfg,
        (decoder_source(tensors["W_dec"]),),
        (tensors["W_enc"].T,),
        vectors,
    )


def _gate(
    path: Path,
    raw: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
    options: LoadOptions,
) -> tuple[str, int | None]:
    """The stored threshold decides; without one the config's activation, relu where it
    is silent.
    """
    activation = (
        str(raw.get("activation", raw.get("activation_function", "relu")))
        .lower()
        .replace("_", "")
    )
    stored = "jumprelu" if _THRESHOLD in tensors else activation
    gate = options.get(
        "gate",
        "jumprelu" if "threshold" in options else "topk" if "k" in options else stored,
    )
    if gate == "relu" and stored == "relu":
        return "relu", None
    if gate not in ("topk", "jumprelu") and "gate" not in options:
        raise ValueError(
            f"{path.parent / CONFIG}: activation {activation!r} is unknown; known: relu, "
            "jumprelu, topk"
        )
    check_gate(gate)
    if gate == "topk":
        return "topk", options["k"] if "k" in options else integer(
            path.parent / CONFIG, raw, "k"
        )
    return "jumprelu", None


def _threshold(
    path: Path, tensors: Mapping[str, np.ndarray], n: int, options: LoadOptions
) -> np.ndarray:
    if "threshold" in options:
        return np.full(n, options["threshold"], np.float32)
    if _THRESHOLD not in tensors:
        raise ValueError(
            f"{path} has a jumprelu gate and no {_THRESHOLD}; give threshold="
        )
    stored = tensors[_THRESHOLD].reshape(-1)
    if stored.size not in (1, n):
        raise ValueError(
            f"{path}: {_THRESHOLD} has {stored.size} numbers, not 1 or {n}"
        )
    return np.broadcast_to(stored, (n,))


def _places(
    path: Path, raw: dict[str, Any]
) -> tuple[int | None, str | None, str | None]:
    """Layer, and the hooks of TransformerLens where it reads and writes."""
    match = re.fullmatch(r"layer_(\d+)", path.stem)
    layer = int(match[1]) if match else None
    qwen = _is_qwen(path)
    hooks = (
        raw.get("feature_input_hook", "mlp.hook_in" if qwen else None),
        raw.get("feature_output_hook"),
    )
    if layer is None or hooks[0] is None:
        return layer, None, None
    return (
        layer,
        f"blocks.{layer}.{hooks[0]}",
        f"blocks.{layer}.{hooks[1] or 'hook_mlp_out'}",
    )


def _is_qwen(path: Path) -> bool:
    """Whether the path is that of mwhanna's transcoders, the largest of which have no
    config.
    """
    return (
        re.search(r"qwen3-[\w.]+-transcoders", path.absolute().as_posix().lower())
        is not None
    )


def _detect(file: WeightFile) -> bool:
    names, tensors = file.names, file.tensors
    if not {*_NAMES} <= names <= {*_NAMES, _THRESHOLD, "W_skip"}:
        return False
    if file.path.suffix != ".safetensors" or file.beside(saelens.CONFIG):
        return False
    shape = (tensors["b_enc"].size, tensors["b_dec"].size)
    latents_first = all(tensors[name].shape == shape for name in ("W_enc", "W_dec"))
    of_a_layer = re.fullmatch(r"layer_\d+", file.path.stem) is not None
    released = of_a_layer and (file.beside(CONFIG) or _is_qwen(file.path))
    return latents_first and (_THRESHOLD in names or released)


FORMAT = Format("circuit_tracer", read, _detect, configs=(CONFIG,))
