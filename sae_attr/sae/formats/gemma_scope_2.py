"""Gemma Scope 2: config.json + params.safetensors; its crosscoders have one
params_layer_{i}.safetensors per layer.

    {resid_post|attn_out|mlp_out|transcoder}[_all]/layer_{L}_width_{16k}_l0_{small}[_affine]/
    crosscoder/layer_7_13_17_22_width_262k_l0_medium/        in   google/gemma-scope-2-{270m..27b}-{pt,it}

JumpReLU as in Gemma Scope 1, names in lower case. affine_skip_connection is [d_in,
d_out] and used as x @ affine: so say circuit-tracer, the tutorial code, and a
reconstruction with either orientation (0.69 against 0.38 of the energy); SAELens stores
it the other way round. A crosscoder's layers have latents of their own, w_enc [d, n]
each, and each latent writes to every layer, w_dec [n, layers, d]; here they are
numbered layer after layer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.row_source import RowSource
from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    layer_of,
    matrix_shape,
    pick_stream,
    read_json_if_there,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source
from sae_attr.sae.formats.stacked import StackedRows

WEIGHTS = "params.safetensors"
CROSSCODER_WEIGHTS = "params_layer_0.safetensors"
CONFIG = "config.json"
MAX_LAYERS = 10  # of a crosscoder; the published ones have 4

_NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
_SKIP = "affine_skip_connection"
_SITES = {  # folder -> where it reads, where it writes, as config.json has it
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE or transcoder in a params.safetensors.

    Raises:
      ValueError: another architecture; config and tensors that disagree; an unknown
        orientation of the skip.
    """
    reject_options(options, "gemma_scope_2", ("site", "affine"))
    raw = _config(weights)
    tensors = _tensors(weights)
    skip = _SKIP in tensors
    if raw.get("affine_connection") not in (None, skip):
        raise ValueError(
            f"{weights}: {CONFIG} says affine_connection={raw['affine_connection']}, "
            f"the tensors {skip}"
        )
    check_names(weights, "a Gemma Scope 2 SAE", tensors, _NAMES, (_SKIP,))
    (d, n), (_, m) = (
        matrix_shape(weights, tensors, name) for name in ("w_enc", "w_dec")
    )
    width = raw.get("width", n)
    shapes = {
        "w_enc": (d, width if isinstance(width, int) else n),
        "w_dec": (n, m),
        "b_enc": (n,),
        "b_dec": (m,),
    }
    check_shapes(
        weights,
        tensors,
        shapes | {"threshold": (n,)},
        f"{CONFIG} and w_enc say width {width}, d_in={d}",
    )
    site, site_out = _sites(weights, raw)
    cfg = SAEConfig(
        d_in=d,
        d_out=m,
        n_latents=n,
        gate="jumprelu",
        flatten_heads="o_proj.input" in (site or ""),
        skip=skip,
        source="gemma_scope_2",
        architecture=str(raw.get("architecture", "jump_relu")),
        dtype=tensors["w_dec"].dtype.name,
        site=options.get("site", site),
        site_out=site_out,
        layer=layer_of(site),
        model_name=raw.get("model_name"),
        expected_l0=raw.get("l0"),
    )
    vectors = {
        "enc_bias_n": tensors["b_enc"],
        "dec_bias_m": tensors["b_dec"],
        "threshold_n": tensors["threshold"],
    }
    if skip:
        vectors["skip_dm"] = _skip(weights, tensors[_SKIP], (d, m), options)
    elif "affine" in options:
        raise ValueError(
            f"option affine= means nothing for {weights}, which has no {_SKIP}; leave "
            "it out"
        )
    return Parts(
        weights, cfg, (decoder_source(tensors["w_dec"]),), (tensors["w_enc"],), vectors
    )


