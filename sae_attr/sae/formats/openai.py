"""OpenAI's sparse_autoencoder: one torch state dict per location and layer, with the
activation's name inside.

    {location}[_v4|_v5_32k|_v5_128k]/autoencoders/{layer}.pt

pre_bias [d], latent_bias [n], encoder.weight [n, d], decoder.weight [d, n] (absent
where tied). Layer norm is not stored: the library applies it exactly where the
activation is TopK. GPT-2 must keep its uncentred writing weights. Source:
openai/sparse_autoencoder `model.py`, and the reference goldens of the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.torch_file import read_torch
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    integer,
    matrix_shape,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

_NAMES = ("pre_bias", "latent_bias", "encoder.weight")
_STATISTICS = (
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)
_SITES = {
    "mlp_post_act": "blocks.{}.mlp.hook_post", "resid_delta_attn": "blocks.{}.hook_attn_out",
    "resid_post_attn": "blocks.{}.hook_resid_mid", "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_post_mlp": "blocks.{}.hook_resid_post",
}  # fmt: skip


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the autoencoder in a torch file.

    Raises:
      ValueError: an unknown activation; entries that disagree.
    """
    reject_options(options, "openai", ("site", "k"))
    content = read_torch(weights)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{weights} holds a {type(content).__name__}, not a state dict"
        )
    tensors = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, np.ndarray)
    }
    state = [
        name
        for name in tensors
        if name.startswith(("activation.", "activation_state_dict."))
    ]
    check_names(
        weights,
        "an OpenAI autoencoder",
        tensors,
        _NAMES,
        ("decoder.weight", *_STATISTICS, *state),
    )
    gate, k = _activation(weights, content, options)
    n, d = matrix_shape(weights, tensors, "encoder.weight")
    shapes = {"pre_bias": (d,), "latent_bias": (n,), "decoder.weight": (d, n)}
    check_shapes(weights, tensors, shapes, f"encoder.weight says d={d}, {n} latents")
    enc_dn = tensors["encoder.weight"].T
    dec_nm = (
        tensors["decoder.weight"].T
        if "decoder.weight" in tensors
        else tensors["encoder.weight"]
    )
    site, layer = _place(weights)
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate=gate,
        k=k,
        subtract_b_dec=True,
        norm="layer_norm" if content["activation"] == "TopK" else "none",
        source="openai",
        architecture=str(content["activation"]),
        dtype=dec_nm.dtype.name,
        site=options.get("site", site),
        layer=layer,
        model_name=None if site is None else "gpt2",
        context_size=None if site is None else 64,
        expected_l0=k,
    )
    vectors = {"enc_bias_n": tensors["latent_bias"], "dec_bias_m": tensors["pre_bias"]}
    return Parts(weights, cfg, (decoder_source(dec_nm),), (enc_dn,), vectors)


def _activation(
    path: Path, content: Mapping[str, Any], options: LoadOptions
) -> tuple[str, int | None]:
    name = content.get("activation")
    if name in ("ReLU", "Identity"):
        if "k" in options:
            raise ValueError(
                f"option k= means nothing for {path}, whose activation is {name}; "
                "leave it out"
            )
        return {"ReLU": "relu", "Identity": "identity"}[name], None
    if name != "TopK":
        raise ValueError(f"{path}: activation is {name!r}; known: ReLU, TopK, Identity")
    state = content.get("activation_state_dict")
    state = {**state} if isinstance(state, Mapping) else {}
    also = {
        "k": content.get("activation.k"),
        "postact_fn": content.get("activation.postact_fn"),
    }
    for key, value in also.items():
        if value is not None and state.setdefault(key, value) != value:
            raise ValueError(
                f"{path}: activation.{key} is {value!r} but activation_state_dict has "
                f"{state[key]!r}"
            )
    if isinstance(state.get("k"), np.ndarray) and state["k"].size == 1:
        state["k"] = int(state["k"].reshape(-1)[0])
    if "k" not in options and state.get("k") is None:
        raise ValueError(f"{path}: activation TopK without its k; give k=")
    after = state.get("postact_fn", "ReLU")
    if after not in ("ReLU", "Identity"):
        raise ValueError(f"{path}: postact_fn is {after!r}; known: ReLU, Identity")
    k = options["k"] if "k" in options else integer(path, state, "k")
    return "topk" if after == "ReLU" else "topk_raw", k


def _place(path: Path) -> tuple[str | None, int | None]:
    place = re.search(
        rf"({'|'.join(_SITES)})(?:_v\w+)?/autoencoders/(\d+)\.pt$",
        path.absolute().as_posix(),
    )
    return (_SITES[place[1]].format(place[2]), int(place[2])) if place else (None, None)


def _detect(file: WeightFile) -> bool:
    return {"pre_bias", "latent_bias"} <= file.names


FORMAT = Format("openai", read, _detect)
