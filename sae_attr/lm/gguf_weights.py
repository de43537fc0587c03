"""Tensors of a GGUF file under Hugging Face's names and in Hugging Face's order of rows,
dequantised where the loader cuts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.files.gguf_header import GgufHeader
from sae_attr.files.gguf_parts import read_gguf
from sae_attr.files.gguf_tensors import GgufTensor, map_tensors, type_name
from sae_attr.lm.config import LMConfig
from sae_attr.lm.gguf_experts import gpt_oss_tensors
from sae_attr.lm.gguf_rope import FREQUENCIES, LONG, SHORT
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.weight_files import Weights

Change = Callable[[Any, LMConfig], Any]
"""From a tensor as the file has it to the one that Hugging Face's files have."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_RULES = (FREQUENCIES, SHORT, LONG)  # of positions; the config has what they say


@dataclass(frozen=True)
class Names:
    """A family's tensors.

    Args:
      layer: GGUF's name within a layer -> Hugging Face's, without its layer; experts
        are stacked where it has a second {}.
      outer: the same for tensors outside the layers.
      changes: pattern of GGUF's name within a layer (or outside) -> what is done to it.
    """

    layer: Mapping[str, str]
    outer: Mapping[str, str]
    changes: Mapping[str, Change]
    prefix: str = "layers."


# ---- what is done to tensors -----------------------------------------------------------


def _halves(heads: str) -> Change:
    """llama.cpp rotates neighbouring channels of a Llama, Hugging Face the two halves of
    a head: rows (head, channel, half) become (head, half, channel).
    """

    def change(tensor: Any, cfg: LMConfig) -> Any:
        rows = _interleaved(getattr(cfg, heads), tensor.shape[0])
        return tensor[rows] if tensor.ndim == 1 else tensor.reordered(rows)

    return change


def _interleaved(heads: int, rows: int) -> np.ndarray:
    if rows % (2 * heads):
        return np.arange(rows)  # the loader says that the shape is another
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _minus_one(tensor: Any, cfg: LMConfig) -> Any:
    """Gemma's norms multiply by 1 + w, of which llama.cpp stores the sum."""
    if isinstance(tensor, GgufTensor):  # no vector, which the loader will say
        return tensor
    return tensor - np.float32(1)


def _transposed(tensor: Any, cfg: LMConfig) -> Any:
    """GPT-2's linear weights are [in, out] in Hugging Face's files."""
    return tensor.T if tensor.ndim == 2 else tensor


def _by_head(tensor: Any, cfg: LMConfig) -> Any:
    """llama.cpp keeps all of q, then k, then v; GPT-NeoX (head, [q, k, v], channel)."""
    rows = np.arange(tensor.shape[0])
    if len(rows) == 3 * cfg.n_heads * cfg.head_dim:  # the loader says where it is not
        rows = rows.reshape(3, cfg.n_heads, -1).swapaxes(0, 1).ravel()
    return tensor[rows] if tensor.ndim == 1 else tensor.reordered(rows)


# ---- names -----------------------------------------------------------------------------


_OUTER = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_LLAMA = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = _LLAMA | _POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
_PHI3 = _LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_MIXTRAL = _LLAMA | {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_QWEN3_MOE = _LLAMA | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_GPT_OSS = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate",
    "ffn_up_exps": "mlp.experts.up",
    "ffn_down_exps": "mlp.experts.down",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_OUTER = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
}
_NEOX = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_NEOX_OUTER = {
    "token_embd": "embed_in",
    "output_norm": "final_layer_norm",
    "output": "embed_out",
}
_ROTATED = {"attn_q": _halves("n_heads"), "attn_k": _halves("n_kv_heads")}
_PLUS_ONE = {r".*norm": _minus_one}
NAMES: dict[str, Names] = {
    "llama": Names(_LLAMA, _OUTER, _ROTATED),
    "mixtral": Names(_MIXTRAL, _OUTER, _ROTATED),
    "qwen2": Names(_LLAMA, _OUTER, {}),
    "qwen3": Names(_LLAMA, _OUTER, {}),
    "qwen3_moe": Names(_QWEN3_MOE, _OUTER, {}),
    "gemma2": Names(_GEMMA, _OUTER, _PLUS_ONE),
    "gemma3_text": Names(_GEMMA, _OUTER, _PLUS_ONE),
    "phi3": Names(_PHI3, _OUTER, {}),
    "olmo2": Names(_LLAMA | _POST_NORMS, _OUTER, {}),
    "gpt_oss": Names(_GPT_OSS, _OUTER, {}),
    "gpt_neox": Names(_NEOX, _NEOX_OUTER, {"attn_qkv": _by_head}),
    "gpt2": Names(
        _GPT2,
        _GPT2_OUTER,
        {"attn_(qkv|output)|ffn_(up|down)": _transposed},
        prefix="h.",
    ),
}
"""By the family of the config."""


def quantisation(header: GgufHeader) -> dict[str, int]:
    """Returns how many tensors each type of quantisation stores, the commonest first."""
    counts = Counter(type_name(place) for place in header.tensors.values())
    return dict(counts.most_common())


def quantisation_of(path: str) -> dict[str, int]:
    """Returns `quantisation` of a model, empty where its weights are read as they are.

    Args:
      path: as for `resolve_model`.
    """
    local = resolve_model(path)
    return quantisation(read_gguf(local)) if local.is_file() else {}


def quantisation_note(path: str) -> dict[str, Any]:
    """Returns `{"lm_quantisation": counts}` for a result that is about such a model,
    else nothing.
    """
    types = quantisation_of(path)
    return {"lm_quantisation": types} if types else {}


def quantisation_text(types: Mapping[str, int]) -> str:
    """Returns the counts of `quantisation` as one text: `Q4_1 210 · F32 61`."""
    return " · ".join(f"{name} {count}" for name, count in types.items())


def read_gguf_weights(header: GgufHeader, cfg: LMConfig) -> Weights:
    """Maps the tensors of a GGUF file as if they lay in a Hugging Face folder. A tensor
    that the family has no name for keeps its own.

    Raises:
      ValueError: as `map_tensors`.
    """
    names = NAMES[cfg.family]
    places = [p for p in header.tensors.values() if p.name not in _RULES]
    tensors: dict[str, Any] = {}
    file_of = {}
    for name, tensor in map_tensors(places).items():
        for ours, part in _renamed(names, name, tensor, cfg):
            tensors[ours] = part
            file_of[ours] = header.tensors[name].file
    if cfg.family == "gpt_oss":
        tensors = gpt_oss_tensors(tensors)
        file_of = dict.fromkeys(tensors, header.file)
    return Weights(tensors, file_of)


def _renamed(
    names: Names, name: str, tensor: Any, cfg: LMConfig
) -> Iterator[tuple[str, Any]]:
    """A tensor under its name in Hugging Face's files, or each of its experts."""
    match = _LAYER.fullmatch(name)
    stem, _, kind = name.rpartition(".")
    inner = match[2] if match else stem
    table = names.layer if match else names.outer
    if inner not in table:
        yield name, tensor
        return
    for pattern, change in names.changes.items():
        if re.fullmatch(pattern, inner):
            tensor = change(tensor, cfg)
    prefix = f"{names.prefix}{match[1]}." if match else ""
    ours = f"{prefix}{table[inner]}.{kind}"
    if "{}" not in ours:
        yield ours, tensor
        return
    # One more than the config has is enough to say that there are too many.
    for expert in range(min(tensor.shape[0], cfg.n_experts + 1)):
        yield ours.format(expert), tensor[expert]
