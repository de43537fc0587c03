"""The config.json that a GGUF file's metadata stands for, under Hugging Face's names.

What llama.cpp fixes per architecture and does not write down is added here; a key of the
architecture that is not read has to be without effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import GgufHeader
from sae_attr.lm.gguf_rope import rope_entry
from sae_attr.lm.gguf_values import Values
from sae_attr.lm.hf_schema import shown
from sae_attr.text.gguf_tokenizer import token_id

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
# Without effect on what a model of text computes, or told by the tensors' shapes.
_SILENT = (
    "vocab_size",
    "tensor_data_layout",
    "attention.value_length",
    "rope.scaling.finetuned",
    "attention.causal",
)


@dataclass(frozen=True)
class Architecture:
    """States how the metadata of one `general.architecture` is read.

    Args:
      model_type: Hugging Face's name.
      constants: keys of config.json that llama.cpp does not write down.
      optional: GGUF's key -> that of config.json, where the file has it.
    """

    model_type: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)


_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_SILU = {"hidden_act": "silu"}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _SILU),
    "qwen2": Architecture("qwen2", _SILU),
    "qwen3": Architecture("qwen3", _SILU),
    "qwen3moe": Architecture("qwen3_moe", _SILU | {"norm_topk_prob": True}),
    "gemma2": Architecture("gemma2", _GEMMA, _SOFTCAPS | _WINDOW),
    "gemma3": Architecture(
        "gemma3_text",
        _GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        _SOFTCAPS | _WINDOW | {"rope.freq_base_swa": "rope_local_base_freq"},
    ),
    "phi3": Architecture("phi3", _SILU, _WINDOW),
    "olmo2": Architecture("olmo2", _SILU),
    "gpt-oss": Architecture("gpt_oss", _SILU, _WINDOW),
    "gpt2": Architecture("gpt2", {"activation_function": "gelu_new"}),
    "gptneox": Architecture("gpt_neox", {"hidden_act": "gelu"}),
}


def config_from_gguf(header: GgufHeader) -> dict[str, Any]:
    """Returns what config.json would say; `hf_config.config_from_hf` checks its values.

    Raises:
      ValueError: an architecture that is not read, a key that the architecture needs
        and the file lacks, a key of it that is not read and may matter.
    """
    values = Values(header)
    name = values.architecture
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{header.file}: the architecture {shown(name)} is not read; known: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    arch = ARCHITECTURES[name]
    config = {"model_type": arch.model_type, **arch.constants}
    config |= _SHAPES.get(name, _shape)(values)
    for key, ours in arch.optional.items():
        if (value := values.number(key)) is not None:
            config[ours] = value
    config |= _EXTRA.get(name, lambda values, config: {})(values, config)
    config |= {
        "vocab_size": _embedding_rows(header),
        "tie_word_embeddings": HEAD not in header.tensors,
        "bos_token_id": token_id(header, "bos_token_id"),
        "eos_token_id": token_id(header, "eos_token_id"),
    }
    values.check_unread(_SILENT)
    return config


def _embedding_rows(header: GgufHeader) -> int:
    place = header.tensors.get(EMBEDDING)
    if place is None:
        raise ValueError(
            f"{header.file} holds no {EMBEDDING}, so it is no language model: a "
            "projector, an adapter or a control vector has a file of its own; give the "
            "model's"
        )
    return place.shape[0]


def _has(header: GgufHeader, name: str) -> bool:
    return name in header.tensors


def _head_shape(values: Values) -> dict[str, Any]:
    """The keys of every architecture but GPT-2's."""
    return {
        "hidden_size": values.count("embedding_length"),
        "num_hidden_layers": values.count("block_count"),
        "num_attention_heads": values.count("attention.head_count"),
        "intermediate_size": values.count("feed_forward_length"),
        "max_position_embeddings": values.count("context_length"),
    }


def _head_dim(values: Values, config: Mapping[str, Any]) -> int:
    if values.raw("attention.key_length") is not None:
        return values.count("attention.key_length")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise ValueError(
            f"{values.header.file}: {width} channels are not shared evenly by {heads} "
            "heads; fetch it again"
        )
    return width // heads


