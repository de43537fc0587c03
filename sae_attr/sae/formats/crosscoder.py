"""Crosscoders of science-of-finetuning's fork of dictionary_learning: model_final.pt +
config.json, or the hub's form.

    f = relu(sum_s x'_s @ encoder.weight[s] + encoder.bias);   y'_s = f @ decoder.weight[s] + decoder.bias[s]

encoder.weight [streams, d, n], decoder.weight [streams, n, d]. BatchTopKCrossCoder
keeps f where f * norm > threshold and leaves f as it is; code_normalization_id says
which norm of the decoder rows. DECOUPLED gates every stream by itself. Source:
`CrossCoder`, `BatchTopKCrossCoder` of the fork, and the reference goldens of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import normalizer
from sae_attr.sae.formats.checks import (
    check_gate,
    check_names,
    check_shapes,
    integer,
    matrix_shape,
    one_layer,
    pick_stream,
    reject_options,
)
from sae_attr.sae.formats.dictionary_learning import CONFIG, WEIGHTS, read_config
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source

NORMALIZATIONS = (
    "CROSSCODER",
    "SAE",
    "MIXED",
    "NONE",
    "DECOUPLED",
)  # code_normalization_id 1..5
_OPTIONS = (
    "layer", "model", "threshold", "gate", "k", "code_normalization", "site", "dict_class",
)  # fmt: skip
_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_CLASSES = ("CrossCoder", "BatchTopKCrossCoder")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the crosscoder whose state dict is given; config.json lies beside it or
    one folder up.

    Raises:
      ValueError: another class; config and tensors that disagree; a threshold that was
        never set; an unknown code normalisation.
    """
    reject_options(options, "crosscoder", _OPTIONS)
    trainer = read_config(weights).get("trainer", {})
    tensors = {
        name.removeprefix("_orig_mod."): value
        for name, value in read_tensors(weights).items()
    }
    batch = _is_batch(weights, trainer, tensors, options)
    optional = (*normalizer.KEYS, "code_normalization_id")
    if batch:
        optional = (*optional, "k", "threshold")
    check_names(weights, "a crosscoder", tensors, _NAMES, optional)
    streams, d, n = matrix_shape(weights, tensors, "encoder.weight", 3)
    _check(weights, trainer, tensors, streams, d, n)
    gate, k = _gate(weights, trainer, tensors, batch, options)
    kind = "NONE"
    if gate == "jumprelu":
        kind = _normalization(weights, trainer, tensors, options)
    decoupled = kind == "DECOUPLED"
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate=gate,
        k=k,
        streams=streams,
        decoupled=decoupled,
        stream=pick_stream(weights, (), streams, options),
        source="crosscoder",
        architecture="BatchTopKCrossCoder" if batch else "CrossCoder",
        dtype=tensors["decoder.weight"].dtype.name,
        site=options.get("site", trainer.get("submodule_name")),
        layer=one_layer(trainer.get("layer")),
        model_name=trainer.get("lm_name"),
        expected_l0=trainer.get("k"),
    )
    vectors = {
        "enc_bias_n": tensors["encoder.bias"],
        "dec_bias_m": tensors["decoder.bias"].reshape(-1),
    }
    code_norm = None
    if gate == "jumprelu":
        vectors["threshold_n"] = _threshold(weights, tensors, cfg, options)
        code_norm = _code_norm(kind, trainer, _code_scale(tensors, streams))
    decs = tuple(map(decoder_source, tensors["decoder.weight"]))
    encs = tuple(tensors["encoder.weight"])
    parts = Parts(weights, cfg, decs, encs, vectors, code_norm=code_norm)
    # With a normaliser, a decoupled crosscoder normalises in encode and once more in
    # the encode that it inherits.
    return normalizer.fold(parts, tensors, twice=decoupled)


