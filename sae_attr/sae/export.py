"""SAEs and vectors in the layouts of other tools: SAELens, dictionary_learning,
safetensors, repeng's GGUF.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sae_attr.files.hub import public_name
from sae_attr.files.tensors import write_torch
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import dictionary_learning, saelens
from sae_attr.sae.model import SAE

# Gate -> SAELens' architecture, and the fields beside encoder, decoder and their
# biases.
_ARCHITECTURES = {
    "relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abs_topk": "abstopk", "gated": "gated",
    "matching_pursuit": "matching_pursuit",
}  # fmt: skip
_TRANSCODERS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIP_TRANSCODERS = {"relu": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder"}
_LAYOUT_VERSION = "6.0.0"  # of SAELens: from here on the config has its `metadata`
_GGUF_ALIGNMENT = 32
_GGUF_UINT32, _GGUF_STRING, _GGML_F32 = 4, 8, 0


def save_saelens(folder: str | os.PathLike[str], sae: SAE) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` as SAELens 6 and `load_sae` read
    them, with the same codes.

    Weights keep their dtype, and the model is named without where it lies here. An SAE
    of several models or layers, or with a gate that SAELens does not have, cannot be
    written; nor can a folder that holds an SAE already.

    Raises:
      ValueError: the layout cannot express the SAE.
      FileExistsError: the folder has an SAE.
    """
    folder, cfg = Path(folder), sae.cfg
    architecture = _architecture(sae)
    if (folder / saelens.WEIGHTS).exists() or (folder / saelens.CONFIG).exists():
        raise FileExistsError(f"{folder} holds an SAE already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(value)
        for name, value in _tensors(sae, architecture).items()
    }
    raw: dict[str, Any] = {
        "architecture": architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.n_latents,
        "dtype": tensors["W_dec"].dtype.name,
        "device": "cpu",
        "apply_b_dec_to_input": cfg.subtract_b_dec,
        "normalize_activations": cfg.norm,
        "reshape_activations": "hook_z" if cfg.flatten_heads else "none",
        "metadata": _metadata(cfg),
    }
    if cfg.gate in ("topk", "abs_topk"):
        raw |= {"k": cfg.k, "rescale_acts_by_decoder_norm": cfg.rescale_by_dec_norm}
    if cfg.gate == "matching_pursuit":
        raw |= {
            "residual_threshold": cfg.residual_threshold,
            "max_iterations": cfg.max_iterations,
        }
        raw |= {"stop_on_duplicate_support": cfg.stop_on_duplicate_support}
    if "transcoder" in architecture:
        raw |= {"d_out": cfg.d_out}
    save_file(tensors, folder / saelens.WEIGHTS)
    (folder / saelens.CONFIG).write_text(json.dumps(raw, indent=1))


def save_dictionary_learning(folder: str | os.PathLike[str], sae: SAE) -> None:
    """Writes `ae.pt` and `config.json` as dictionary_learning's `load_dictionary` and
    `load_sae` read them.

    topk becomes AutoEncoderTopK, gated GatedAutoEncoder, jumprelu with one threshold
    BatchTopKSAE, and any other jumprelu and relu (as jumprelu with threshold 0, since
    AutoEncoder is normalised on loading) JumpReluAutoEncoder. That class takes no b_dec
    from its input: there it is folded into the encoder's bias, and codes agree to
    rounding.

    Raises:
      ValueError: the layout cannot express the SAE.
      FileExistsError: the folder has an SAE.
    """
    folder, cfg = Path(folder), sae.cfg
    name, tensors = _dictionary(sae)
    if (folder / dictionary_learning.WEIGHTS[0]).exists() or (
        folder / dictionary_learning.CONFIG
    ).exists():
        raise FileExistsError(f"{folder} holds an SAE already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = {
        "dict_class": name,
        "activation_dim": cfg.d_in,
        "dict_size": cfg.n_latents,
        "layer": cfg.layer,
        "lm_name": public_name(cfg.model_name),
        "submodule_name": cfg.site,
    }
    trainer |= {"k": int(tensors["k"])} if "k" in tensors else {}
    masks = None if cfg.masks is None else cfg.masks.to_dict()
    said = {
        "ctx_len": cfg.context_size,
        "remove_bos": cfg.exclude_special,
        "masks": masks,
    }
    write_torch(folder / dictionary_learning.WEIGHTS[0], tensors)
    raw = {
        "trainer": trainer,
        "buffer": {key: value for key, value in said.items() if value is not None},
    }
    (folder / dictionary_learning.CONFIG).write_text(json.dumps(raw, indent=1))


