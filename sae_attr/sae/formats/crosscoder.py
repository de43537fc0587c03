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

# In the order of code_normalization_id, 1 to 5.
NORMALIZATIONS = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
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
    tensors = {}
    for name, value in read_tensors(weights).items():
        tensors[name.removeprefix("_orig_mod.")] = value
    is_batch = _is_batch(weights, trainer, tensors, options)
    _check_names(weights, tensors, is_batch)
    streams, d, n = matrix_shape(weights, tensors, "encoder.weight", 3)
    _check(weights, trainer, tensors, streams, d, n)
    gate, k = _gate(weights, is_batch, options)
    kind = "NONE"
    if gate == "jumprelu":
        kind = _normalization(weights, trainer, tensors, options)
    is_decoupled = kind == "DECOUPLED"
    cfg = SAEConfig(
        d_in=d,
        d_out=d,
        n_latents=n,
        gate=gate,
        k=k,
        streams=streams,
        decoupled=is_decoupled,
        stream=pick_stream(weights, (), streams, options),
        source="crosscoder",
        architecture="BatchTopKCrossCoder" if is_batch else "CrossCoder",
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
        # code * norm > threshold as code > threshold / norm: codes stay as they are.
        vectors["threshold_n"] = _threshold(weights, tensors, cfg, options)
        code_norm = _code_norm(kind, trainer, _code_scale(tensors, streams))
    decs = tuple(map(decoder_source, tensors["decoder.weight"]))
    encs = tuple(tensors["encoder.weight"])
    parts = Parts(weights, cfg, decs, encs, vectors, code_norm=code_norm)
    # With a normaliser, a decoupled crosscoder normalises in encode and once more in
    # the encode that it inherits.
    return normalizer.fold(parts, tensors, twice=is_decoupled)


def _check_names(weights: Path, tensors: dict[str, np.ndarray], is_batch: bool) -> None:
    optional = (*normalizer.KEYS, "code_normalization_id")
    if is_batch:
        optional = (*optional, "k", "threshold")
    check_names(weights, "a crosscoder", tensors, _NAMES, optional)


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
    d_config = integer(where, trainer, "activation_dim", d)
    n_config = integer(where, trainer, "dict_size", n)
    shapes = {
        "encoder.weight": (streams, d_config, n_config),
        "encoder.bias": (n,),
        "decoder.bias": (streams, d),
        "decoder.weight": (streams, n, d),
    }
    source = f"{CONFIG} and encoder say {streams} streams, activation_dim={d_config}, dict_size={n_config}"
    check_shapes(path, tensors, shapes, source)


def _gate(path: Path, is_batch: bool, options: LoadOptions) -> tuple[str, int | None]:
    if not is_batch:
        for name in ("gate", "k", "threshold"):
            if name in options:
                raise ValueError(
                    f"option {name}= means nothing for CrossCoder, which is a relu; "
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
    """Returns one of `NORMALIZATIONS`: the option's, the state dict's, the config's."""
    if "code_normalization" not in options and "code_normalization_id" in tensors:
        return _normalization_of_id(path, tensors["code_normalization_id"])
    kind = options.get("code_normalization", trainer.get("code_normalization"))
    # Nothing is not "NONE": a file without the key is older than the choice.
    if not isinstance(kind, str) or kind.upper() not in NORMALIZATIONS:
        raise ValueError(
            f"{path}: code_normalization is {kind!r}, and the gate compares code times "
            "norm; give code_normalization= "
            f"one of {', '.join(NORMALIZATIONS)} (old files of the library mean "
            "CROSSCODER)"
        )
    return kind.upper()


def _normalization_of_id(path: Path, value: np.ndarray) -> str:
    number = 0
    if value.size == 1 and np.isfinite(value).all():
        number = int(value.reshape(-1)[0])
    # The library counts from 1.
    if not 1 <= number <= len(NORMALIZATIONS):
        raise ValueError(
            f"{path}: code_normalization_id is {value}; known: 1..{len(NORMALIZATIONS)}"
        )
    return NORMALIZATIONS[number - 1]


def _threshold(
    path: Path, tensors: dict[str, np.ndarray], cfg: SAEConfig, options: LoadOptions
) -> np.ndarray:
    """Returns thresholds `[n]`, or `[streams, n]` of a decoupled crosscoder."""
    # The library starts at -1, which says that training never set it.
    stored = np.asarray(tensors.get("threshold", np.float32(-1)), np.float32)
    values = stored.reshape(-1)
    if "threshold" in options:
        values = np.full(1, options["threshold"], np.float32)
    most = cfg.streams if cfg.decoupled else 1
    if values.size not in (1, most):
        raise ValueError(f"{path}: threshold has {values.size} numbers, not {most}")
    if not (values >= 0).all():
        raise ValueError(
            f"{path}: threshold is {values.tolist()}, below 0 is never set; give one "
            "as threshold="
        )
    if not cfg.decoupled:
        return np.full(cfg.n_latents, values[0], np.float32)
    shape = (cfg.streams, cfg.n_latents)
    return np.broadcast_to(values[:, None], shape).astype(np.float32)


def _code_scale(tensors: dict[str, np.ndarray], streams: int) -> np.ndarray:
    """Returns what takes the norms of the folded rows back to those of the file,
    `[streams, 1]`.
    """
    mean, scale = tensors.get("activation_mean"), tensors.get("activation_global_scale")
    ones = np.ones((streams, 1))
    if mean is None or scale is None or scale.size != streams:
        return ones
    if np.isnan(np.asarray(mean, np.float64)).any():  # no normaliser
        return ones
    # 1e-8 as where the rows are divided, see `normalizer`.
    return np.asarray(scale, np.float64).reshape(streams, 1) + 1e-8


def _code_norm(
    kind: str, trainer: dict[str, Any], scale_s1: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    # MIXED: the library's defaults are 1 and 0.1; others it saves in config.json alone.
    alpha_sae = _alpha(trainer, "sae", 1.0)
    alpha_cc = _alpha(trainer, "cc", 0.1)

    def norm(norms_sn: np.ndarray) -> np.ndarray:
        norms_sn = norms_sn * scale_s1
        # A latent's rows of all streams as one long vector, and stream by stream.
        together, apart = np.sqrt((norms_sn**2).sum(0)), norms_sn.sum(0)
        by_kind = {
            "CROSSCODER": apart,
            "SAE": together,
            "MIXED": alpha_sae * together + alpha_cc * apart,
            "NONE": np.ones_like(apart),
            "DECOUPLED": norms_sn,
        }
        return by_kind[kind]

    return norm


def _alpha(trainer: dict[str, Any], name: str, default: float) -> float:
    value = trainer.get(f"code_normalization_alpha_{name}")
    return default if value is None else float(value)


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