def _is_batch(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> bool:
    name = options.get("dict_class", trainer.get("dict_class"))
    if name is None:
        return "threshold" in tensors
    if name not in _CLASSES:
        raise ValueError(
            f"{path}: dict_class {name!r} is no crosscoder; known: "
            f"{', '.join(_CLASSES)}"
        )
    return name == "BatchTopKCrossCoder"


def _check(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    streams: int,
    d: int,
    n: int,
) -> None:
    where = path.parent / CONFIG
    d_said = integer(where, trainer, "activation_dim", d)
    n_said = integer(where, trainer, "dict_size", n)
    shapes = {
        "encoder.weight": (streams, d_said, n_said),
        "encoder.bias": (n,),
        "decoder.bias": (streams, d),
    }
    shapes["decoder.weight"] = (streams, n, d)
    said = f"{CONFIG} and encoder say {streams} streams, activation_dim={d_said}, dict_size={n_said}"
    check_shapes(path, tensors, shapes, said)


def _gate(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    batch: bool,
    options: LoadOptions,
) -> tuple[str, int | None]:
    given = [name for name in ("gate", "k", "threshold") if name in options]
    if not batch:
        if given:
            raise ValueError(
                f"option {given[0]}= means nothing for CrossCoder, which is a relu; "
                "leave it out"
            )
        return "relu", None
    gate = options.get("gate", "jumprelu")
    check_gate(gate)
    if gate == "topk":
        raise ValueError(
            f"{path}: a BatchTopKCrossCoder selects over a whole batch; only its "
            "threshold is per token"
        )
    return gate, None


def _normalization(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> str:
    said = options.get("code_normalization", trainer.get("code_normalization"))
    if "code_normalization" not in options and "code_normalization_id" in tensors:
        value = tensors["code_normalization_id"]
        number = (
            int(value.reshape(-1)[0])
            if value.size == 1 and np.isfinite(value).all()
            else 0
        )
        if not 1 <= number <= len(NORMALIZATIONS):
            raise ValueError(
                f"{path}: code_normalization_id is {value}; known: "
                f"1..{len(NORMALIZATIONS)}"
            )
        return NORMALIZATIONS[number - 1]
    if (
        not isinstance(said, str) or said.upper() not in NORMALIZATIONS
    ):  # None is not "NONE"
        raise ValueError(
            f"{path}: code_normalization is {said!r}, and the gate compares code times "
            "norm; give code_normalization= "
            f"one of {', '.join(NORMALIZATIONS)} (old files of the library mean "
            "CROSSCODER)"
        )
    return said.upper()


def _threshold(
    path: Path, tensors: dict[str, np.ndarray], cfg: SAEConfig, options: LoadOptions
) -> np.ndarray:
    stored = np.asarray(tensors.get("threshold", np.float32(-1)), np.float32).reshape(
        -1
    )
    values = (
        np.full(1, options["threshold"], np.float32)
        if "threshold" in options
        else stored
    )
    if values.size not in (1, cfg.streams if cfg.decoupled else 1):
        raise ValueError(
            f"{path}: threshold has {values.size} numbers, not "
            f"{cfg.streams if cfg.decoupled else 1}"
        )
    if not (values >= 0).all():
        raise ValueError(
            f"{path}: threshold is {values.tolist()}, below 0 is never set; give one "
            "as threshold="
        )
    if cfg.decoupled:
        return np.broadcast_to(values[:, None], (cfg.streams, cfg.n_latents)).astype(
            np.float32
        )
    return np.full(cfg.n_latents, values[0], np.float32)


def _code_scale(tensors: dict[str, np.ndarray], streams: int) -> np.ndarray:
    """What takes the norms of the folded rows back to those of the file, `[streams,
    1]`.
    """
    mean, scale = tensors.get("activation_mean"), tensors.get("activation_global_scale")
    if (
        mean is None
        or scale is None
        or np.isnan(np.asarray(mean, np.float64)).any()
        or scale.size != streams
    ):
        return np.ones((streams, 1))
    return np.asarray(scale, np.float64).reshape(streams, 1) + 1e-8


def _code_norm(
    kind: str, trainer: dict[str, Any], scale_s1: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    # MIXED: the library's defaults are 1 and 0.1, and it does not save others but in
    #   config.json.
    said = [trainer.get(f"code_normalization_alpha_{which}") for which in ("sae", "cc")]
    alpha_sae, alpha_cc = (
        float(default if v is None else v) for v, default in zip(said, (1.0, 0.1))
    )

    def norm(norms_sn: np.ndarray) -> np.ndarray:
        norms_sn = norms_sn * scale_s1
        together, apart = np.sqrt((norms_sn**2).sum(0)), norms_sn.sum(0)
        return {
            "CROSSCODER": apart,
            "SAE": together,
            "MIXED": alpha_sae * together + alpha_cc * apart,
            "NONE": np.ones_like(apart),
            "DECOUPLED": norms_sn,
        }[kind]

    return norm


def _detect(file: WeightFile) -> bool:
    return file.axes("encoder.weight") == 3


FORMAT = Format(
    "crosscoder",
    read,
    _detect,
    weights=WEIGHTS,
    configs=(CONFIG,),
    configs_above=(CONFIG,),
)
