"""GGUF files for tests, written by the gguf package from Hugging Face folders as llama.cpp
converts them: its names by the package's own table, its orders of rows and its sums.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

# config.json's key -> GGUF's, in the order in which a file is filled.
_KEYS = {
    "hidden_size": "embedding_length",
    "n_embd": "embedding_length",
    "num_hidden_layers": "block_count",
    "n_layer": "block_count",
    "num_attention_heads": "attention.head_count",
    "n_head": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "n_positions": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "rotary_emb_base": "rope.freq_base",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "attention.sliding_window",
    "use_parallel_residual": "use_parallel_residual",
}
ARCH = {
    "gemma3_text": "gemma3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
}


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json under GGUF's names, without the architecture's."""
    out = {}
    for key, name in _KEYS.items():
        if config.get(key) is not None:
            out[name] = config[key]
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        out["rope.freq_base"] = theta
    if config["model_type"] == "phi3":
        original = config.get("original_max_position_embeddings", 4096)
        out["rope.scaling.original_context_length"] = original
    if config["model_type"] == "gpt2":
        out["feed_forward_length"] = config.get("n_inner") or 4 * config["n_embd"]
    if config["model_type"] == "gpt_oss":
        scaling = config["rope_scaling"]
        out["expert_feed_forward_length"] = config["intermediate_size"]
        out["rope.scaling.type"] = "yarn"
        out["rope.scaling.factor"] = scaling["factor"]
        length = scaling["original_max_position_embeddings"]
        out["rope.scaling.original_context_length"] = length
    if config["model_type"] == "gemma3_text":
        kinds = config["layer_types"]
        windows = [kind == "sliding_attention" for kind in kinds]
        out["attention.sliding_window_pattern"] = windows
    if config["model_type"] == "gpt_neox":
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        out["rope.dimension_count"] = int(config["rotary_pct"] * head_dim)
    return out