def _dictionary(sae: SAE) -> tuple[str, dict[str, np.ndarray]]:
    """Class and state dict of dictionary_learning."""
    cfg = sae.cfg
    plain = (
        cfg.norm == "none"
        and cfg.streams == 1
        and not (cfg.skip or cfg.rescale_by_dec_norm or cfg.flatten_heads)
    )
    if (
        cfg.d_in != cfg.d_out
        or cfg.site_out not in (None, cfg.site)
        or not plain
        or cfg.select_by_dec_norm
    ):
        raise ValueError(
            "dictionary_learning has autoencoders without norms, skips, heads and "
            "streams; this is another"
        )
    if cfg.gate not in ("relu", "jumprelu", "topk", "gated") or (
        cfg.gate in ("topk", "gated") and not cfg.subtract_b_dec
    ):
        raise ValueError(
            f"dictionary_learning has no SAE with gate {cfg.gate}, "
            f"subtract_b_dec={cfg.subtract_b_dec}"
        )
    get = lambda name: np.asarray(getattr(sae, name))
    linear = {"encoder.weight": get("enc_dn").T, "decoder.weight": get("dec_nm").T}
    if cfg.gate == "gated":
        if get("enc_bias_n").astype(np.float32).any():
            raise ValueError(
                "dictionary_learning's GatedAutoEncoder has no encoder bias beside its "
                "gates'; this one has"
            )
        sizes = {
            "r_mag": get("mag_scale_n"),
            "gate_bias": get("gate_bias_n"),
            "mag_bias": get("mag_bias_n"),
        }
        return "GatedAutoEncoder", {
            **linear,
            "decoder_bias": get("dec_bias_m"),
            **sizes,
        }
    biased = {**linear, "encoder.bias": get("enc_bias_n"), "b_dec": get("dec_bias_m")}
    if cfg.gate == "topk":
        return "AutoEncoderTopK", {
            **biased,
            "k": np.asarray(cfg.k, np.int32),
            "threshold": np.asarray(-1, np.float32),
        }
    threshold_n = (
        np.zeros(cfg.n_latents, np.float32)
        if cfg.gate == "relu"
        else get("threshold_n").astype(np.float32)
    )
    if (
        cfg.gate == "jumprelu"
        and cfg.subtract_b_dec
        and cfg.expected_l0
        and np.ptp(threshold_n) == 0
    ):
        kept = {
            "k": np.asarray(max(1, round(cfg.expected_l0)), np.int32),
            "threshold": np.asarray(threshold_n[0]),
        }
        return "BatchTopKSAE", {**biased, **kept}
    bias_n = get("enc_bias_n").astype(np.float64)
    if cfg.subtract_b_dec:
        bias_n = bias_n - get("dec_bias_m").astype(np.float64) @ get("enc_dn").astype(
            np.float64
        )
    matrices = {
        "W_enc": get("enc_dn"),
        "W_dec": get("dec_nm"),
        "b_dec": get("dec_bias_m"),
    }
    return "JumpReluAutoEncoder", {
        **matrices,
        "b_enc": bias_n.astype(np.float32),
        "threshold": threshold_n,
    }


def _architecture(sae: SAE) -> str:
    cfg = sae.cfg
    if cfg.streams > 1:
        raise ValueError(
            f"a crosscoder of {cfg.streams} streams has no place in SAELens' layout; "
            "write one SAE per stream"
        )
    transcoder = (
        cfg.skip or cfg.d_out != cfg.d_in or cfg.site_out not in (None, cfg.site)
    )
    table = (
        _SKIP_TRANSCODERS
        if cfg.skip
        else _TRANSCODERS
        if transcoder
        else _ARCHITECTURES
    )
    if cfg.gate not in table or cfg.select_by_dec_norm:
        what = "transcoder" if transcoder else "SAE"
        how = (
            f"gate {cfg.gate}"
            + " with selection by decoder norm" * cfg.select_by_dec_norm
        )
        raise ValueError(f"SAELens has no {what} with {how}; it has {', '.join(table)}")
    if transcoder and (cfg.subtract_b_dec or cfg.norm != "none"):
        raise ValueError(
            "SAELens' transcoders neither take b_dec from the input nor normalise it; "
            "this one does"
        )
    if cfg.gate == "gated" and np.asarray(sae.enc_bias_n, np.float32).any():
        raise ValueError(
            "SAELens' gated SAEs have no encoder bias beside b_gate and b_mag; this "
            "one has"
        )
    if cfg.gate == "matching_pursuit" and not (
        cfg.subtract_b_dec or not np.asarray(sae.dec_bias_m, np.float32).any()
    ):
        raise ValueError(
            "SAELens' matching pursuit adds b_dec only where it takes it from the "
            "input; this one does not"
        )
    return table[cfg.gate]


