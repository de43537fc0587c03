"""Releases that are one torch file of a linear encoder and decoder, with what else
there is to know in its name.

    goodfire    Llama-3.1-8B-Instruct-SAE-l19.pth          encoder_linear.weight [n, d], decoder_linear.weight [d, n]; relu
    qresearch   DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt    encoder.weight [n, d], decoder.weight [d, n]; relu
    qwen_scope  SAE-Res-{model}-W64K-L0_50/layer3.sae.pt   W_enc [n, d], W_dec [d, n], against their names; top-k

None takes the decoder's bias from its input. Source: SAELens loaders, the releases' own
READMEs.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    matrix_shape,
    reject_options,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

_GOODFIRE = (
    "encoder_linear.weight",
    "encoder_linear.bias",
    "decoder_linear.weight",
    "decoder_linear.bias",
)
_QRESEARCH = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_QWEN = ("W_enc", "b_enc", "W_dec", "b_dec")


def read_goodfire(weights: Path, options: LoadOptions) -> Parts:
    """Reads a Goodfire SAE: residual stream after the layer in its name. Errors as
    for `load_sae`.
    """
    reject_options(options, "goodfire", ("site",))
    name = re.match(r"(Llama-[\w.-]+-Instruct)-SAE-l(\d+)$", weights.stem)
    model = f"meta-llama/{name[1]}" if name else None
    return _linear(
        weights,
        "goodfire",
        _GOODFIRE,
        int(name[2]) if name else None,
        model,
        None,
        options,
    )


def read_qresearch(weights: Path, options: LoadOptions) -> Parts:
    """Reads qresearch's SAE of DeepSeek-R1-Distill-Llama-8B. Errors as for
    `load_sae`.
    """
    reject_options(options, "qresearch", ("site",))
    name = re.search(r"(DeepSeek-R1-Distill-[\w.]+-\d+B)?.*?-l(\d+)$", weights.stem)
    model = f"deepseek-ai/{name[1]}" if name and name[1] else None
    return _linear(
        weights,
        "qresearch",
        _QRESEARCH,
        int(name[2]) if name else None,
        model,
        None,
        options,
    )


def read_qwen_scope(weights: Path, options: LoadOptions) -> Parts:
    """Reads a Qwen-Scope SAE; k is in the name of its repository (L0_50), or the
    option. Errors as for `load_sae`.

    The README's code has no relu after the top-k, SAELens and we have; they differ only
    on a token with fewer than k positive pre-activations.
    """
    reject_options(options, "qwen_scope", ("site", "k"))
    place = re.search(
        r"SAE-Res-([\w.-]+?)-W\w+-L0_(\d+)", weights.absolute().as_posix()
    )
    number = re.match(r"layer(\d+)\.sae$", weights.stem)
    k = options.get("k", int(place[2]) if place else None)
    if k is None:
        raise ValueError(
            f"{weights}: k is in the name of the repository (SAE-Res-...-L0_50), not "
            "in the file; give k="
        )
    model = f"Qwen/{place[1]}" if place else None
    return _linear(
        weights,
        "qwen_scope",
        _QWEN,
        int(number[1]) if number else None,
        model,
        k,
        options,
    )


def _linear(
    path: Path, source: str, names: tuple[str, ...], layer: int | None, model: str | None, k: int | None,
    options: LoadOptions,
) -> Parts:  # fmt: skip
    tensors: dict[str, np.ndarray] = read_tensors(path)
    enc, enc_bias, dec, dec_bias = names
    check_names(path, f"a {source} SAE", tensors, names)
    n, d = matrix_shape(path, tensors, enc)
    check_shapes(
        path,
        tensors,
        {enc_bias: (n,), dec: (d, n), dec_bias: (d,)},
        f"{enc} says d={d}, {n} latents",
    )
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate="relu" if k is None else "topk",
        k=k,
        source=source,
        architecture=source,
        dtype=tensors[dec].dtype.name,
        layer=layer,
        model_name=model,
        expected_l0=k,
        site=options.get(
            "site", None if layer is None else f"blocks.{layer}.hook_resid_post"
        ),
    )
    vectors = {"enc_bias_n": tensors[enc_bias], "dec_bias_m": tensors[dec_bias]}
    return Parts(
        path, cfg, (decoder_source(tensors[dec].T),), (tensors[enc].T,), vectors
    )


def _is_goodfire(file: WeightFile) -> bool:
    named = re.search(r"SAE-l\d+$", file.path.stem) is not None
    return named and "encoder_linear.weight" in file.names


def _is_qresearch(file: WeightFile) -> bool:
    named = re.search(r"DeepSeek-R1-Distill.*-l\d+$", file.path.stem) is not None
    return named and file.names == {*_QRESEARCH}


def _is_qwen_scope(file: WeightFile) -> bool:
    named = re.fullmatch(r"layer\d+\.sae", file.path.stem) is not None
    released = named or "SAE-Res-" in file.place
    is_torch = file.path.suffix != ".safetensors"
    return released and is_torch and file.names == {*_QWEN}


GOODFIRE = Format("goodfire", read_goodfire, _is_goodfire)
QRESEARCH = Format("qresearch", read_qresearch, _is_qresearch)
QWEN_SCOPE = Format("qwen_scope", read_qwen_scope, _is_qwen_scope)
