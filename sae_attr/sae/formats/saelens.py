"""SAELens folders: cfg.json + sae_weights.safetensors, before and after version 6, for
inference or from training.

Orientation is always W_enc [d_in, d_sae], W_dec [d_sae, d_out]. Source: SAELens 6.54
`SAE.load_from_disk`, `handle_pre_6_0_config`,
`process_state_dict_for_saving_inference`, and the reference goldens of the tests.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.sae.config import SAEConfig
from sae_attr.sae.formats import releases, temporal
from sae_attr.sae.formats.checks import (
    check_names,
    check_shapes,
    integer,
    layer_of,
    one_layer,
    positive,
    read_json,
    read_json_if_there,
    reject_options,
    stated_masks,
)
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source
from sae_attr.sae.formats.schema import brief

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SCALER = "activation_scaler.json"

_BASE = ("W_enc", "W_dec", "b_dec")
_PLAIN = (*_BASE, "b_enc")
_TENSORS: dict[str, tuple[str, ...]] = {
    "standard": _PLAIN,
    "gated": (*_BASE, "b_gate", "b_mag", "r_mag"),
    "jumprelu": (*_PLAIN, "threshold"),
    "topk": _PLAIN,
    "abstopk": _PLAIN,
    "matching_pursuit": ("W_dec", "b_dec"),
    "transcoder": _PLAIN,
    "skip_transcoder": (*_PLAIN, "W_skip"),
    "jumprelu_transcoder": (*_PLAIN, "threshold"),
    "jumprelu_skip_transcoder": (*_PLAIN, "threshold", "W_skip"),
    # Training checkpoints; SAELens itself cannot load these two for inference.
    "batchtopk": (*_PLAIN, "topk_threshold"),
    "matryoshka_batchtopk": (*_PLAIN, "topk_threshold"),
}
_GATES = {
    "standard": "relu", "transcoder": "relu", "skip_transcoder": "relu", "gated": "gated", "topk": "topk",
    "abstopk": "abs_topk", "matching_pursuit": "matching_pursuit",
}  # fmt: skip
# Without any of these a config states no gate.
_STATED = ("architecture", "activation_fn", "activation_fn_str")
_ALIASES = {"abs_topk": "abstopk"}
_REFUSED = {
    "phase_multiplexed": "its encoder is not documented well enough to be certain of the codes",
}
_FIELDS = {
    "b_enc": "enc_bias_n", "b_dec": "dec_bias_m", "threshold": "threshold_n",
    "b_gate": "gate_bias_n", "b_mag": "mag_bias_n", "r_mag": "mag_scale_n",
}  # fmt: skip


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE whose weight file is given; cfg.json lies beside it.

    Raises:
      ValueError: an unknown architecture, activation or normalisation; config and
        tensors that disagree; a scale or a threshold that is not in the folder.
    """
    reject_options(options, "saelens", ("norm_scale", "threshold", "site", "centre"))
    if not (weights.parent / CONFIG).is_file():
        raise ValueError(
            f"{weights} has no {CONFIG} beside it; a saelens SAE needs both (a file of "
            "your own: fmt=plain)"
        )
    raw = _raw_config(weights)
    tensors = read_tensors(weights)
    if raw.get("architecture") == "temporal":
        reject_options(options, "temporal saelens", ("site",))
        return temporal.parts(
            weights, weights.parent / CONFIG, raw, tensors, options, source="saelens"
        )
    cfg = _config(weights, raw, tensors, options)
    scale = _norm_scale(weights, raw, cfg, options)
    batch = "topk_threshold" in tensors
    fold = _folds_dec_norm(raw, cfg, batch)
    vectors = _vectors(tensors)
    vectors["dec_bias_m"] = _dec_bias(raw, cfg, tensors["b_dec"]) / np.float32(scale)
    names = [f"norm_scale={scale:g}"] * (scale != 1.0) + ["decoder norm"] * fold
    if cfg.residual_threshold is not None:
        # Scaling input and output leaves tied weights unchanged.
        cfg = replace(cfg, residual_threshold=cfg.residual_threshold / scale)
        scale = 1.0
    if cfg.gate in ("gated", "matching_pursuit"):
        vectors["enc_bias_n"] = np.zeros(cfg.n_latents, np.float32)
    if batch:
        vectors["threshold_n"] = _batch_threshold(
            weights, tensors, cfg, scale if fold else 1.0, options
        )
    if cfg.skip:
        # Stored [d_out, d_in], used as x @ W_skip.T.
        vectors["skip_dm"] = tensors["W_skip"].T
    factor_n = _finetuning_factor(weights, raw, tensors)
    dec = decoder_source(
        tensors["W_dec"], scale_n=factor_n, norm_scale=scale, unit=fold
    )
    # Folding the norms is exact for topk too: selection and code use pre * |row|, and
    # the decoder divides it out again.
    cfg = replace(cfg, rescale_by_dec_norm=False, folded=tuple(names))
    enc_dn = tensors["W_dec"].T if cfg.gate == "matching_pursuit" else tensors["W_enc"]
    parts = Parts(
        weights, cfg, (dec,), (enc_dn,), vectors, scales=(scale,), fold_dec_norm=fold
    )
    return _centred(parts, raw, tensors["b_dec"], options)


