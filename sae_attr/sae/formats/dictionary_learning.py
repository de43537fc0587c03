"""dictionary_learning (saprmarks) folders: ae.pt, a torch state dict, + config.json.

Most classes store torch Linear weights (encoder [n, d], decoder [d, n]); JumpRelu and
Matryoshka store the transposes. A training backup nests the state dict, with its biases
in normalised units. The fork of science-of-finetuning writes model_final.pt (or
model.safetensors for the hub) and may keep a normaliser of the input in it.
Source: dictionary_learning 0.1.0 `dictionary.py`, `trainers/*`, and the reference
  goldens of the tests.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.files.torch_file import read_torch
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import normalizer
from sae_attr.sae.formats.checks import (
    check_gate,
    check_names,
    check_shapes,
    integer,
    matrix_shape,
    one_layer,
    positive,
    read_json,
    reject_options,
    stated_masks,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source
from sae_attr.sae.formats.schema import check_kinds

WEIGHTS = ("ae.pt", "model_final.pt", "model.safetensors")
CONFIG = "config.json"

# State-dict key -> our field; "enc" and "dec" are the matrices, "" is required and not
# used.
_LINEAR = {"encoder.weight": "enc", "decoder.weight": "dec"}
_TOPK = {**_LINEAR, "encoder.bias": "enc_bias_n", "b_dec": "dec_bias_m"}
_MATRICES = {
    "W_enc": "enc",
    "W_dec": "dec",
    "b_enc": "enc_bias_n",
    "b_dec": "dec_bias_m",
}
_KEYS: dict[str, dict[str, str]] = {
    "AutoEncoder": {**_LINEAR, "encoder.bias": "enc_bias_n", "bias": "dec_bias_m"},
    "AutoEncoderNew": {**_LINEAR, "encoder.bias": "enc_bias_n", "decoder.bias": "dec_bias_m"},
    "GatedAutoEncoder": {
        **_LINEAR, "decoder_bias": "dec_bias_m",
        "r_mag": "mag_scale_n", "gate_bias": "gate_bias_n", "mag_bias": "mag_bias_n",
    },
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": "threshold_n"},
    "AutoEncoderTopK": _TOPK,
    "BatchTopKSAE": _TOPK,
    "MatryoshkaBatchTopKSAE": {**_MATRICES, "group_sizes": ""},  # training structure; tells it from JumpRelu
}  # fmt: skip
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k", "threshold"),
}
_OPTIONAL["BatchTopKSAE"] += normalizer.KEYS
_OPTIONAL["MatryoshkaBatchTopKSAE"] = ("k", "threshold")
# Unless asked otherwise: TopK keeps k per row although it stores a threshold, the batch
#   classes use their threshold.
_GATES = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu",
}  # fmt: skip
# Fields in the units of the input, unlike the matrices.
_IN_UNITS = {"enc_bias_n", "dec_bias_m", "gate_bias_n", "mag_bias_n", "threshold_n"}
_NO_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE whose state dict is given; config.json lies beside it, or one
    folder up for a checkpoint.

    Raises:
      ValueError: an unknown or undecidable class; config and tensors that disagree; a
        threshold that was never set; a training backup without its scale.
    """
    reject_options(
        options,
        "dictionary_learning",
        ("gate", "k", "threshold", "dict_class", "site", "norm_scale"),
    )
    tensors, bias_scale, backup = _state_dict(weights, options)
    raw = backup if "trainer" in backup else read_config(weights)
    name = _dict_class(weights, raw.get("trainer", {}), tensors, options)
    keys = _KEYS[name]
    check_names(
        weights,
        f"the dictionary_learning class {name}",
        tensors,
        keys,
        _OPTIONAL.get(name, ()),
    )
    linear = "encoder.weight" in keys
    fields = {field: tensors[key] for key, field in keys.items() if field}
    for key, field in keys.items():
        if field in ("enc", "dec"):
            matrix_shape(weights, tensors, key)
    enc_dn, dec_nm = fields.pop("enc"), fields.pop("dec")
    if linear:
        enc_dn, dec_nm = enc_dn.T, dec_nm.T
    gate, k, threshold = _gate(weights, name, raw.get("trainer", {}), tensors, options)
    cfg = _config(name, raw, enc_dn, dec_nm, gate, k, options)
    _check(
        weights,
        raw.get("trainer", {}),
        {**fields, "encoder": enc_dn, "decoder": dec_nm},
        cfg,
    )
    if threshold is not None:
        fields["threshold_n"] = np.full(cfg.n_latents, threshold, np.float32)
    if name == "GatedAutoEncoder":
        fields["enc_bias_n"] = np.zeros(cfg.n_latents, np.float32)
    if bias_scale != 1.0:
        for field in _IN_UNITS & fields.keys():
            fields[field] = fields[field] * np.float32(bias_scale)
        cfg = replace(cfg, folded=(f"norm_factor={bias_scale:g}",))
    plain = Parts(weights, cfg, (decoder_source(dec_nm),), (enc_dn,), fields)
    return normalizer.fold(plain, tensors)