def _tensors(sae: SAE, architecture: str) -> dict[str, np.ndarray]:
    fields = {"W_dec": sae.dec_nm, "b_dec": sae.dec_bias_m}
    if architecture != "matching_pursuit":
        fields |= {"W_enc": sae.enc_dn}
        fields |= {"b_enc": sae.enc_bias_n} if architecture != "gated" else {}
    fields |= {"threshold": sae.threshold_n} if sae.cfg.gate == "jumprelu" else {}
    if architecture == "gated":
        fields |= {
            "b_gate": sae.gate_bias_n,
            "b_mag": sae.mag_bias_n,
            "r_mag": sae.mag_scale_n,
        }
    if sae.cfg.skip and sae.skip_dm is not None:
        fields |= {"W_skip": sae.skip_dm.T}
    return {name: np.asarray(value) for name, value in fields.items()}


def _metadata(cfg: SAEConfig) -> dict[str, Any]:
    said = {
        "model_name": public_name(cfg.model_name),
        "hook_name": cfg.site,
        "hook_name_out": cfg.site_out,
        "hook_head_index": cfg.head_index,
        "context_size": cfg.context_size,
        "prepend_bos": cfg.prepend_bos,
        "exclude_special_tokens": cfg.exclude_special,
        "masks": None if cfg.masks is None else cfg.masks.to_dict(),
        "l0": cfg.expected_l0,
    }
    return {
        "sae_lens_version": _LAYOUT_VERSION,
        **{key: value for key, value in said.items() if value is not None},
    }


def save_vectors(
    path: str | os.PathLike[str],
    vectors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes named arrays to a safetensors file; metadata that is not text is stored as
    JSON.

    Raises:
      ValueError: no vectors, or one that is not finite.
    """
    arrays = {
        str(name): np.ascontiguousarray(np.asarray(value))
        for name, value in vectors.items()
    }
    _check_finite(path, arrays)
    text = {
        str(k): v if isinstance(v, str) else json.dumps(v)
        for k, v in (metadata or {}).items()
    }
    save_file(arrays, path, metadata=text)


def save_repeng_gguf(
    path: str | os.PathLike[str], directions: Mapping[int, Any], model_hint: str
) -> None:
    """Writes a control vector as repeng's `ControlVector.export_gguf` does: GGUF v3,
    `direction.{layer}` in float32.

    Args:
      path: the file to write.
      directions: layer -> vector `[d]`. repeng counts layers as Hugging Face does, and
        adds a direction to the output of the layer; llama.cpp reads the same numbers
        and wants 1 or more.
      model_hint: the model's type, such as "llama" or "qwen2", checked by readers
        against the model.

    Raises:
      ValueError: no directions, a negative layer, directions of different width or not
        finite.
    """
    arrays = {
        f"direction.{int(layer)}": np.asarray(value).astype("<f4")
        for layer, value in directions.items()
    }
    _check_finite(path, arrays)
    shapes = {array.shape for array in arrays.values()}
    if (
        len(arrays) != len(directions)
        or len(shapes) != 1
        or len(next(iter(shapes))) != 1
        or min(directions) < 0
    ):
        raise ValueError(
            f"directions have layers {list(directions)} and shapes {shapes}; give one "
            "[d] vector per layer"
        )
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(arrays), 3)
    head += _key("general.architecture", "controlvector") + _key(
        "controlvector.model_hint", model_hint
    )
    head += _key("controlvector.layer_count", len(arrays))
    data = b""
    for name, array in arrays.items():
        data += b"\0" * (-len(data) % _GGUF_ALIGNMENT)
        head += _text(name) + struct.pack("<IQIQ", 1, array.size, _GGML_F32, len(data))
        data += array.tobytes()
    Path(path).write_bytes(
        head
        + b"\0" * (-len(head) % _GGUF_ALIGNMENT)
        + data
        + b"\0" * (-len(data) % _GGUF_ALIGNMENT)
    )


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _key(name: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", _GGUF_STRING) + _text(value)
    return _text(name) + struct.pack("<II", _GGUF_UINT32, value)


def _check_finite(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    if not arrays:
        raise ValueError(f"no vectors for {path}; give at least one")
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"vector {name} for {path} holds NaN or infinity")