def _shape(values: Values) -> dict[str, Any]:
    """The keys of every RMSNorm / rotary / gated-MLP architecture."""
    config = _head_shape(values)
    heads = config["num_attention_heads"]
    head_dim = _head_dim(values, config)
    rotated = values.number("rope.dimension_count")
    if rotated not in (None, head_dim) and values.architecture != "phi3":
        raise ValueError(
            f"{values.header.file} rotates {rotated} of the {head_dim} channels of a "
            f"head, which is not read for a {values.architecture} model"
        )
    config |= {
        "num_key_value_heads": values.number("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "rms_norm_eps": values.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": values.number("rope.freq_base") or 10000.0,
    }
    return config | rope_entry(values, config)


def _gpt2_shape(values: Values) -> dict[str, Any]:
    return {
        "n_embd": values.count("embedding_length"),
        "n_layer": values.count("block_count"),
        "n_head": values.count("attention.head_count"),
        "n_inner": values.count("feed_forward_length"),
        "n_positions": values.count("context_length"),
        "layer_norm_epsilon": values.need("attention.layer_norm_epsilon"),
    }


def _neox_shape(values: Values) -> dict[str, Any]:
    config = _head_shape(values)
    rotated = values.number("rope.dimension_count")
    head_dim = _head_dim(values, config)
    parallel = values.raw("use_parallel_residual")
    return config | {
        "layer_norm_eps": values.need("attention.layer_norm_epsilon"),
        "rotary_pct": rotated / head_dim if rotated else 1.0,
        "rotary_emb_base": values.number("rope.freq_base") or 10000.0,
        "use_parallel_residual": True if parallel is None else parallel,
    }


def _biases(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama's and Qwen 3's options, which the tensors alone tell."""
    return {"attention_bias": _has(values.header, "blk.0.attn_q.bias")}


def _llama(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    experts = values.number("expert_count")
    if experts:
        return {
            "model_type": "mixtral",
            "num_local_experts": experts,
            "num_experts_per_tok": values.count("expert_used_count"),
            "sliding_window": None,
        }
    mlp_bias = _has(values.header, "blk.0.ffn_up.bias")
    return {**_biases(values, config), "mlp_bias": mlp_bias}


def _qwen3_moe(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_biases(values, config),
        "num_experts": values.count("expert_count"),
        "num_experts_per_tok": values.count("expert_used_count"),
        "moe_intermediate_size": values.count("expert_feed_forward_length"),
    }


def _gpt_oss(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {
        "num_local_experts": values.count("expert_count"),
        "num_experts_per_tok": values.count("expert_used_count"),
        "intermediate_size": values.count("expert_feed_forward_length"),
    }
    if "rope_scaling" in config:  # gpt-oss does not round where the scaling begins
        more["rope_scaling"] = {**config["rope_scaling"], "truncate": False}
    return more


def _gemma(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma's query scale: by the head's width, but by d_model / heads in the largest
    models (27B, which llama.cpp tells by their number of layers).
    """
    largest = {"gemma2": 46, "gemma3_text": 62}[config["model_type"]]
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == largest:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": scalar}


def _gemma3(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    config_more = _gemma(values, config)
    config_more["rope_local_base_freq"] = config.get("rope_local_base_freq", 10000.0)
    pattern = values.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):  # one truth value a layer: it has a window
        kinds = {True: "sliding_attention", False: "full_attention"}
        config_more["layer_types"] = [kinds[bool(window)] for window in pattern]
    else:
        config_more["sliding_window_pattern"] = 6 if pattern is None else pattern
    return config_more


def _phi3(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    rotated = values.number("rope.dimension_count") or config["head_dim"]
    original = values.number("rope.scaling.original_context_length")
    return {
        "partial_rotary_factor": rotated / config["head_dim"],
        "original_max_position_embeddings": original
        or config["max_position_embeddings"],
    }


_SHAPES = {"gpt2": _gpt2_shape, "gptneox": _neox_shape}
_EXTRA = {
    "llama": _llama,
    "qwen3": _biases,
    "qwen3moe": _qwen3_moe,
    "gpt-oss": _gpt_oss,
    "gemma2": _gemma,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _biases,
}