def tensors_of(folder: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a folder as llama.cpp keeps them."""
    import gguf

    kind = config["model_type"]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    arch = next(
        number
        for number, name in gguf.MODEL_ARCH_NAMES.items()
        if name == ARCH.get(kind, kind)
    )
    table = gguf.get_tensor_name_map(arch, layers)
    out: dict[str, np.ndarray] = {}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(config)
    if scaling.get("rope_type") == "yarn":
        assert scaling["truncate"] is False
    for name, tensor in sorted(_stacked(folder).items()):
        stem, _, suffix = name.rpartition(".")
        theirs = table.get_name(stem)
        assert theirs is not None, name
        out[f"{theirs}.{suffix}"] = _as_llama_cpp(theirs, tensor, config)
    return out


def llama3_divisors(config: Mapping[str, Any]) -> np.ndarray:
    """By how much Llama 3 divides each frequency, as llama.cpp's conversion writes it."""
    scaling, dim = config["rope_scaling"], config["head_dim"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    out = []
    for k in range(0, dim, 2):
        length = 2 * np.pi * config["rope_theta"] ** (k / dim)
        turns = scaling["original_max_position_embeddings"] / length
        share = np.clip((turns - low) / (high - low), 0, 1)
        out.append(1 / ((1 - share) / scaling["factor"] + share))
    return np.array(out, np.float32)


def _stacked(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, the experts of a layer as one."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name in list(tensors):
        if match := re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", name):
            stack = experts.setdefault(f"{match[1]}.{match[3]}", {})
            stack[int(match[2])] = tensors.pop(name)
    for name, stack in experts.items():
        tensors[name] = np.stack([stack[k] for k in range(len(stack))])
    for name in [
        name for name in tensors if "gate_up_proj" in name and "mlp.experts" in name
    ]:
        tensor, front = tensors.pop(name), name.partition("gate_up")[0]
        kind = "bias" if name.endswith("bias") else "weight"
        for start, part in enumerate(("gate_proj", "up_proj")):
            half = tensor[..., start::2]
            whole = half if kind == "bias" else half.swapaxes(1, 2)
            tensors[f"{front}{part}.{kind}"] = whole
        down = tensors.pop(name.replace("gate_up", "down"))
        whole = down if kind == "bias" else down.swapaxes(1, 2)
        tensors[f"{front}down_proj.{kind}"] = whole
    for name in [name for name in tensors if name.endswith("sinks")]:
        tensors[f"{name}.weight"] = tensors.pop(name)
    return tensors


def _as_llama_cpp(name: str, tensor: np.ndarray, config: Mapping[str, Any]) -> Any:
    kind = config["model_type"]
    if kind in ("llama", "mixtral") and re.search(r"attn_[qk]$", name):
        heads = config["num_attention_heads"]
        if name.endswith("k"):
            heads = config["num_key_value_heads"]
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if kind.startswith("gemma") and name.endswith("norm"):
        return tensor + np.float32(1)
    if kind == "gpt2" and re.search(r"attn_qkv|attn_output|ffn", name):
        return tensor.T
    if kind == "gpt_neox" and name.endswith("attn_qkv"):
        parts = tensor.reshape(config["num_attention_heads"], 3, -1, *tensor.shape[1:])
        return parts.swapaxes(0, 1).reshape(tensor.shape)
    return tensor


def write_gguf(
    file: Path,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    types: Mapping[str, str] | None = None,
    raw: Mapping[str, tuple[Any, np.ndarray]] | None = None,
    other: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file.

    Args:
      metadata: keys of the architecture.
      types: tensor -> the type that the package quantises it to; F32 otherwise.
      raw: tensor -> its type and bytes, which take the place of its numbers.
      other: whole keys.
    """
    import gguf

    raw = raw or {}
    writer = gguf.GGUFWriter(file, arch)
    for key, value in metadata.items():
        _add(writer, f"{arch}.{key}", value)
    for key, value in (other or {}).items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        if name in raw:
            kind, data = raw[name]
        else:
            kind = gguf.GGMLQuantizationType[(types or {}).get(name, "F32")]
            data = gguf.quantize(np.ascontiguousarray(tensor, np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def convert(
    folder: Path, file: Path, *, types: Mapping[str, str] | None = None, **other: Any
) -> Path:
    """A Hugging Face folder as a GGUF file without a tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    for key in ("bos_token_id", "eos_token_id"):
        if config.get(key) is not None:
            other.setdefault(f"tokenizer.ggml.{key}", config[key])
    return write_gguf(
        file,
        ARCH.get(kind, kind),
        metadata_of(config),
        tensors_of(folder, config),
        types=types,
        other=other,
    )


def byte_level_keys(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """The keys of a byte-level BPE: 256 bytes, five merges, three special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "Ġ th", "Ġth e", "1 2", "12 3"]
    whole = [merge.replace(" ", "") for merge in merges]
    special = ["<s>", "</s>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), *whole]
    types = [3] * len(special) + [1] * (len(tokens) - len(special))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}<|im_end|>",
        **more,
    }


def sentence_piece_keys(**more: Any) -> dict[str, Any]:
    """The keys of a SentencePiece model: 256 bytes, letters, pieces with scores."""
    special = ["<unk>", "<s>", "</s>"]
    data = [f"<0x{number:02X}>" for number in range(256)]
    letters = list("▁abcdefghijklmnopqrstuvwxyz.,!1234567890")
    pieces = ["▁t", "he", "▁the", "in", "er", "▁a", "ere"]
    tokens = [*special, *data, *letters, *pieces, "  "]
    scores = [0.0] * (len(special) + len(data))
    scores += [-100.0 - k for k in range(len(letters))]
    scores += [-1.0 - k for k in range(len(pieces))] + [-1000.0]
    types = [2, 3, 3] + [6] * len(data) + [1] * (len(letters) + len(pieces)) + [4]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }
