"""Temporal SAEs as SAELens saves them, and as canrager/temporalSAEs has them: conf.yaml
+ latest_ckpt.safetensors (D, E, b).

lambda = 1 / (4 d_in) and the scale of the input fold into encoder, decoder and biases;
attention reads codes, whose units stay. Source: SAELens 6.54 `temporal_sae.py`,
`temporal_sae_huggingface_loader`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    integer,
    layer_of,
    positive,
    read_yaml,
    reject_options,
)
from sae_attr.sae.formats.format import Format
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

WEIGHTS = "latest_ckpt.safetensors"
CONFIG = "conf.yaml"
# SAELens' names of the attention's maps -> ours.
_MAPS = {"q_target": "q", "k_ctx": "k", "v_ctx": "v", "c_proj": "o"}
_EPS = 1e-6
# canrager/temporalSAEs' names -> SAELens'.
_RELEASED = {"D": "W_dec", "E": "W_enc", "b": "b_dec"}


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads a released temporal SAE; conf.yaml lies beside it.

    Raises:
      ValueError: no config, or config and tensors that disagree.
    """
    reject_options(options, "temporal", ("site",))
    where = weights.parent / CONFIG
    if not where.is_file():
        raise ValueError(
            f"{weights} has no {CONFIG} beside it; a temporal SAE needs both"
        )
    raw = _saelens_config(weights, where)
    tensors = {}
    for name, value in read_tensors(weights).items():
        tensors[_RELEASED.get(name, name)] = value
    return parts(weights, where, raw, tensors, options, source="temporal")


def _saelens_config(weights: Path, where: Path) -> dict[str, Any]:
    """Returns the settings of conf.yaml under the names of SAELens' config."""
    content = read_yaml(where)
    sae, llm = _section(content, "sae"), _section(content, "llm")
    d = integer(where, llm, "dimin")
    factor = positive(f"{where}: exp_factor", sae.get("exp_factor"))
    # conf.yaml names no layer; the folder above the SAE's own does.
    layer = layer_of(f"{weights.absolute().parent.parent.name}/")
    return {
        **sae,
        "d_in": d,
        "d_sae": int(d * factor),
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": sae.get("scaling_factor"),
        "apply_b_dec_to_input": True,
        "hook_name": None if layer is None else f"blocks.{layer}.hook_resid_post",
    }


class _Sizes(NamedTuple):
    """Widths of input and dictionary, and what the attention is made of."""

    d: int
    n: int
    layers: int
    heads: int
    bottleneck: int


def parts(
    weights: Path,
    where: Path,
    raw: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
    *,
    source: str,
) -> Parts:
    """Reads parts from SAELens' config and names.

    Raises:
      ValueError: config and tensors that disagree, or a normalisation that does not
        fold.
    """
    sizes = _sizes(where, raw)
    is_tied = bool(raw.get("tied_weights", True))
    _check(weights, where, tensors, sizes, is_tied)
    scale = _scale(where, raw)
    cfg = _config(where, raw, sizes, scale)
    cfg = replace(
        cfg,
        source=source,
        dtype=tensors["W_dec"].dtype.name,
        site=options.get("site", cfg.site),
    )
    # A tied SAE adds its bias only where it took it from the input.
    adds_bias = cfg.subtract_b_dec or not is_tied
    bias_factor = np.float32(adds_bias / scale)
    vectors = {
        "enc_bias_n": np.zeros(sizes.n, np.float32),
        "dec_bias_m": tensors["b_dec"].astype(np.float32) * bias_factor,
    }
    enc_dn = tensors["W_dec"].T if is_tied else tensors["W_enc"]
    attention = tuple(_attention(tensors, layer) for layer in range(sizes.layers))
    dec = decoder_source(tensors["W_dec"], norm_scale=scale)
    # SAELens multiplies the encoder's input by lambda = 1 / (4 d_in), the decoder's
    # output by nothing: lambda goes into the encoder alone.
    return Parts(
        weights,
        cfg,
        (dec,),
        (enc_dn,),
        vectors,
        scales=(scale / (4 * sizes.d),),
        attention=attention,
    )


