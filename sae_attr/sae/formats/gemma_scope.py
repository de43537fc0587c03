"""Gemma Scope 1: params.npz alone; layer, width, L0 and site are in the path.

    layer_{L}/width_{16k}/average_l0_{N}/params.npz   in   google/gemma-scope-{2b}-pt-{res|mlp|att|transcoders}
    embedding/width_{4k}/average_l0_{N}/params.npz    in   google/gemma-scope-{2b}-pt-res

JumpReLU with a strict threshold; the decoder bias is not subtracted from the input, and
no file says so. BOS was left out of training. The SAEs of the embedding were trained on
rows of the table, which the model multiplies by sqrt(d): that factor is folded, bias
included, so that they read the input of the first block. Source: Lieberum et al. 2024
(arXiv:2408.05147) and its tutorial code.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    positive,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

WEIGHTS = "params.npz"

_SITES = {  # set -> where it reads, where it writes
    "res": ("blocks.{}.hook_resid_post", None),
    "mlp": ("blocks.{}.hook_mlp_out", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
}
_WIDTHS = {f"{2**p // 1000}k": 2**p for p in range(12, 20)} | {"1m": 2**20}


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE in a params.npz.

    Raises:
      ValueError: missing or unexpected tensors, or a width in the path that is not the
        width of the file.
    """
    embedding = (
        re.search(
            r"/embedding/width_\w+/average_l0_\d+/", weights.absolute().as_posix()
        )
        is not None
    )
    reject_options(
        options, "gemma_scope", ("site", *(["norm_scale"] if embedding else []))
    )
    lower = {
        "w_enc": "W_enc",
        "w_dec": "W_dec",
    }  # some files of the collection have these in lower case
    tensors = {
        lower.get(name, name): value for name, value in read_tensors(weights).items()
    }
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    check_names(weights, "a Gemma Scope SAE", tensors, names, ("scaling_factor",))
    cfg = _config(
        weights,
        tensors["W_enc"].shape,
        tensors["W_dec"].shape,
        tensors["W_dec"].dtype.name,
        options,
    )
    shapes = {
        "W_enc": (cfg.d_in, cfg.n_latents),
        "W_dec": (cfg.n_latents, cfg.d_out),
        "b_dec": (cfg.d_out,),
    }
    shapes |= dict.fromkeys(("b_enc", "threshold", "scaling_factor"), (cfg.n_latents,))
    check_shapes(
        weights,
        tensors,
        shapes,
        f"path and W_enc say d_in={cfg.d_in}, width {cfg.n_latents}",
    )
    # SAELens leaves the bias as it is; a reconstruction of a scaled row needs it scaled
    # like the rest.
    scale = (
        positive("norm_scale", options.get("norm_scale", 1 / math.sqrt(cfg.d_in)))
        if embedding
        else 1.0
    )
    cfg = replace(cfg, folded=(f"norm_scale={scale:g}",) if scale != 1 else ())
    dec = decoder_source(
        tensors["W_dec"], scale_n=tensors.get("scaling_factor"), norm_scale=scale
    )
    vectors = {"enc_bias_n": tensors["b_enc"], "threshold_n": tensors["threshold"]}
    vectors["dec_bias_m"] = tensors["b_dec"].astype(np.float32) / np.float32(scale)
    return Parts(weights, cfg, (dec,), (tensors["W_enc"],), vectors, scales=(scale,))


def _config(
    path: Path,
    enc_shape: tuple[int, ...],
    dec_shape: tuple[int, ...],
    dtype: str,
    options: LoadOptions,
) -> SAEConfig:
    if len(enc_shape) != 2 or len(dec_shape) != 2:
        raise ValueError(
            f"{path}: W_enc {list(enc_shape)} and W_dec {list(dec_shape)} should be "
            "[d, n] and [n, d]"
        )
    where = path.absolute().as_posix()
    place = re.search(r"(?:layer_(\d+)|embedding)/width_(\w+)/average_l0_(\d+)", where)
    embedding = place is not None and place[1] is None
    layer = int(place[1] or 0) if place else None
    label = place[2] if place else ""
    width = _WIDTHS.get(label, int(label) if label.isdigit() else enc_shape[1])
    family = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", where)
    sites = _SITES[family[3]] if family else (None, None)
    sites = ("blocks.{}.hook_resid_pre", None) if embedding else sites
    site, site_out = (
        None if s is None or layer is None else s.format(layer) for s in sites
    )
    return SAEConfig(
        d_in=enc_shape[0],
        d_out=dec_shape[1],
        n_latents=width,
        gate="jumprelu",
        flatten_heads=bool(family and family[3] == "att"),
        source="gemma_scope",
        architecture="jumprelu",
        dtype=dtype,
        site=options.get("site", site),
        site_out=site_out,
        layer=layer,
        model_name=f"google/gemma-2-{family[1]}{'-it' if family[2] == 'it' else ''}"
        if family
        else None,
        context_size=1024,
        prepend_bos=True,
        exclude_special=True,
        expected_l0=float(place[3]) if place else None,
    )


def _detect(file: WeightFile) -> bool:
    # An archive of numpy of any name, where its path is the release's.
    path = r"gemma-scope|/width_\w+/average_l0_"
    return file.path.suffix == ".npz" and re.search(path, file.place) is not None


FORMAT = Format("gemma_scope", read, _detect, weights=(WEIGHTS,))
