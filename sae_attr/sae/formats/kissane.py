"""Files of Connor Kissane and Robert Krzyzanowski: attention SAEs {name}.pt +
{name}_cfg.json, and the crosscoder.

    SAE:        relu((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec, on concatenated heads (hook_z)
    crosscoder: relu(sum_s x_s s_s @ W_enc[s] + b_enc); y_s = (f @ W_dec[:, s] + b_dec[s]) / s_s;
                W_enc [2, d, n], W_dec [n, 2, d]; base model first, then chat model; BOS left out of training

The crosscoder reads activations of mean norm sqrt(d); the factors s_s are in no file.
Source: SAELens' connor_rob_hook_z loader; ckkissane/crosscoder-model-diff-replication
`crosscoder.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import releases
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    integer,
    layer_of,
    matrix_shape,
    one_layer,
    pick_stream,
    positive,
    read_json,
    read_json_if_there,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

CROSSCODER_WEIGHTS = "cc_weights.pt"
CROSSCODER_CONFIG = "cfg.json"
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
_MODELS = ("base", "chat")


def config_of(weights: Path) -> Path:
    """Returns the path of the config of an attention SAE."""
    return weights.with_name(f"{weights.stem}_cfg.json")


def read_hook_z(weights: Path, options: LoadOptions) -> Parts:
    """Reads an attention SAE.

    Raises:
      ValueError: no config, or config and tensors that disagree.
    """
    reject_options(options, "connor_rob", ("site",))
    where = config_of(weights)
    if not where.is_file():
        raise ValueError(
            f"{weights} has no {where.name} beside it; a connor_rob SAE needs both"
        )
    raw, tensors = read_json(where), read_tensors(weights)
    check_names(weights, "a connor_rob SAE", tensors, _NAMES)
    d, n = integer(where, raw, "act_size"), integer(where, raw, "dict_size")
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    check_shapes(
        weights, tensors, shapes, f"{where.name} says act_size={d}, dict_size={n}"
    )
    site = raw.get("act_name")
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        subtract_b_dec=True,
        flatten_heads="hook_z" in str(site),
        source="connor_rob",
        architecture="standard",
        dtype=tensors["W_dec"].dtype.name,
        site=options.get("site", site),
        layer=one_layer(raw.get("layer", layer_of(site))),
        model_name=raw.get("model_name"),
        context_size=raw.get("seq_len"),
    )
    vectors = {"enc_bias_n": tensors["b_enc"], "dec_bias_m": tensors["b_dec"]}
    return Parts(
        weights, cfg, (decoder_source(tensors["W_dec"]),), (tensors["W_enc"],), vectors
    )


def read_crosscoder(weights: Path, options: LoadOptions) -> Parts:
    """Reads a model-diff crosscoder; cfg.json lies beside it.

    Raises:
      ValueError: config and tensors that disagree; scales that are not known.
    """
    reject_options(options, "ckkissane", ("layer", "model", "norm_scale", "site"))
    raw = read_json_if_there(weights.parent / CROSSCODER_CONFIG)
    tensors = read_tensors(weights)
    streams, d, n = _check_crosscoder(weights, raw, tensors)
    scales = _scales(weights, streams, options)
    names = _MODELS if streams == len(_MODELS) else ()
    site = raw.get("hook_point")
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        streams=streams,
        stream_names=names,
        stream=pick_stream(weights, names, streams, options),
        source="ckkissane",
        architecture="crosscoder",
        dtype=tensors["W_dec"].dtype.name,
        site=options.get("site", site),
        layer=layer_of(site),
        model_name=raw.get("model_name"),
        context_size=raw.get("seq_len"),
        # BOS was left out of training, see above.
        exclude_special=True,
        folded=tuple(f"norm_scale={s:g}" for s in scales if s != 1),
    )
    scales_s1 = np.asarray(scales, np.float32)[:, None]
    dec_bias_sd = tensors["b_dec"].astype(np.float32) / scales_s1
    decs = []
    for s, scale in enumerate(scales):
        # The streams are the middle axis of W_dec, and the first one of W_enc.
        decs.append(decoder_source(tensors["W_dec"][:, s], norm_scale=scale))
    vectors = {"enc_bias_n": tensors["b_enc"], "dec_bias_m": dec_bias_sd.reshape(-1)}
    encs = tuple(tensors["W_enc"])
    return Parts(weights, cfg, tuple(decs), encs, vectors, scales=scales)


def _check_crosscoder(
    weights: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[int, int, int]:
    """Returns streams, d and n, after names and shapes are compared with the config."""
    check_names(weights, "a ckkissane crosscoder", tensors, _NAMES)
    streams, d, n = matrix_shape(weights, tensors, "W_enc", 3)
    d_config = integer(weights, raw, "d_in", d)
    n_config = integer(weights, raw, "dict_size", n)
    shapes = {
        "W_enc": (streams, d_config, n_config),
        "W_dec": (n, streams, d),
        "b_enc": (n,),
        "b_dec": (streams, d),
    }
    source = f"{CROSSCODER_CONFIG} and W_enc say d_in={d_config}, dict_size={n_config}"
    check_shapes(weights, tensors, shapes, source)
    return streams, d, n


def _scales(path: Path, streams: int, options: LoadOptions) -> tuple[float, ...]:
    scales = options.get("norm_scale", releases.crosscoder_scales(path.parent))
    if scales is None:
        raise ValueError(
            f"{path}: the crosscoder reads activations scaled to mean norm sqrt(d_in), "
            "model by model, and the factors "
            "are in no file; give norm_scale=(s_base, s_chat), or (1, 1) where the "
            "input is scaled already"
        )
    is_one = not isinstance(scales, tuple | list)
    values = (scales,) * streams if is_one else tuple(scales)
    if len(values) != streams:
        raise ValueError(
            f"{path}: norm_scale= has {len(values)} numbers for {streams} models"
        )
    return tuple(positive("norm_scale", value) for value in values)


def _is_hook_z(file: WeightFile) -> bool:
    is_torch = file.path.suffix != ".safetensors"
    return is_torch and file.names == {*_NAMES} and config_of(file.path).is_file()


def _is_crosscoder(file: WeightFile) -> bool:
    return file.axes("W_enc") == 3


HOOK_Z = Format("connor_rob", read_hook_z, _is_hook_z, configs=("{stem}_cfg.json",))
CROSSCODER = Format(
    "ckkissane",
    read_crosscoder,
    _is_crosscoder,
    weights=(CROSSCODER_WEIGHTS,),
    configs=(CROSSCODER_CONFIG,),
)