def _folds_dec_norm(raw: dict[str, Any], cfg: SAEConfig, batch: bool) -> bool:
    """Returns whether codes are pre * |row|; a batch top-k folds it when it is saved
    for inference, and its checkpoints have it open.
    """
    rescales = bool(raw.get("rescale_acts_by_decoder_norm", False))
    return cfg.rescale_by_dec_norm or (batch and rescales)


def _vectors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    vectors = {}
    for name, value in tensors.items():
        if name in _FIELDS:
            vectors[_FIELDS[name]] = value
    return vectors


def _raw_config(weights: Path) -> dict[str, Any]:
    """Returns cfg.json as before version 6, where metadata were settings as the others,
    with what a release gets wrong put right.
    """
    raw = read_json(weights.parent / CONFIG)
    metadata = raw.get("metadata") or {}
    return metadata | raw | releases.overrides(weights.parent)


def _centred(
    parts: Parts, raw: dict[str, Any], b_dec: np.ndarray, options: LoadOptions
) -> Parts:
    """The SAE for the site's own activation, where it was trained on one less its mean
    over the channels.

    TransformerLens centres the writing weights of models with LayerNorm alone, and of
    the sites only what they write.
    """
    cfg, kwargs = parts.cfg, raw.get("model_from_pretrained_kwargs")
    written = re.search(
        r"hook_(resid_pre|resid_mid|resid_post|mlp_out|attn_out)$", cfg.site or ""
    )
    with_layer_norm = re.search(r"gpt2|pythia|gpt-neo", str(raw.get("model_name")))
    centres = isinstance(kwargs, dict) and kwargs.get("center_writing_weights")
    default = bool(centres and written and with_layer_norm)
    # layer_norm centres by itself, and adds the mean again.
    if not options.get("centre", default) or cfg.norm == "layer_norm":
        return parts
    elsewhere = cfg.d_in != cfg.d_out or cfg.site_out not in (None, cfg.site)
    if elsewhere or cfg.norm != "none" or cfg.skip:
        raise ValueError(
            f"{parts.path}: trained on centred activations (center_writing_weights), "
            "which does not fold into a transcoder "
            f"or the norm {cfg.norm!r}; give centre=False to read the site as it is"
        )
    if cfg.gate == "matching_pursuit":
        raise ValueError(
            f"{parts.path}: centre= does not fold into tied matching pursuit; give "
            "centre=False"
        )
    d = cfg.d_in
    skip_dm = np.full((d, d), 1 / d, np.float32)  # x @ skip is the mean of x
    folded = (*cfg.folded, "input centred")
    return replace(
        parts,
        cfg=replace(cfg, subtract_b_dec=False, skip=True, folded=folded),
        shifts=(b_dec,) if cfg.subtract_b_dec else (),
        centre=True,
        vectors=parts.vectors | {"skip_dm": skip_dm},
    )


