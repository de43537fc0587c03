"""`LMConfig`: every difference between decoder families as a field, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_attr.lm.rope import Rope, rope_from_hf

NO_WINDOW = 2**30  # "attends to everything", as an integer that can ride the scan


@dataclass(frozen=True)
class LMConfig:
    """A decoder-only transformer; hashable, so that it can be a static argument of a jitted function.

    Shapes: `d_model` residual width d, `d_mlp` f, `n_heads` h, `n_kv_heads` k, `head_dim`, `vocab` v. `ropes` and
    `rope_of_layer` / `window_of_layer` hold what differs between layers, so that layers can share one scanned body.
    `resid_dtype` is the residual stream's; weights have the dtype they were loaded in. With experts, `mlp_bias` is theirs
    and the router's.
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
    glu_limit: float = 0.0  # gpt-oss clips gate and up (act "clipped_glu")
    glu_alpha: float = 1.0
    n_experts: int = 0  # 0: one MLP; otherwise experts of width d_mlp behind a router
    n_chosen: int = 0  # experts of a token
    norm_chosen: bool = True  # weights of a token's experts sum to 1
    token_groups: int = 1  # rows go to the experts in so many groups, one per `data` shard; no number depends on it
    sinks: bool = False  # a logit per head that takes part in the softmax and has no value (gpt-oss)
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


def _ropes(hf: Mapping[str, Any], head_dim: int, types: tuple[str, ...]) -> dict[str, Any]:
    """`ropes` and `rope_of_layer`, from the flat or the per-layer-type spelling, or Gemma 3's older pair of keys."""
    new, theta = hf.get("rope_parameters"), hf.get("rope_theta", hf.get("rotary_emb_base", 10000.0))
    if new and all(isinstance(v, Mapping) or v is None for v in new.values()):
        by_type = {kind: rope_from_hf(hf, params or {}, head_dim, theta) for kind, params in new.items()}
    else:
        main = rope_from_hf(hf, new or hf.get("rope_scaling") or {}, head_dim, theta)
        by_type = {kind: main for kind in set(types)}
        if "rope_local_base_freq" in hf and "sliding_attention" in by_type:
            by_type["sliding_attention"] = rope_from_hf(hf, {}, head_dim, hf["rope_local_base_freq"])
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
    elif family in ("gemma2", "gpt_oss"):
        sliding = [layer % 2 == 0 for layer in range(n_layers)]
    elif family == "qwen3_moe":
        sliding = [bool(hf.get("use_sliding_window"))] * n_layers
    elif family in ("qwen2", "qwen3"):
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


def _mixtral(hf: Mapping[str, Any]) -> LMConfig:
    return _llama_like(hf, n_experts=hf["num_local_experts"], n_chosen=hf["num_experts_per_tok"])


def _qwen3(hf: Mapping[str, Any], **fields: Any) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(hf, qk_norm="head", qkv_bias=bias, out_bias=bias, **fields)


def _qwen3_moe(hf: Mapping[str, Any]) -> LMConfig:
    """Layers must share one scanned body, so they have experts all or none."""
    n_experts = hf.get("num_experts") or hf.get("num_local_experts") or 0
    dense, step, layers = set(hf.get("mlp_only_layers") or ()), hf["decoder_sparse_step"], hf["num_hidden_layers"]
    sparse = [n_experts > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    if any(sparse) != all(sparse):
        raise ValueError(
            f"decoder_sparse_step={step} and mlp_only_layers={sorted(dense)} give experts to {sum(sparse)} of {layers} "
            "layers; a model that mixes both kinds is not implemented, only all or none"
        )
    if not any(sparse):
        return _qwen3(hf)
    return _qwen3(
        hf,
        d_mlp=hf["moe_intermediate_size"],
        n_experts=n_experts,
        n_chosen=hf["num_experts_per_tok"],
        norm_chosen=bool(hf["norm_topk_prob"]),
    )


def _gpt_oss(hf: Mapping[str, Any]) -> LMConfig:
    yarn = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
    if not hf.get("rope_parameters") and not hf.get("rope_scaling"):
        hf = {**hf, "rope_scaling": yarn}  # what the architecture does where its config is silent
    if _act(hf["hidden_act"]) != "silu":
        raise ValueError(f"gpt_oss with hidden_act {hf['hidden_act']!r} is not implemented; only silu is")
    bias = bool(hf["attention_bias"])
    return _llama_like(
        hf,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        act="clipped_glu",
        glu_limit=float(hf["swiglu_limit"]),
        glu_alpha=float(hf["swiglu_alpha"]),
        n_experts=hf["num_local_experts"],
        n_chosen=hf["num_experts_per_tok"],
        sinks=True,
    )


_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], LMConfig]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": lambda hf: _llama_like(hf, qkv_bias=True),
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
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
    "mixtral": {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "gpt_oss": {
        "head_dim": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "hidden_act": "silu",
        "attention_bias": True,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
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