def read_config(weights: Path) -> dict[str, Any]:
    """Reads config.json beside the weights, or one folder up for a checkpoint; empty
    where there is none.

    The hub's form has no "trainer" level; it is given one.
    """
    # checkpoints/ae_1000.pt has its config one folder up.
    for folder in (weights.parent, weights.parent.parent):
        if (folder / CONFIG).is_file():
            raw = read_json(folder / CONFIG)
            if isinstance(raw.get("trainer"), dict):
                buffer = raw.get("buffer")
                return raw | {"buffer": buffer if isinstance(buffer, dict) else {}}
            return {"trainer": raw} if "dict_class" in raw else {}
    return {}


def _state_dict(
    weights: Path, options: LoadOptions
) -> tuple[dict[str, np.ndarray], float, dict[str, Any]]:
    """Tensors, the factor that takes the biases of a training backup to the site's
    units, and the backup's config.
    """
    content = read_torch(weights) if weights.suffix != ".safetensors" else {}
    if not (isinstance(content, dict) and isinstance(content.get("ae"), dict)):
        if "norm_scale" in options:
            raise ValueError(
                f"option norm_scale= means nothing for {weights}, whose biases are "
                "scaled already"
            )
        tensors = read_tensors(weights)
        return (
            {name.removeprefix("_orig_mod."): value for name, value in tensors.items()},
            1.0,
            {},
        )
    tensors = {
        n.removeprefix("_orig_mod."): t
        for n, t in content["ae"].items()
        if isinstance(t, np.ndarray)
    }
    config = content.get("config")
    backup = {"trainer": config} if isinstance(config, dict) else {}
    check_kinds(weights, backup)
    factor = content.get("norm_factor")
    if isinstance(factor, np.ndarray) and factor.size == 1:
        factor = float(factor.reshape(-1)[0])
    if factor is None and "norm_scale" not in options:
        raise ValueError(
            f"{weights} is a training backup without norm_factor, so the units of its "
            "biases are unknown; give "
            "norm_scale= (1 / norm_factor, or 1 if training did not normalise), or use "
            "the ae.pt of the end of training"
        )
    if "norm_scale" in options:
        return tensors, 1.0 / positive("norm_scale", options["norm_scale"]), backup
    return tensors, positive(f"norm_factor of {weights}", factor), backup