def _sizes(where: Path, raw: dict[str, Any]) -> _Sizes:
    """Returns sizes with SAELens' defaults, checked against each other."""
    sizes = _Sizes(
        d=integer(where, raw, "d_in"),
        n=integer(where, raw, "d_sae"),
        layers=integer(where, raw, "n_attn_layers", 1),
        heads=integer(where, raw, "n_heads", 8),
        bottleneck=integer(where, raw, "bottleneck_factor", 64),
    )
    _, n, layers, heads, bottleneck = sizes
    is_sensible = 1 <= layers <= 64 and heads and bottleneck
    # Queries and keys of n / bottleneck numbers are cut into equal heads.
    if not is_sensible or n % (bottleneck * heads):
        raise ValueError(
            f"{where}: {layers} layers of {heads} heads, bottleneck_factor "
            f"{bottleneck}, do not divide {n} latents"
        )
    return sizes


def _check(
    weights: Path,
    where: Path,
    tensors: dict[str, np.ndarray],
    sizes: _Sizes,
    is_tied: bool,
) -> None:
    """Compares names and shapes with the config; a tied SAE may store its encoder."""
    shapes = _shapes(sizes)
    required = [name for name in shapes if not is_tied or name != "W_enc"]
    check_names(weights, "a temporal SAE", tensors, required, ("W_enc",))
    d, n, _, heads, bottleneck = sizes
    source = f"{where.name} says d_in={d}, {n} latents, {heads} heads over {bottleneck}"
    check_shapes(weights, tensors, shapes, source)


def _config(where: Path, raw: dict[str, Any], sizes: _Sizes, scale: float) -> SAEConfig:
    """Returns what the config alone says of the SAE."""
    k = _k(where, raw)
    site = raw.get("hook_name")
    return SAEConfig(
        d_in=sizes.d,
        d_out=sizes.d,
        n_latents=sizes.n,
        gate="temporal",
        k=k,
        heads=sizes.heads,
        # It is added to a norm of what the decoder writes, which the fold of the
        # scale divides.
        projection_eps=_EPS / scale,
        subtract_b_dec=bool(raw.get("apply_b_dec_to_input", True)),
        architecture="temporal",
        site=site,
        layer=layer_of(site),
        model_name=raw.get("model_name"),
        context_size=raw.get("context_size"),
        prepend_bos=raw.get("prepend_bos"),
        expected_l0=k,
        folded=(f"norm_scale={scale:g}",) if scale != 1 else (),
    )


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return {**section} if isinstance(section, dict) else {}


def _shapes(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors."""
    d, n = sizes.d, sizes.n
    narrow = n // sizes.bottleneck
    shapes: dict[str, tuple[int, ...]] = {
        "W_dec": (n, d),
        "W_enc": (d, n),
        "b_dec": (d,),
    }
    for i in range(sizes.layers):
        for name in _MAPS:
            # Values and output keep the full width; only the scores are bottlenecked.
            out = narrow if name in ("q_target", "k_ctx") else n
            shapes[f"attn_layers.{i}.{name}.weight"] = (out, n)
            shapes[f"attn_layers.{i}.{name}.bias"] = (out,)
    return shapes


def _attention(tensors: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """Maps of one layer under the names of `temporal.Attention`."""
    maps = {}
    for stored, name in _MAPS.items():
        place = f"attn_layers.{layer}.{stored}"
        maps[name] = tensors[f"{place}.weight"].T
        maps[f"{name}_bias"] = tensors[f"{place}.bias"]
    return maps


def _k(where: Path, raw: dict[str, Any]) -> int | None:
    """Returns latents per token of the novel part; None for all."""
    kind = raw.get("sae_diff_type", "topk")
    if kind not in ("topk", "relu"):
        raise ValueError(
            f"{where}: sae_diff_type {kind!r} is unknown; known: topk, relu"
        )
    # A top-k without its k, or with 0, keeps all.
    if kind == "relu" or not raw.get("kval_topk"):
        return None
    return integer(where, raw, "kval_topk")


def _scale(where: Path, raw: dict[str, Any]) -> float:
    norm = raw.get("normalize_activations", "none")
    if norm == "constant_scalar_rescale":
        return positive(
            f"{where}: activation_normalization_factor",
            raw.get("activation_normalization_factor", 1.0),
        )
    if norm not in ("none", None):
        raise ValueError(
            f"{where}: a temporal SAE with normalize_activations {norm!r}; known: "
            "none, constant_scalar_rescale"
        )
    return 1.0


FORMAT = Format("temporal", read, weights=(WEIGHTS,), configs=(CONFIG,))
