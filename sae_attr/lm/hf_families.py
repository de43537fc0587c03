"""Every decoder family: the keys of its config.json, their defaults, and how it becomes
an `LMConfig`.

A new family is one entry of `FAMILIES` here and, where its tensors have names of their
own, one of `LAYOUTS` in hf_layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.hf_schema import rope_kind
from sae_attr.lm.hf_shared import Windows, act, divided, eos, every_layer, llama_like


@dataclass(frozen=True)
class Family:
    """States how the config.json of one `model_type` is read.

    Args:
      read: from its keys, with the defaults, to `LMConfig`.
      keys: those that `read` looks at; any other that is set has to be without effect
        (`hf_schema.unread_lines`).
      defaults: of keys that a file may lack. Older transformers wrote only what
        differed from the class's defaults, so these belong to the format.
      aliases: further names of keys, which transformers takes too.
      implied: keys that are not read -> the value that says what the model does anyway,
        beside those that hold for every family.
      quantised: methods of quantised weights that can be read.
    """

    read: Callable[[Mapping[str, Any]], LMConfig]
    keys: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda hf: {}
    quantised: tuple[str, ...] = ()


# ---- keys that several families read ---------------------------------------------------


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


_CORE = _keys("model_type vocab_size tie_word_embeddings bos_token_id eos_token_id")
_GPT2 = _CORE | _keys(
    "n_embd n_layer n_head n_inner n_positions activation_function layer_norm_epsilon "
    "scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn"
)
_ROPE = _keys("rope_theta rope_scaling rope_parameters")
_SHAPE = _keys(
    "hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "max_position_embeddings"
)
_NEOX = (_CORE | _SHAPE | _ROPE) | _keys(
    "hidden_act layer_norm_eps use_parallel_residual attention_bias rotary_pct "
    "rotary_emb_base partial_rotary_factor"
)
_LLAMA = (_CORE | _SHAPE | _ROPE) | _keys(
    "num_key_value_heads head_dim hidden_act rms_norm_eps"
)
_QWEN = _LLAMA | _keys("use_sliding_window sliding_window max_window_layers")
_EXPERTS = _keys("num_local_experts num_experts_per_tok")
_GEMMA = (_LLAMA - {"hidden_act"}) | _keys(
    "hidden_activation sliding_window layer_types attention_bias "
    "query_pre_attn_scalar final_logit_softcapping"
)


# ---- older rules of layers with a window -----------------------------------------------


def _every_second_layer(hf: Mapping[str, Any], n_layers: int) -> list[bool]:
    return [layer % 2 == 0 for layer in range(n_layers)]


def _five_of_six_layers(hf: Mapping[str, Any], n_layers: int) -> list[bool]:
    period = hf.get("sliding_window_pattern") or 6
    return [(layer + 1) % period != 0 for layer in range(n_layers)]


def _upper_layers(hf: Mapping[str, Any], n_layers: int) -> list[bool]:
    first = hf.get("max_window_layers")
    first = n_layers if first is None else first
    return [layer >= first for layer in range(n_layers)]


# ---- readers ---------------------------------------------------------------------------


def _llama(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return llama_like(
        hf, qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False))
    )


def _gemma2(hf: Mapping[str, Any]) -> LMConfig:
    return _gemma(hf, windows=_every_second_layer)


def _gemma3(hf: Mapping[str, Any]) -> LMConfig:
    return _gemma(hf, windows=_five_of_six_layers, qk_norm="head")


def _gemma3_notes(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """A note of transformers, which it reads itself from the other two keys alone."""
    note = "_sliding_window_pattern"
    layer_pattern = hf.get("layer_types") or hf.get("sliding_window_pattern")
    return {note: hf.get(note) if layer_pattern else 6}


def _gemma(hf: Mapping[str, Any], **fields: Any) -> LMConfig:
    return llama_like(
        hf,
        **fields,
        norm_plus_one=True,
        post_norm=True,
        act=act(hf["hidden_activation"] or "gelu_pytorch_tanh"),
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
    return llama_like(
        hf,
        partial_rotary=True,
        norm="layer",
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        parallel_residual=bool(hf.get("use_parallel_residual", True)),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        act=act(hf.get("hidden_act", "gelu")),
        gated_mlp=False,
    )


def _gpt2(hf: Mapping[str, Any]) -> LMConfig:
    d_model, n_heads, n_layers = hf["n_embd"], hf["n_head"], hf["n_layer"]
    head_dim = divided(d_model, n_heads, "n_embd", "n_head")
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
        act=act(hf.get("activation_function", "gelu_new")),
        gated_mlp=False,
        learned_pos=True,
        window_of_layer=(NO_WINDOW,) * n_layers,
        query_scale=head_dim**-0.5 if hf.get("scale_attn_weights", True) else 1.0,
        inverse_layer_scale=bool(hf.get("scale_attn_by_inverse_layer_idx", False)),
        tied_head=bool(hf.get("tie_word_embeddings", True)),
        bos_id=hf.get("bos_token_id"),
        eos_id=eos(hf.get("eos_token_id")),
    )


def _qwen2(hf: Mapping[str, Any]) -> LMConfig:
    return llama_like(hf, windows=_upper_layers, qkv_bias=True)


def _mixtral(hf: Mapping[str, Any]) -> LMConfig:
    return llama_like(
        hf, n_experts=hf["num_local_experts"] or 0, n_chosen=hf["num_experts_per_tok"]
    )


def _qwen3(
    hf: Mapping[str, Any], *, windows: Windows = _upper_layers, **fields: Any
) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return llama_like(
        hf, windows=windows, qk_norm="head", qkv_bias=bias, out_bias=bias, **fields
    )


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
        return _qwen3(hf, windows=every_layer)
    return _qwen3(
        hf,
        windows=every_layer,
        d_mlp=hf["moe_intermediate_size"],
        n_experts=n_experts,
        n_chosen=hf["num_experts_per_tok"],
        norm_chosen=bool(hf["norm_topk_prob"]),
        dense_layers=tuple(sorted(dense)),
        d_dense=hf["intermediate_size"] if dense else 0,
    )


def _olmo2(hf: Mapping[str, Any]) -> LMConfig:
    bias = bool(hf.get("attention_bias", False))
    return llama_like(
        hf, pre_norm=False, post_norm=True, qk_norm="all", qkv_bias=bias, out_bias=bias
    )


def _phi3(hf: Mapping[str, Any]) -> LMConfig:
    name = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    entry = hf.get(name) or {}
    if rope_kind(entry) == "yarn":  # what early files call longrope
        hf = {**hf, name: {**entry, "rope_type": "longrope"}}
    return llama_like(hf, partial_rotary=True)


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
    if hf["hidden_act"] and act(hf["hidden_act"]) != "silu":
        raise ValueError(
            f"gpt_oss with hidden_act {hf['hidden_act']!r} is not implemented; only "
            "silu is"
        )
    bias = bool(hf["attention_bias"])
    return llama_like(
        hf,
        qkv_bias=bias,
        out_bias=bias,
        windows=_every_second_layer,
        mlp_bias=True,
        act="clipped_glu",
        glu_limit=float(hf["swiglu_limit"]),
        glu_alpha=float(hf["swiglu_alpha"]),
        n_experts=hf["num_local_experts"] or 0,
        n_chosen=hf["num_experts_per_tok"],
        sinks=True,
    )


# ---- the table -------------------------------------------------------------------------


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        _gpt2,
        _GPT2,
        {"vocab_size": 50257},
        aliases={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
    "gpt_neox": Family(_gpt_neox, _NEOX, {"rotary_pct": 0.25}),
    "llama": Family(_llama, _LLAMA | _keys("attention_bias mlp_bias")),
    "mistral": Family(
        llama_like,
        _LLAMA | _keys("sliding_window"),
        {"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "mixtral": Family(
        _mixtral,
        _LLAMA | _EXPERTS | _keys("sliding_window"),
        {
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen2": Family(
        _qwen2,
        _QWEN | _keys("layer_types"),
        {
            "sliding_window": 4096,
            "max_window_layers": 28,
            "use_sliding_window": False,
        },
    ),
    "qwen3": Family(
        _qwen3,
        _QWEN | _keys("layer_types attention_bias"),
        {
            "head_dim": 128,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "use_sliding_window": False,
        },
    ),
    "qwen3_moe": Family(
        _qwen3_moe,
        (_QWEN | _EXPERTS)
        | _keys(
            "attention_bias decoder_sparse_step mlp_only_layers moe_intermediate_size "
            "norm_topk_prob num_experts"
        ),
        {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "use_sliding_window": False,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
    ),
    "gpt_oss": Family(
        _gpt_oss,
        (_LLAMA | _EXPERTS)
        | _keys("sliding_window layer_types attention_bias swiglu_alpha swiglu_limit"),
        {
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
        quantised=("mxfp4",),
    ),
    "gemma2": Family(
        _gemma2,
        _GEMMA | _keys("attn_logit_softcapping"),
        {
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "gemma3_text": Family(
        _gemma3,
        _GEMMA | _keys("rope_local_base_freq sliding_window_pattern"),
        {
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
        implied=_gemma3_notes,
    ),
    "olmo2": Family(_olmo2, _LLAMA | _keys("attention_bias"), {"rms_norm_eps": 1e-5}),
    "phi3": Family(
        _phi3,
        _LLAMA
        | _keys(
            "sliding_window partial_rotary_factor original_max_position_embeddings"
        ),
        {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
}