def _dict_class(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> str:
    said = trainer.get("dict_class")
    name = options.get("dict_class", said)
    if name is None:
        found = tensors.keys()
        fits = [
            kind
            for kind, keys in _KEYS.items()
            if keys.keys() <= found <= {*keys, *_OPTIONAL.get(kind, ())}
        ]
        if len(fits) != 1:
            raise ValueError(
                f"{path} has no {CONFIG} that names its dict_class, and its tensors "
                f"fit {fits or 'no class'}; "
                f"give dict_class= one of {', '.join(_KEYS)}"
            )
        return fits[0]
    if not isinstance(name, str) or name not in _KEYS:
        raise ValueError(
            f"{path}: dict_class {name!r} is unknown; known: {', '.join(_KEYS)}"
        )
    return name


def _gate(
    path: Path,
    name: str,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> tuple[str, int | None, float | None]:
    """Gate, k and scalar threshold, after the options."""
    if name not in _OPTIONAL:
        given = [option for option in ("gate", "k", "threshold") if option in options]
        if given:
            raise ValueError(
                f"option {given[0]}= means nothing for {name}, whose gate is in its "
                "weights; leave it out"
            )
        return _GATES[name], None, None
    gate = options.get("gate", "jumprelu" if "threshold" in options else _GATES[name])
    check_gate(gate)
    if gate == "topk":
        return "topk", _k(path, trainer, tensors, options), None
    stored = tensors.get("threshold", np.float32(-1.0)).reshape(-1)
    threshold = float(
        options.get("threshold", stored[0] if stored.size == 1 else np.nan)
    )
    if not threshold >= 0:
        raise ValueError(
            f"{path}: {name} without a threshold (stored: {threshold:g}, below 0 is "
            "never set), so its batch gate is "
            "not defined for single tokens; give threshold=, or gate='topk' to keep k "
            "latents per token"
        )
    return "jumprelu", None, threshold


def _k(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> int:
    if "k" in options:
        return int(options["k"])
    where = path.parent / CONFIG
    # The library itself goes by the stored one.
    stored = (
        [int(tensors["k"].reshape(-1)[0])]
        if "k" in tensors and tensors["k"].size == 1
        else []
    )
    said = [integer(where, trainer, "k")] if trainer.get("k") is not None else []
    if not (stored or said):
        raise ValueError(f"{path} has no k, and neither has {CONFIG}; give k=")
    if stored and said and stored != said:
        raise ValueError(
            f"{path}: k is {stored[0]} but {CONFIG} says k={said[0]}; give the right "
            "one as k="
        )
    return (stored or said)[0]


def _config(
    name: str,
    raw: dict[str, Any],
    enc_dn: np.ndarray,
    dec_nm: np.ndarray,
    gate: str,
    k: int | None,
    options: LoadOptions,
) -> SAEConfig:
    trainer, buffer = raw.get("trainer", {}), raw.get("buffer", {})
    return SAEConfig(
        d_in=enc_dn.shape[0],
        d_out=dec_nm.shape[-1],
        n_latents=dec_nm.shape[0],
        gate=gate,
        k=k,
        subtract_b_dec=name not in _NO_PRE_BIAS,
        source="dictionary_learning",
        architecture=name,
        dtype=dec_nm.dtype.name,
        site=options.get("site", trainer.get("submodule_name")),
        layer=one_layer(trainer.get("layer")),
        model_name=trainer.get("lm_name"),
        context_size=buffer.get("ctx_len"),
        exclude_special=buffer.get("remove_bos"),
        masks=stated_masks("config.json, buffer", buffer),
        expected_l0=trainer.get("k", trainer.get("target_l0")),
    )


def _check(
    path: Path, trainer: dict[str, Any], tensors: dict[str, np.ndarray], cfg: SAEConfig
) -> None:
    """Shapes, against config.json where it speaks and among each other."""
    d = integer(path, trainer, "activation_dim", cfg.d_in)
    n = integer(path, trainer, "dict_size", cfg.n_latents)
    shapes = {key: (n,) for key in tensors if key.endswith("_n")}
    shapes |= {"encoder": (d, n), "decoder": (n, d), "dec_bias_m": (d,)}
    check_shapes(
        path,
        tensors,
        shapes,
        f"{CONFIG} and encoder say activation_dim={d}, dict_size={n}",
    )


_ENCODERS = {"encoder.weight", "W_dec", "ae.encoder.weight", "ae.W_dec"}


def _detect(file: WeightFile) -> bool:
    """Finds more than the tensors that any autoencoder of Linear layers has.

    That is a config that names the class or its widths, a training backup, or tensors
    that no one else calls so.
    """
    names = file.names
    if not names & _ENCODERS or _is_of_others(file):
        return False
    trainer = read_config(file.path).get("trainer", {})
    if {"dict_class", "activation_dim"} & trainer.keys():
        return True
    if any(name.startswith("ae.") for name in names):
        return True
    checkpoint = re.fullmatch(r"ae_\d+\.pt", file.path.name) is not None
    named = checkpoint or file.path.name in WEIGHTS[:2]
    return named and bool({"bias", "decoder_bias", "group_sizes", "threshold"} & names)


def _is_of_others(file: WeightFile) -> bool:
    """Returns whether a file has the tensors of SAELens', sparsify's or hand-written
    SAEs, beside which a config.json may lie that is no mark of this library.
    """
    names = file.names
    if "W_dec" in names and file.path.suffix == ".safetensors":
        return True
    return {"encoder.weight", "W_dec"} <= names or names == set(_MATRICES)


FORMAT = Format(
    "dictionary_learning",
    read,
    _detect,
    weights=WEIGHTS,
    configs=(CONFIG,),
    configs_above=(CONFIG,),
)
