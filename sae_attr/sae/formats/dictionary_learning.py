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
from collections.abc import Mapping
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
_OPTIONS = ("gate", "k", "threshold", "dict_class", "site", "norm_scale")
_NO_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE whose state dict is given; config.json lies beside it, or one
    folder up for a checkpoint.

    Raises:
      ValueError: an unknown or undecidable class; config and tensors that disagree; a
        threshold that was never set; a training backup without its scale.
    """
    reject_options(options, "dictionary_learning", _OPTIONS)
    tensors, bias_scale, backup = _state_dict(weights, options)
    raw = backup if "trainer" in backup else read_config(weights)
    trainer = raw.get("trainer", {})
    name = _dict_class(weights, trainer, tensors, options)
    optional = _OPTIONAL.get(name, ())
    kind = f"the dictionary_learning class {name}"
    check_names(weights, kind, tensors, _KEYS[name], optional)
    enc_dn, dec_nm, vectors = _fields(weights, name, tensors)
    gate, k, threshold = _gate(weights, name, trainer, tensors, options)
    cfg = _config(name, raw, enc_dn, dec_nm, gate, k, options)
    _check(weights, trainer, {**vectors, "encoder": enc_dn, "decoder": dec_nm}, cfg)
    if threshold is not None:
        vectors["threshold_n"] = np.full(cfg.n_latents, threshold, np.float32)
    if name == "GatedAutoEncoder":
        # Its encoder has no bias: gate and magnitudes have one each.
        vectors["enc_bias_n"] = np.zeros(cfg.n_latents, np.float32)
    if bias_scale != 1.0:
        # The end of training does this to the biases; a backup is older.
        for field in _IN_UNITS & vectors.keys():
            vectors[field] = vectors[field] * np.float32(bias_scale)
        cfg = replace(cfg, folded=(f"norm_factor={bias_scale:g}",))
    plain = Parts(weights, cfg, (decoder_source(dec_nm),), (enc_dn,), vectors)
    return normalizer.fold(plain, tensors)


def _fields(
    weights: Path, name: str, tensors: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns encoder `[d, n]`, decoder `[n, d]`, and the other tensors by the fields
    of `SAE`.
    """
    keys = _KEYS[name]
    fields = {}
    for key, field in keys.items():
        if field in ("enc", "dec"):
            matrix_shape(weights, tensors, key)
        if field:
            fields[field] = tensors[key]
    enc_dn, dec_nm = fields.pop("enc"), fields.pop("dec")
    if "encoder.weight" in keys:
        # torch's Linear stores [out, in].
        enc_dn, dec_nm = enc_dn.T, dec_nm.T
    return enc_dn, dec_nm, fields


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
    """Returns tensors, the factor that takes the biases of a training backup to the
    site's units, and the backup's config.
    """
    content = read_torch(weights) if weights.suffix != ".safetensors" else {}
    if isinstance(content, dict) and isinstance(content.get("ae"), dict):
        return _backup(weights, content, options)
    if "norm_scale" in options:
        raise ValueError(
            f"option norm_scale= means nothing for {weights}, whose biases are "
            "scaled already"
        )
    return _uncompiled(read_tensors(weights)), 1.0, {}


def _backup(
    weights: Path, content: dict[str, Any], options: LoadOptions
) -> tuple[dict[str, np.ndarray], float, dict[str, Any]]:
    """Returns what `_state_dict` does, of a checkpoint that training could go on from:
    the state dict is one entry beside step, optimizer and config.
    """
    # Entries that are no arrays are not the SAE's.
    arrays = {n: t for n, t in content["ae"].items() if isinstance(t, np.ndarray)}
    tensors = _uncompiled(arrays)
    config = content.get("config")
    backup = {"trainer": config} if isinstance(config, dict) else {}
    check_kinds(weights, backup)
    factor = content.get("norm_factor")
    if isinstance(factor, np.ndarray) and factor.size == 1:
        factor = float(factor.reshape(-1)[0])
    if "norm_scale" in options:
        # The option is s, what the input is multiplied by; norm_factor is 1 / s.
        return tensors, 1.0 / positive("norm_scale", options["norm_scale"]), backup
    if factor is None:
        raise ValueError(
            f"{weights} is a training backup without norm_factor, so the units of its "
            "biases are unknown; give "
            "norm_scale= (1 / norm_factor, or 1 if training did not normalise), or use "
            "the ae.pt of the end of training"
        )
    return tensors, positive(f"norm_factor of {weights}", factor), backup


