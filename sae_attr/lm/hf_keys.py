"""The keys of a Hugging Face config.json, family by family: defaults, which are read,
and which are one key under two names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Older transformers wrote only what differed from the class's defaults, so these belong
# to the format.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
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


# Keys that a family's reader looks at; any other that is set has to be without effect
# (`schema.unread_lines`).
_CORE = {
    "model_type",
    "vocab_size",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
}
_GPT2 = _CORE | {
    *(
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
        "activation_function",
        "layer_norm_epsilon",
    ),
    *(
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
    ),
}
_NEOX = _CORE | {
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ),
    *(
        "hidden_act",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "layer_norm_eps",
        "use_parallel_residual",
    ),
    *("attention_bias", "rotary_pct", "rotary_emb_base", "partial_rotary_factor"),
}
_LLAMA = _CORE | {
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("intermediate_size", "max_position_embeddings", "hidden_act", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
}
_QWEN = _LLAMA | {"use_sliding_window", "sliding_window", "max_window_layers"}
_GEMMA = (_LLAMA - {"hidden_act"}) | {
    *(
        "hidden_activation",
        "sliding_window",
        "layer_types",
        "attention_bias",
        "query_pre_attn_scalar",
    ),
    "final_logit_softcapping",
}
READ: Mapping[str, set[str]] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA | {"attention_bias", "mlp_bias"},
    "mistral": _LLAMA | {"sliding_window"},
    "mixtral": _LLAMA | {"sliding_window", "num_local_experts", "num_experts_per_tok"},
    "qwen2": _QWEN | {"layer_types"},
    "qwen3": _QWEN | {"layer_types", "attention_bias"},
    "qwen3_moe": _QWEN
    | {
        "attention_bias",
        "decoder_sparse_step",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
    }
    | {"num_experts", "num_local_experts", "num_experts_per_tok"},
    "gpt_oss": _LLAMA
    | {
        "sliding_window",
        "layer_types",
        "attention_bias",
        "num_local_experts",
        "num_experts_per_tok",
    }
    | {"swiglu_alpha", "swiglu_limit"},
    "gemma2": _GEMMA | {"attn_logit_softcapping"},
    "gemma3_text": _GEMMA | {"rope_local_base_freq", "sliding_window_pattern"},
    "olmo2": _LLAMA | {"attention_bias"},
    "phi3": _LLAMA
    | {"sliding_window", "partial_rotary_factor", "original_max_position_embeddings"},
}
GPT2_NAMES = {  # transformers takes either
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
SYNONYMS = (
    ("num_experts", "num_local_experts"),
    ("num_experts_per_tok", "experts_per_token"),
    ("rope_theta", "rotary_emb_base"),
    ("partial_rotary_factor", "rotary_pct"),
    ("n_positions", "n_ctx"),
)
