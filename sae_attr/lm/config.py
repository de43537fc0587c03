"""`LMConfig`: every difference between decoder families as a field, read from a Hugging Face `config.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

NO_WINDOW = 2**30  # "attends to everything", as an integer that can ride the scan


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of some layers: which frequencies, and by how much attention is scaled with them.

    Kinds: `default`, `linear` (position interpolation), `llama3` (Llama 3.1's wavelength-dependent scaling), `yarn`
    (Peng et al. 2023) and `longrope` (Ding et al. 2024; short or long factors by the length of the row).
    """

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def inv_freq(self, long: bool = False) -> np.ndarray:
        """Inverse frequencies `[dim / 2]`, float64; `long` chooses longrope's factors for long rows."""
        base = self.theta ** (np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        return _SCALED[self.kind](self, 1.0 / base, long)


def _llama3(rope: Rope, inv: np.ndarray, long: bool) -> np.ndarray:
    wavelength = 2 * math.pi / inv
    blend = (rope.original_len / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)  # 0: long wavelengths, divided by the factor; 1: short ones, untouched
    return (1 - blend) * inv / rope.factor + blend * inv


def _yarn(rope: Rope, inv: np.ndarray, long: bool) -> np.ndarray:
    def dim_of(rotations: float) -> float:
        span = rope.original_len / (rotations * 2 * math.pi)
        return rope.dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return inv / rope.factor * ramp + inv * (1 - ramp)


_SCALED: Mapping[str, Callable[[Rope, np.ndarray, bool], np.ndarray]] = {
    "default": lambda rope, inv, long: inv,
    "linear": lambda rope, inv, long: inv / rope.factor,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": lambda rope, inv, long: inv / np.asarray(rope.long_factor if long else rope.short_factor),
}


@dataclass(frozen=True)
class LMConfig:
    """A decoder-only transformer; hashable, so that it can be a static argument of a jitted function.

    Shapes: `d_model` residual width d, `d_mlp` f, `n_heads` h, `n_kv_heads` k, `head_dim`, `vocab` v. `ropes` and
    `rope_of_layer` / `window_of_layer` hold what differs between layers, so that layers can share one scanned body.
    `resid_dtype` is the residual stream's; weights have the dtype they were loaded in.
    """

    family: str
    vocab: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int
    max_len: int
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-6
    norm_plus_one: bool = False  # Gemma stores scale - 1
    pre_norm: bool = True
    post_norm: bool = False  # norms on the sublayers' outputs (Gemma 2 and 3, OLMo 2)
    parallel_residual: bool = False
    qk_norm: str = ""  # "" | head (each head by itself) | all (all heads together)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    act: str = "silu"
    gated_mlp: bool = True
    learned_pos: bool = False
    ropes: tuple[Rope, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    window_of_layer: tuple[int, ...] = ()
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    query_scale: float = 1.0
    embed_scale: float = 1.0
    tied_head: bool = False
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    resid_dtype: str = "float32"

    @property
    def has_windows(self) -> bool:
        """Whether any layer attends to a limited number of past tokens."""
        return any(w < NO_WINDOW for w in self.window_of_layer)

    def width(self, point: str) -> int:
        """Size of the last axis of the activation at a site's point."""
        return {"attn_z": self.n_heads * self.head_dim, "mlp_hidden": self.d_mlp}.get(point, self.d_model)


_ACTS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def _rope(hf: Mapping[str, Any], params: Mapping[str, Any], head_dim: int, theta: float) -> Rope:
    """One `Rope` from a `rope_parameters` / `rope_scaling` entry of either spelling."""
    kind = params.get("rope_type", params.get("type", "default")) or "default"
    kind = {"su": "longrope", "mrope": "default"}.get(kind, kind)
    if kind not in _SCALED:
        raise ValueError(f"rope type {kind!r} is not implemented; known: {', '.join(_SCALED)}")
    partial = params.get("partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct", 1.0)))
    # Phi-3 keeps the original length outside the entry; where both are given transformers takes that one.
    original = hf.get("original_max_position_embeddings") or params.get("original_max_position_embeddings")
    original = original or hf.get("max_position_embeddings", 0)
    factor = params.get("factor")
    if factor is None and kind in ("linear", "llama3", "yarn"):
        raise ValueError(f"rope type {kind!r} needs a factor, which config.json lacks; take it from the original")
    if factor is None and kind == "longrope":
        factor = hf["max_position_embeddings"] / original
    attention = params.get("attention_factor")
    if attention is None:
        attention = _attention_factor(kind, factor, original, params)
    names = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate")
    extra: dict[str, Any] = {name: params[name] for name in names if params.get(name) is not None}
    extra |= {name: tuple(params.get(name) or ()) for name in ("short_factor", "long_factor")}
    theta = float(params.get("rope_theta", theta))
    dim = int(head_dim * partial)
    if kind == "longrope" and {len(extra["short_factor"]), len(extra["long_factor"])} != {dim // 2}:
        raise ValueError(
            f"longrope: short_factor and long_factor have {len(extra['short_factor'])} and {len(extra['long_factor'])} "
            f"entries, but {dim} channels are rotated, which makes {dim // 2}; take config.json from the original"
        )
    return Rope(dim, theta, kind, float(factor or 1.0), int(original), attention_factor=attention, **extra)


def _attention_factor(kind: str, factor: float | None, original: int, params: Mapping[str, Any]) -> float:
    """By how much cos and sin grow: 1, LongRoPE's sqrt(1 + ln s / ln L) or YaRN's 0.1 ln s + 1."""
    if not factor or factor <= 1 or kind not in ("longrope", "yarn"):
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    mscale, mscale_all = params.get("mscale"), params.get("mscale_all_dim")
    if mscale and mscale_all:
        return (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _ropes(hf: Mapping[str, Any], head_dim: int, types: tuple[str, ...]) -> dict[str, Any]:
    """`ropes` and `rope_of_layer`, from the flat or the per-layer-type spelling, or Gemma 3's older pair of keys."""
    new, theta = hf.get("rope_parameters"), hf.get("rope_theta", hf.get("rotary_emb_base", 10000.0))
    if new and all(isinstance(v, Mapping) or v is None for v in new.values()):
        by_type = {kind: _rope(hf, params or {}, head_dim, theta) for kind, params in new.items()}
    else:
        main = _rope(hf, new or hf.get("rope_scaling") or {}, head_dim, theta)
        by_type = {kind: main for kind in set(types)}
        if "rope_local_base_freq" in hf and "sliding_attention" in by_type:
            by_type["sliding_attention"] = _rope(hf, {}, head_dim, hf["rope_local_base_freq"])
    ropes = tuple(dict.fromkeys(by_type[kind] for kind in types))
    return {"ropes": ropes, "rope_of_layer": tuple(ropes.index(by_type[kind]) for kind in types)}


def _layer_types(hf: Mapping[str, Any], n_layers: int) -> tuple[str, ...]:
    """`sliding_attention` or `full_attention` per layer, stated or by the family's older rule."""
    if hf.get("layer_types"):
        return _stated_types(tuple(hf["layer_types"]), n_layers)
    family, window = hf["model_type"], hf.get("sliding_window")
    if not window:
        return ("full_attention",) * n_layers
    if family.startswith("gemma3"):
        period = hf.get("sliding_window_pattern", hf.get("_sliding_window_pattern", 6))
        sliding = [(layer + 1) % period != 0 for layer in range(n_layers)]
    elif family == "gemma2":
        sliding = [layer % 2 == 0 for layer in range(n_layers)]
    elif family.startswith("qwen"):
        first = hf.get("max_window_layers", n_layers) if hf.get("use_sliding_window") else n_layers
        sliding = [layer >= first for layer in range(n_layers)]
    else:
        sliding = [True] * n_layers
    return tuple("sliding_attention" if s else "full_attention" for s in sliding)


def _stated_types(types: tuple[str, ...], n_layers: int) -> tuple[str, ...]:
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        kinds = ", ".join(map(repr, sorted(unknown)))
        raise ValueError(f"layer_types: {kinds} is not implemented; known: full_attention, sliding_attention")
    if len(types) != n_layers:
        raise ValueError(
            f"layer_types lists {len(types)} layers but num_hidden_layers is {n_layers}; take the original"
        )
    return types


def _llama_like(hf: Mapping[str, Any], **fields: Any) -> LMConfig:
    """Fields that every RMSNorm / rotary / gated-MLP family shares; `fields` override."""
    n_layers, n_heads, d_model = hf["num_hidden_layers"], hf["num_attention_heads"], hf["hidden_size"]
    head_dim = hf.get("head_dim") or d_model // n_heads
    types = _layer_types(hf, n_layers)
    window = hf.get("sliding_window") or NO_WINDOW
    shared: dict[str, Any] = {
        "family": hf["model_type"],
        "vocab": hf["vocab_size"],
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": hf.get("num_key_value_heads") or n_heads,
        "head_dim": head_dim,
        "d_mlp": hf["intermediate_size"],
        "max_len": hf["max_position_embeddings"],
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "act": _act(hf.get("hidden_activation") or hf.get("hidden_act", "silu")),
        "window_of_layer": tuple(window if kind == "sliding_attention" else NO_WINDOW for kind in types),
        "query_scale": head_dim**-0.5,
        "tied_head": bool(hf.get("tie_word_embeddings", False)),
        "bos_id": hf.get("bos_token_id"),
        "eos_id": _eos(hf.get("eos_token_id")),
    }
    return LMConfig(**{**shared, **_ropes(hf, head_dim, types), **fields})


def _eos(value: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _act(name: str) -> str:
    if name not in _ACTS:
        raise ValueError(f"activation {name!r} is not implemented; known: {', '.join(_ACTS)}")
    return _ACTS[name]


def _llama(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(hf, qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False)))


def _gemma(hf: Mapping[str, Any]) -> LMConfig:
    return _llama_like(
        hf,
        norm_plus_one=True,
        post_norm=True,
        qk_norm="head" if hf["model_type"].startswith("gemma3") else "",
        qkv_bias=bool(hf.get("attention_bias", False)),
        out_bias=bool(hf.get("attention_bias", False)),
        attn_softcap=hf.get("attn_logit_softcapping") or 0.0,
        final_softcap=hf.get("final_logit_softcapping") or 0.0,
        query_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
        embed_scale=hf["hidden_size"] ** 0.5,
        tied_head=bool(hf.get("tie_word_embeddings", True)),
    )


def _gpt_neox(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", True))
    return _llama_like(
        hf,
        norm="layer",
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        parallel_residual=bool(hf.get("use_parallel_residual", True)),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        act=_act(hf.get("hidden_act", "gelu")),
        gated_mlp=False,
    )


def _gpt2(hf: Mapping[str, Any]) -> LMConfig:
    if hf.get("scale_attn_by_inverse_layer_idx"):
        raise ValueError("GPT-2 with scale_attn_by_inverse_layer_idx=true is not implemented; only false is")
    d_model, n_heads, n_layers = hf["n_embd"], hf["n_head"], hf["n_layer"]
    head_dim = d_model // n_heads
    return LMConfig(
        family="gpt2",
        vocab=hf["vocab_size"],
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        d_mlp=hf.get("n_inner") or 4 * d_model,
        max_len=hf.get("n_positions", hf.get("n_ctx", 1024)),
        norm="layer",
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        act=_act(hf.get("activation_function", "gelu_new")),
        gated_mlp=False,
        learned_pos=True,
        window_of_layer=(NO_WINDOW,) * n_layers,
        query_scale=head_dim**-0.5 if hf.get("scale_attn_weights", True) else 1.0,
        tied_head=bool(hf.get("tie_word_embeddings", True)),
        bos_id=hf.get("bos_token_id"),
        eos_id=_eos(hf.get("eos_token_id")),
    )


_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], LMConfig]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": lambda hf: _llama_like(hf, qkv_bias=True),
    "qwen3": lambda hf: _llama_like(
        hf, qk_norm="head", qkv_bias=hf.get("attention_bias", False), out_bias=hf.get("attention_bias", False)
    ),
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "olmo2": lambda hf: _llama_like(hf, pre_norm=False, post_norm=True, qk_norm="all"),
    "phi3": _llama,
}