def _uncompiled(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors without the prefix that torch.compile gives their names."""
    return {name.removeprefix("_orig_mod."): value for name, value in tensors.items()}


def _dict_class(
    path: Path,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> str:
    name = options.get("dict_class", trainer.get("dict_class"))
    if name is None:
        return _class_that_fits(path, tensors)
    if not isinstance(name, str) or name not in _KEYS:
        raise ValueError(
            f"{path}: dict_class {name!r} is unknown; known: {', '.join(_KEYS)}"
        )
    return name


def _class_that_fits(path: Path, tensors: dict[str, np.ndarray]) -> str:
    """Returns the only class with these tensors. TopK and BatchTopK have the same and
    differ in their gates, so that between them no file decides.
    """
    fits = []
    for kind, keys in _KEYS.items():
        allowed = {*keys, *_OPTIONAL.get(kind, ())}
        if keys.keys() <= tensors.keys() <= allowed:
            fits.append(kind)
    if len(fits) != 1:
        raise ValueError(
            f"{path} has no {CONFIG} that names its dict_class, and its tensors "
            f"fit {fits or 'no class'}; "
            f"give dict_class= one of {', '.join(_KEYS)}"
        )
    return fits[0]


def _gate(
    path: Path,
    name: str,
    trainer: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> tuple[str, int | None, float | None]:
    """Returns gate, k and scalar threshold, after the options."""
    if name not in _OPTIONAL:
        for option in ("gate", "k", "threshold"):
            if option in options:
                raise ValueError(
                    f"option {option}= means nothing for {name}, whose gate is in its "
                    "weights; leave it out"
                )
        return _GATES[name], None, None
    default = "jumprelu" if "threshold" in options else _GATES[name]
    gate = options.get("gate", default)
    check_gate(gate)
    if gate == "topk":
        return "topk", _k(path, trainer, tensors, options), None
    stored = tensors.get("threshold", np.float32(-1.0)).reshape(-1)
    stored_threshold = stored[0] if stored.size == 1 else np.nan
    threshold = float(options.get("threshold", stored_threshold))
    # Written this way round, NaN is refused too.
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
    stored_k = config_k = None
    if "k" in tensors and tensors["k"].size == 1:
        stored_k = int(tensors["k"].reshape(-1)[0])
    if trainer.get("k") is not None:
        config_k = integer(path.parent / CONFIG, trainer, "k")
    k = config_k if stored_k is None else stored_k
    if k is None:
        raise ValueError(f"{path} has no k, and neither has {CONFIG}; give k=")
    # The library itself goes by the stored one, and would not notice.
    if config_k not in (None, k):
        raise ValueError(
            f"{path}: k is {k} but {CONFIG} says k={config_k}; give the right one as k="
        )
    return k


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
    """Compares shapes with config.json where it speaks, and among each other."""
    d = integer(path, trainer, "activation_dim", cfg.d_in)
    n = integer(path, trainer, "dict_size", cfg.n_latents)
    shapes = {key: (n,) for key in tensors if key.endswith("_n")}
    shapes |= {"encoder": (d, n), "decoder": (n, d), "dec_bias_m": (d,)}
    source = f"{CONFIG} and encoder say activation_dim={d}, dict_size={n}"
    check_shapes(path, tensors, shapes, source)


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
