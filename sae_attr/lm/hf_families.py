"""Readers of a config.json, one for each decoder family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.hf_schema import rope_kind, rope_misfits, shown
from sae_attr.lm.rope import Rope, rope_from_hf

ACTS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def _ropes(
    hf: Mapping[str, Any], head_dim: int, types: tuple[str, ...]
) -> dict[str, Any]:
    """`ropes` and `rope_of_layer`, from the flat or the per-layer-type spelling, or
    Gemma 3's older pair of keys.
    """
    name, entry = _rope_entry(hf)
    theta = hf.get("rope_theta", hf.get("rotary_emb_base", 10000.0))
    if entry and all(isinstance(v, Mapping) or v is None for v in entry.values()):
        absent = sorted(set(types) - set(entry))
        if absent:
            raise ValueError(
                f"{name} lacks an entry for layers of the kind {absent[0]!r}; take it "
                "from the original"
            )
        by_type = {
            kind: _rope(hf, f"{name}.{kind}", entry[kind] or {}, head_dim, theta)
            for kind in set(types)
        }
    else:
        main = _rope(hf, name, entry, head_dim, theta)
        by_type = {kind: main for kind in set(types)}
        if "rope_local_base_freq" in hf and "sliding_attention" in by_type:
            by_type["sliding_attention"] = rope_from_hf(
                hf, {}, head_dim, hf["rope_local_base_freq"]
            )
    ropes = tuple(dict.fromkeys(by_type[kind] for kind in types))
    return {
        "ropes": ropes,
        "rope_of_layer": tuple(ropes.index(by_type[kind]) for kind in types),
    }


def _rope_entry(hf: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The entry that says how positions are rotated, under whichever of its two names;
    they may not disagree.
    """
    new, old = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    if not new or not old:
        return ("rope_parameters", new) if new else ("rope_scaling", old)
    whole = {"rope_theta": hf.get("rope_theta"), **new}
    differ = [
        key
        for key, value in old.items()
        if key not in ("type", "rope_type") and whole.get(key) != value
    ]
    if rope_kind(new) != rope_kind(old) or differ:
        raise ValueError(
            f"rope_parameters ({shown(new)}) and rope_scaling ({shown(old)}) disagree; "
            "keep the one that is right"
        )
    return "rope_parameters", new


_PARTIAL = ("gpt_neox", "phi3")  # families that may rotate a part of every head


def _rope(
    hf: Mapping[str, Any],
    name: str,
    entry: Mapping[str, Any],
    head_dim: int,
    theta: float,
) -> Rope:
    lines = rope_misfits(name, entry)
    if hf["model_type"] not in _PARTIAL and entry.get("partial_rotary_factor") not in (
        None,
        1,
    ):
        share = entry["partial_rotary_factor"]
        lines.append(
            f"{name}.partial_rotary_factor is {share!r}, but a {hf['model_type']} "
            "model rotates whole heads"
        )
    if lines:
        raise ValueError("; ".join(lines))
    return rope_from_hf(hf, entry, head_dim, theta)


def _layer_types(hf: Mapping[str, Any], n_layers: int) -> tuple[str, ...]:
    """`sliding_attention` or `full_attention` per layer, stated or by the family's
    older rule.
    """
    family, window = hf["model_type"], hf.get("sliding_window")
    if hf.get("layer_types"):
        types = stated_types(tuple(hf["layer_types"]), n_layers)
        if "sliding_attention" in types and not _has_window(hf):
            raise ValueError(
                "layer_types has layers of sliding_attention, but sliding_window is "
                f"{window!r} and use_sliding_window "
                f"{hf.get('use_sliding_window')!r}; take the original"
            )
        return types
    if not _has_window(hf):
        return ("full_attention",) * n_layers
    if family == "gemma3_text":
        period = hf.get("sliding_window_pattern") or 6
        sliding = [(layer + 1) % period != 0 for layer in range(n_layers)]
    elif family in ("gemma2", "gpt_oss"):
        sliding = [layer % 2 == 0 for layer in range(n_layers)]
    elif family in ("qwen2", "qwen3"):
        first = (
            n_layers if hf.get("max_window_layers") is None else hf["max_window_layers"]
        )
        sliding = [layer >= first for layer in range(n_layers)]
    else:
        sliding = [True] * n_layers
    return tuple("sliding_attention" if s else "full_attention" for s in sliding)


def _has_window(hf: Mapping[str, Any]) -> bool:
    """Whether any layer may have a window: the Qwens have a switch beside its width."""
    switch = (
        bool(hf.get("use_sliding_window"))
        if hf["model_type"].startswith("qwen")
        else True
    )
    return switch and hf.get("sliding_window") is not None


def stated_types(types: tuple[str, ...], n_layers: int) -> tuple[str, ...]:
    """Returns the kinds of attention that config.json states, one a layer.

    Raises ValueError for a kind that is not implemented, or another number of them than
    there are layers.
    """
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        kinds = ", ".join(map(repr, sorted(unknown)))
        raise ValueError(
            f"layer_types: {kinds} is not implemented; known: full_attention, "
            "sliding_attention"
        )
    if len(types) != n_layers:
        raise ValueError(
            f"layer_types lists {len(types)} layers but num_hidden_layers is "
            f"{n_layers}; take the original"
        )
    return types