def _dec_bias(raw: dict[str, Any], cfg: SAEConfig, b_dec: np.ndarray) -> np.ndarray:
    # Tied matching pursuit adds the bias only where it took it from the input.
    used = cfg.gate != "matching_pursuit" or cfg.subtract_b_dec
    return b_dec if used else np.zeros_like(b_dec)


def _finetuning_factor(
    path: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]
) -> np.ndarray | None:
    """The legacy factor of every code before decoding; all ones were written for a
    time, and mean nothing.
    """
    factor_n = tensors.get("scaling_factor")
    if factor_n is None or np.allclose(factor_n.astype(np.float32), 1.0):
        return None
    if not raw.get("finetuning_scaling_factor", True):
        raise ValueError(
            f"{path} has a scaling_factor that is not all ones, but {CONFIG} says "
            "finetuning_scaling_factor=false; "
            "set it to true if the factors belong to the SAE, or remove the tensor"
        )
    return factor_n


def _config(
    path: Path,
    raw: dict[str, Any],
    tensors: dict[str, np.ndarray],
    options: LoadOptions,
) -> SAEConfig:
    architecture, k = _architecture(path, raw)
    check_names(
        path,
        f"saelens architecture {architecture!r}",
        tensors,
        _TENSORS[architecture],
        _optional(architecture),
    )
    transcoder = "transcoder" in architecture
    where = path.parent / CONFIG
    d_in, d_out, n = _widths(where, raw, transcoder)
    _check_shapes(path, tensors, d_in, d_out, n)
    hook = raw.get("hook_name", raw.get("hook_point"))
    head = raw.get("hook_head_index", raw.get("hook_point_head_index"))
    excluded = raw.get("exclude_special_tokens")  # a bool, or a list of token ids
    rescales = bool(raw.get("rescale_acts_by_decoder_norm", False))
    layer = raw.get("hook_layer", raw.get("hook_point_layer", layer_of(hook)))
    return SAEConfig(
        d_in=d_in,
        d_out=d_out,
        n_latents=n,
        gate=_GATES.get(architecture, "jumprelu"),
        k=k,
        # Missing means true. Transcoders never subtract: b_dec belongs to the output.
        subtract_b_dec=bool(raw.get("apply_b_dec_to_input", True)) and not transcoder,
        norm=_norm(path, raw, transcoder),
        **_pursuit(path, raw, architecture),
        rescale_by_dec_norm=architecture in ("topk", "abstopk") and rescales,
        flatten_heads=_flattens_heads(raw, hook),
        skip="W_skip" in tensors,
        source="saelens",
        architecture=architecture,
        dtype=tensors["W_dec"].dtype.name,
        site=options.get("site", hook),
        site_out=raw.get("hook_name_out"),
        layer=one_layer(layer),
        head_index=head,
        model_name=raw.get("model_name"),
        context_size=raw.get("context_size"),
        prepend_bos=raw.get("prepend_bos", None if "metadata" in raw else True),
        exclude_special=None if excluded is None else bool(excluded),
        masks=stated_masks(where, raw),
        expected_l0=raw.get("l0"),
    )


def _flattens_heads(raw: dict[str, Any], hook: str | None) -> bool:
    # Before version 6 the hook's name alone decided.
    default = "hook_z" if "hook_z" in (hook or "") else "none"
    return raw.get("reshape_activations", default) == "hook_z"