def read_crosscoder(weights: Path, options: LoadOptions) -> Parts:
    """Reads the crosscoder whose params_layer_0.safetensors is given; the other
    layers' files lie beside it.

    Raises:
      ValueError: layers that disagree in shape or number; a cross-layer transcoder.
    """
    reject_options(options, "gemma_scope_2_crosscoder", ("layer", "model", "site"))
    raw = _config(weights)
    if (
        raw.get("type", "crosscoder") != "crosscoder"
        or weights.absolute().parent.parent.name == "clt"
    ):
        raise ValueError(
            f"{weights}: type {raw.get('type', 'clt')!r}: cross-layer transcoders are "
            "not loaded; each latent writes to all "
            "later layers"
        )
    files = [
        weights.parent / f"params_layer_{i}.safetensors" for i in range(MAX_LAYERS)
    ]
    layers = [_tensors(file) for file in files if file.is_file()]
    names = _layer_numbers(weights)
    streams = len(names) or len(layers)
    if [file.is_file() for file in files] != [
        i < streams for i in range(MAX_LAYERS)
    ] or streams < 2:
        raise ValueError(
            f"{weights.parent} has {len(layers)} files params_layer_*, but its name "
            f"has layers {names}"
        )
    for file, tensors in zip(files, layers):
        check_names(file, "a Gemma Scope 2 crosscoder", tensors, _NAMES)
    d, n = matrix_shape(files[0], layers[0], "w_enc")
    shapes = {
        "w_enc": (d, n),
        "w_dec": (n, streams, d),
        "b_enc": (n,),
        "b_dec": (d,),
        "threshold": (n,),
    }
    for file, tensors in zip(files, layers):
        check_shapes(
            file,
            tensors,
            shapes,
            f"{files[0].name} and {streams} layers say d={d}, {n} latents per layer",
        )
    cfg = _crosscoder_config(
        weights, raw, names, layers[0]["w_dec"].dtype.name, (streams, d, n), options
    )
    fields = {"enc_bias_n": "b_enc", "dec_bias_m": "b_dec", "threshold_n": "threshold"}
    vectors = {
        field: np.concatenate([tensors[name] for tensors in layers])
        for field, name in fields.items()
    }
    decs = tuple(
        _rows([tensors["w_dec"][:, s] for tensors in layers]) for s in range(streams)
    )
    return Parts(
        weights, cfg, decs, tuple(tensors["w_enc"] for tensors in layers), vectors
    )


def _rows(pieces: list[np.ndarray]) -> RowSource:
    matrix: Any = StackedRows(pieces)
    return RowSource(matrix)


def _crosscoder_config(
    path: Path, raw: dict[str, Any], names: tuple[str, ...], dtype: str, sizes: tuple[int, int, int],
    options: LoadOptions,
) -> SAEConfig:  # fmt: skip
    streams, d, n = sizes
    stream = pick_stream(path, names, streams, options)
    layer = int(names[stream]) if stream is not None and names else None
    return SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=streams * n,
        gate="jumprelu",
        streams=streams,
        stream_names=names,
        stream=stream,
        block_encoder=True,
        source="gemma_scope_2_crosscoder",
        architecture="jump_relu",
        dtype=dtype,
        site=options.get(
            "site", None if layer is None else f"model.layers.{layer}.output"
        ),
        layer=layer,
        model_name=raw.get("model_name"),
        expected_l0=raw.get("l0"),
    )


def _config(weights: Path) -> dict[str, Any]:
    raw = read_json_if_there(weights.parent / CONFIG)
    if raw.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise ValueError(
            f"{weights.parent / CONFIG}: architecture {raw['architecture']!r} is "
            "unknown; known: jump_relu"
        )
    return raw


def _tensors(weights: Path) -> dict[str, np.ndarray]:
    return {
        n if n == _SKIP else n.lower(): value
        for n, value in read_tensors(weights).items()
    }


def _sites(path: Path, raw: dict[str, Any]) -> tuple[str | None, str | None]:
    folder = path.absolute().parent
    place = re.match(r"layer_(\d+)_", folder.name)
    family = _SITES.get(folder.parent.name.removesuffix("_all"), (None, None))
    by_path = [
        None if site is None or place is None else site.format(place[1])
        for site in family
    ]
    site = raw.get("hf_hook_point_in", by_path[0])
    site_out = raw.get("hf_hook_point_out", by_path[1])
    return site, None if site_out == site else site_out


def _skip(
    path: Path, affine: np.ndarray, shape: tuple[int, int], options: LoadOptions
) -> np.ndarray:
    way = options.get("affine", "in_out" if affine.shape == shape else "out_in")
    if way not in ("in_out", "out_in"):
        raise ValueError(f"affine={way!r}; the option takes 'in_out' or 'out_in'")
    matrix = affine if way == "in_out" else affine.T
    if matrix.shape != shape:
        raise ValueError(
            f"{path}: {_SKIP} has shape {list(affine.shape)}, not {list(shape)} as "
            f"affine={way!r} needs"
        )
    return matrix


def _layer_numbers(path: Path) -> tuple[str, ...]:
    place = re.match(r"layer_(\d+(?:_\d+)*)_width", path.absolute().parent.name)
    return tuple(place[1].split("_")) if place else ()


def _detect(file: WeightFile) -> bool:
    if "w_enc" not in file.names:
        return False
    raw = read_json_if_there(file.path.parent / CONFIG)
    keys_of_release = {"hf_hook_point_in", "affine_connection"} & raw.keys()
    return file.path.stem.startswith("params") or bool(keys_of_release)


FORMAT = Format("gemma_scope_2", read, _detect, weights=(WEIGHTS,), configs=(CONFIG,))
CROSSCODER = Format(
    "gemma_scope_2_crosscoder",
    read_crosscoder,
    weights=(CROSSCODER_WEIGHTS,),
    shards=tuple(f"params_layer_{i}.safetensors" for i in range(MAX_LAYERS)),
    configs=(CONFIG,),
)