def _llama_like(hf: Mapping[str, Any], **fields: Any) -> LMConfig:
    """Fields that every RMSNorm / rotary / gated-MLP family shares; `fields` override."""
    n_layers = hf["num_hidden_layers"]
    n_heads = hf["num_attention_heads"]
    d_model = hf["hidden_size"]
    n_kv_heads = hf.get("num_key_value_heads") or n_heads
    head_dim = hf.get("head_dim") or _divided(
        d_model, n_heads, "hidden_size", "num_attention_heads"
    )
    _divided(n_heads, n_kv_heads, "num_attention_heads", "num_key_value_heads")
    types = _layer_types(hf, n_layers)
    window = min(hf.get("sliding_window") or NO_WINDOW, NO_WINDOW)
    shared: dict[str, Any] = {
        "family": hf["model_type"],
        "vocab": hf["vocab_size"],
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "d_mlp": hf["intermediate_size"],
        "max_len": hf["max_position_embeddings"],
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "act": _act(hf.get("hidden_act", "silu")),
        "window_of_layer": tuple(
            window if kind == "sliding_attention" else NO_WINDOW for kind in types
        ),
        "query_scale": head_dim**-0.5,
        "tied_head": bool(hf.get("tie_word_embeddings", False)),
        "bos_id": hf.get("bos_token_id"),
        "eos_id": _eos(hf.get("eos_token_id")),
    }
    return LMConfig(**{**shared, **_ropes(hf, head_dim, types), **fields})


def _divided(whole: int, parts: int, of: str, by: str) -> int:
    """How large each part is."""
    if whole % parts:
        raise ValueError(
            f"{of} {whole} is not a multiple of {by} {parts}; take config.json from "
            "the original"
        )
    return whole // parts


def _eos(value: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _act(name: str | None) -> str:
    if name not in ACTS:
        raise ValueError(
            f"activation {name!r} is not implemented; known: {', '.join(ACTS)}"
        )
    return ACTS[name]


def _llama(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(
        hf, qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False))
    )


def _gemma(hf: Mapping[str, Any]) -> LMConfig:
    return _llama_like(
        hf,
        norm_plus_one=True,
        post_norm=True,
        act=_act(hf["hidden_activation"] or "gelu_pytorch_tanh"),
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
    d_model, n_heads, n_layers = hf["n_embd"], hf["n_head"], hf["n_layer"]
    head_dim = _divided(d_model, n_heads, "n_embd", "n_head")
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
        inverse_layer_scale=bool(hf.get("scale_attn_by_inverse_layer_idx", False)),
        tied_head=bool(hf.get("tie_word_embeddings", True)),
        bos_id=hf.get("bos_token_id"),
        eos_id=_eos(hf.get("eos_token_id")),
    )


def _mixtral(hf: Mapping[str, Any]) -> LMConfig:
    return _llama_like(
        hf, n_experts=hf["num_local_experts"] or 0, n_chosen=hf["num_experts_per_tok"]
    )


def _qwen3(hf: Mapping[str, Any], **fields: Any) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(hf, qk_norm="head", qkv_bias=bias, out_bias=bias, **fields)


def _qwen3_moe(hf: Mapping[str, Any]) -> LMConfig:
    n_experts = hf.get("num_experts") or hf.get("num_local_experts") or 0
    layers = hf["num_hidden_layers"]
    step = hf["decoder_sparse_step"]
    dense = set(hf.get("mlp_only_layers") or ())
    if outside := sorted(dense - set(range(layers))):
        raise ValueError(
            f"mlp_only_layers names layer {outside[0]} of a model whose layers are "
            f"0..{layers - 1}"
        )
    if n_experts:
        dense |= {layer for layer in range(layers) if (layer + 1) % step != 0}
    if not n_experts or len(dense) == layers:
        return _qwen3(hf)
    return _qwen3(
        hf,
        d_mlp=hf["moe_intermediate_size"],
        n_experts=n_experts,
        n_chosen=hf["num_experts_per_tok"],
        norm_chosen=bool(hf["norm_topk_prob"]),
        dense_layers=tuple(sorted(dense)),
        d_dense=hf["intermediate_size"] if dense else 0,
    )


def _olmo2(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return _llama_like(
        hf, pre_norm=False, post_norm=True, qk_norm="all", qkv_bias=bias, out_bias=bias
    )


def _phi3(hf: Mapping[str, Any]) -> LMConfig:
    name = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    entry = hf.get(name) or {}
    if rope_kind(entry) == "yarn":  # what early files call longrope
        hf = {**hf, name: {**entry, "rope_type": "longrope"}}
    return _llama_like(hf)


def _gpt_oss(hf: Mapping[str, Any]) -> LMConfig:
    yarn = {
        "rope_type": "yarn",
        "factor": 32.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    if not hf.get("rope_parameters") and not hf.get("rope_scaling"):
        hf = {
            **hf,
            "rope_scaling": yarn,
        }  # what the architecture does where its config is silent
    if hf["hidden_act"] and _act(hf["hidden_act"]) != "silu":
        raise ValueError(
            f"gpt_oss with hidden_act {hf['hidden_act']!r} is not implemented; only "
            "silu is"
        )
    bias = bool(hf["attention_bias"])
    return _llama_like(
        hf,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        act="clipped_glu",
        glu_limit=float(hf["swiglu_limit"]),
        glu_alpha=float(hf["swiglu_alpha"]),
        n_experts=hf["num_local_experts"] or 0,
        n_chosen=hf["num_experts_per_tok"],
        sinks=True,
    )


FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], LMConfig]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _llama_like,
    "qwen2": lambda hf: _llama_like(hf, qkv_bias=True),
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "olmo2": _olmo2,
    "phi3": _phi3,
}