def _widths(where: Path, raw: dict[str, Any], transcoder: bool) -> tuple[int, int, int]:
    """Returns d_in, d_out and d_sae."""
    missing = [key for key in ("d_in", "d_sae") if raw.get(key) is None]
    if missing:
        raise ValueError(
            f"{where} does not say {' and '.join(missing)}; is it a saelens config?"
        )
    d_in, n = integer(where, raw, "d_in"), integer(where, raw, "d_sae")
    d_out = integer(where, raw, "d_out", d_in) if transcoder else d_in
    return d_in, d_out, n


def _architecture(path: Path, raw: dict[str, Any]) -> tuple[str, int | None]:
    """Architecture and k; before version 6 a top-k SAE was "standard" with a top-k
    activation.
    """
    if not {*_STATED, "hook_point"} & raw.keys():
        raise ValueError(
            f"{path.parent / CONFIG} names no architecture, so the gate is not known; "
            "add it (a file of your own: fmt=plain)"
        )
    architecture = raw.get("architecture", "standard")
    architecture = _ALIASES.get(architecture, architecture)
    if architecture in _REFUSED:
        raise ValueError(
            f"{path.parent / CONFIG}: architecture {architecture!r} is not loaded: "
            f"{_REFUSED[architecture]}"
        )
    if architecture not in _TENSORS:
        architectures = ", ".join(_TENSORS)
        raise ValueError(
            f"{path.parent / CONFIG}: architecture {architecture!r} is unknown; known: "
            f"{architectures}"
        )
    activation = raw.get("activation_fn_str", raw.get("activation_fn", "relu"))
    if architecture == "standard" and activation == "topk":
        k = (raw.get("activation_fn_kwargs") or {}).get("k")
        if k is None:
            raise ValueError(
                f"{path.parent / CONFIG}: activation topk without "
                "activation_fn_kwargs.k; add it"
            )
        return "topk", integer(
            path.parent / CONFIG,
            {"activation_fn_kwargs.k": k},
            "activation_fn_kwargs.k",
        )
    if activation not in ("relu", "topk"):
        raise ValueError(
            f"{path.parent / CONFIG}: activation {activation!r} is unknown; known: "
            "relu, topk (activation_fn)"
        )
    if architecture not in ("topk", "abstopk"):
        return architecture, None
    k = raw.get("k", (raw.get("activation_fn_kwargs") or {}).get("k"))
    if k is None:
        raise ValueError(
            f"{path.parent / CONFIG}: architecture {architecture} without k; add it"
        )
    return architecture, integer(path.parent / CONFIG, {"k": k}, "k")


def _optional(architecture: str) -> tuple[str, ...]:
    """Tensors that may be there: a tied SAE may store its encoder, and batch training
    its threshold beside a final one.
    """
    tied = architecture == "matching_pursuit"
    return ("scaling_factor", "W_enc") if tied else ("scaling_factor",)