# Older transformers wrote only what differed from the class's defaults, so these belong to the format.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"vocab_size": 50257},
    "gpt_neox": {"rotary_pct": 0.25},
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "phi3": {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    "qwen2": {"sliding_window": 4096, "max_window_layers": 28},
    "olmo2": {"rms_norm_eps": 1e-5},
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    "gemma2": {
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}


def config_from_hf(hf: Mapping[str, Any]) -> LMConfig:
    """`LMConfig` of a parsed Hugging Face `config.json`, in transformers' older or newer spelling.

    A multimodal checkpoint's `text_config` is used. Raises ValueError for an unknown architecture, activation or rope
    type, and for a field that the family needs and the file lacks.
    """
    if "text_config" in hf:
        outer = {k: hf[k] for k in ("bos_token_id", "eos_token_id", "tie_word_embeddings") if k in hf}
        hf = {**outer, **hf["text_config"]}
        hf = {**hf, "model_type": hf.get("model_type", "gemma3_text")}
    family = hf.get("model_type", "")
    if family not in _FAMILIES:
        raise ValueError(f"model_type {family!r} is not implemented; known: {', '.join(sorted(_FAMILIES))}")
    try:
        return _FAMILIES[family]({**_DEFAULTS.get(family, {}), **hf})
    except KeyError as error:
        raise ValueError(
            f"config.json of a {family} model lacks {error.args[0]!r}; take it from the original"
        ) from error
