"""EleutherAI sparsify: {hookpoint}/cfg.json + sae.safetensors; the run's config.json
lies one folder up.

encoder.weight [n, d], but W_dec [n, d] already; W_skip [d_out, d_in]. An SAE takes
b_dec from its input, a transcoder does not (before February 2025 it did, and its config
does not say). multi_topk changes training alone.
Source: sparsify 1.3 `sparse_coder.py`, `fused_encoder.py`; `signed` from its history of
  summer 2024; the goldens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    integer,
    layer_of,
    read_json,
    read_json_if_there,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
RUN_CONFIG = "config.json"

_NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE or transcoder whose weight file is given; cfg.json lies beside
    it.

    Raises:
      ValueError: no cfg.json, an unknown activation, or config and tensors that
        disagree.
    """
    reject_options(options, "sparsify", ("site", "pre_bias"))
    if not (weights.parent / CONFIG).is_file():
        raise ValueError(
            f"{weights} has no {CONFIG} beside it; a sparsify SAE needs both (a file "
            "of your own: fmt=plain)"
        )
    raw = read_json(weights.parent / CONFIG)
    run = read_json_if_there(weights.parent.parent / RUN_CONFIG)
    tensors = read_tensors(weights)
    skip = bool(raw.get("skip_connection", False))
    check_names(
        weights, "a sparsify SAE", tensors, (*_NAMES, *(["W_skip"] if skip else []))
    )
    d, n, m = _check(weights, raw, tensors)
    cfg = _config(weights, raw, run, tensors["W_dec"], (d, n, m), options)
    vectors = {"enc_bias_n": tensors["encoder.bias"], "dec_bias_m": tensors["b_dec"]}
    if skip:
        vectors["skip_dm"] = tensors["W_skip"].T
    return Parts(
        weights,
        cfg,
        (decoder_source(tensors["W_dec"]),),
        (tensors["encoder.weight"].T,),
        vectors,
    )


def _check(
    path: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[int, int, int]:
    where = path.parent / CONFIG
    d, n = integer(where, raw, "d_in"), integer(where, raw, "num_latents", 0)
    n = n or d * integer(where, raw, "expansion_factor")  # num_latents 0: the product
    m = (
        tensors["W_dec"].shape[-1]
        if raw.get("transcode") and tensors["W_dec"].ndim
        else d
    )
    shapes = {
        "encoder.weight": (n, d),
        "encoder.bias": (n,),
        "W_dec": (n, m),
        "b_dec": (m,),
        "W_skip": (m, d),
    }
    check_shapes(
        path,
        tensors,
        shapes,
        f"{CONFIG} says d_in={d}, {n} latents (num_latents or expansion_factor)",
    )
    return d, n, m


def _gate(path: Path, raw: dict[str, Any]) -> str:
    activation = raw.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise ValueError(
            f"{path.parent / CONFIG}: activation {activation!r} is unknown; known: "
            "topk, groupmax"
        )
    if raw.get("signed"):  # no relu, and the largest absolute values are kept
        if activation != "topk":
            raise ValueError(
                f"{path.parent / CONFIG}: signed with activation {activation!r}; the "
                "library had no such SAE"
            )
        return "abs_topk"
    return activation


def _config(
    path: Path, raw: dict[str, Any], run: dict[str, Any], dec_nm: np.ndarray, sizes: tuple[int, int, int],
    options: LoadOptions,
) -> SAEConfig:  # fmt: skip
    d, n, m = sizes
    transcode = bool(raw.get("transcode", False))
    if "pre_bias" in options and not transcode:
        raise ValueError(
            f"option pre_bias= means nothing for {path}: a sparsify SAE always takes "
            "b_dec from its input"
        )
    subtract = bool(options.get("pre_bias", False)) if transcode else True
    if subtract and m != d:
        raise ValueError(
            f"{path}: pre_bias=True, but b_dec has {m} numbers and the input {d}; "
            "leave it out"
        )
    gate = _gate(path, raw)
    hookpoint = path.absolute().parent.name
    site = hookpoint if re.search(r"(?:layers|h)\.\d+", hookpoint) else None
    excluded = run.get("exclude_tokens")
    return SAEConfig(
        d_in=d,
        d_out=m,
        n_latents=n,
        gate=gate,
        k=integer(path.parent / CONFIG, raw, "k"),
        subtract_b_dec=subtract,
        skip=bool(raw.get("skip_connection", False)),
        source="sparsify",
        architecture="transcoder" if transcode else "sae",
        dtype=dec_nm.dtype.name,
        site=options.get("site", f"{site}.input" if site and transcode else site),
        site_out=f"{site}.output" if site and transcode else None,
        layer=layer_of(site),
        model_name=run.get("model"),
        context_size=run.get("ctx_len"),
        exclude_special=None if excluded is None else bool(excluded),
        expected_l0=raw["k"],
    )


def _detect(file: WeightFile) -> bool:
    return {"encoder.weight", "W_dec"} <= file.names and file.beside(CONFIG)


FORMAT = Format(
    "sparsify",
    read,
    _detect,
    weights=(WEIGHTS,),
    configs=(CONFIG,),
    configs_above=(RUN_CONFIG,),
)