def _pursuit(path: Path, raw: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Settings of matching pursuit, with SAELens' defaults."""
    if architecture != "matching_pursuit":
        return {}
    where, limit = path.parent / CONFIG, raw.get("residual_threshold", 1e-2)
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise ValueError(f"{where}: residual_threshold is {limit!r}, not a number")
    rounds = raw.get("max_iterations")
    return {
        "residual_threshold": float(limit),
        "max_iterations": integer(
            where, raw, "d_in" if rounds is None else "max_iterations"
        ),
        "stop_on_duplicate_support": bool(raw.get("stop_on_duplicate_support", True)),
    }


def _check_shapes(
    path: Path, tensors: dict[str, np.ndarray], d_in: int, d_out: int, n: int
) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("b_enc", "threshold", "b_gate", "b_mag", "r_mag", "scaling_factor"), (n,)
    )
    shapes |= {
        "W_enc": (d_in, n),
        "W_dec": (n, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }
    check_shapes(
        path, tensors, shapes, f"{CONFIG} says d_in={d_in}, d_out={d_out}, d_sae={n}"
    )


def _norm(path: Path, raw: dict[str, Any], transcoder: bool) -> str:
    """Per-token norm; the dataset-wise one is folded and leaves nothing to do."""
    norm = raw.get("normalize_activations")
    if isinstance(norm, bool) or norm is None:  # booleans before version 6
        norm = "expected_average_only_in" if norm else "none"
    norms = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
    if norm not in norms:
        hint = (
            "; it is folded when training ends: save the inference model"
            if norm == "covariance_whitening"
            else ""
        )
        raise ValueError(
            f"{path.parent / CONFIG}: normalize_activations {brief(norm)} is unknown; "
            f"known: {norms}{hint}"
        )
    if transcoder and norm != "none":
        raise ValueError(
            f"{path.parent / CONFIG}: a transcoder with normalize_activations "
            f"{norm!r}, which SAELens defines for the "
            "input alone; only 'none' is supported"
        )
    return "none" if norm == "expected_average_only_in" else norm


def _norm_scale(
    path: Path, raw: dict[str, Any], cfg: SAEConfig, options: LoadOptions
) -> float:
    """The factor s of expected_average_only_in: option, activation_scaler.json, or
    table; 1 where none is folded.
    """
    pending = raw.get("normalize_activations") in ("expected_average_only_in", True)
    scaler = path.parent / SCALER
    saved = read_json_if_there(scaler)
    if saved.get("has_whitening"):
        raise ValueError(
            f"{scaler} whitens the activations and {path.name} does not; save the "
            "inference model"
        )
    scale = options.get("norm_scale", saved.get("scaling_factor"))
    if not pending:
        if scale is not None:
            raise ValueError(
                f"a scale of {scale} is given (norm_scale= or {SCALER}) but {CONFIG} "
                "says normalize_activations="
                f"{raw.get('normalize_activations')!r}; folding it twice would be "
                "wrong, remove one of them"
            )
        return 1.0
    scale = releases.norm_scale(path.parent) if scale is None else scale
    if scale is None:
        raise ValueError(
            f"{path.parent / CONFIG} says expected_average_only_in, but the factor s = "
            "sqrt(d_in) / E|x| is in no "
            f"file of the folder ({SCALER} would hold it); give it as norm_scale="
        )
    source = (
        ""
        if "norm_scale" in options or "scaling_factor" not in saved
        else f" (scaling_factor of {SCALER})"
    )
    return positive(f"the scale of {path}{source}", scale)


def _batch_threshold(
    path: Path,
    tensors: dict[str, np.ndarray],
    cfg: SAEConfig,
    scale: float,
    options: LoadOptions,
) -> np.ndarray:
    """BatchTopK's running threshold for every latent, in the units of the codes that
    the folded SAE gives.
    """
    stored = tensors["topk_threshold"]
    if stored.size != 1:
        raise ValueError(
            f"{path}: topk_threshold has shape {list(stored.shape)}, not one number"
        )
    threshold = float(options.get("threshold", stored.reshape(-1)[0]))
    if not threshold > 0 and "threshold" not in options:
        raise ValueError(
            f"{path}: topk_threshold is {threshold}, so training never set it; give "
            "one as threshold= "
            "(the mean over batches of the smallest code kept)"
        )
    # It was learnt on pre * |row|. Folding s divides every row, and with it the codes,
    # by s.
    return np.full(cfg.n_latents, threshold / scale, np.float32)


_MARKS = {*_STATED, "metadata", "hook_name", "hook_point", "sae_lens_version"}


def _detect(file: WeightFile) -> bool:
    if file.path.suffix != ".safetensors" or "W_dec" not in file.names:
        return False
    if "encoder.weight" in file.names:  # sparsify's names; its config is cfg.json too
        return False
    raw = read_json_if_there(file.path.parent / CONFIG)
    return file.path.name == WEIGHTS or bool(_MARKS & raw.keys())


FORMAT = Format("saelens", read, _detect, weights=(WEIGHTS,), configs=(CONFIG, SCALER))
