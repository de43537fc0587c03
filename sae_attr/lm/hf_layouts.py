"""Where every leaf of the parameter tree lies in the checkpoints of each family: a
tensor's name and a view of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sae_attr.lm.config import LMConfig

Read = Callable[[np.ndarray, LMConfig], np.ndarray]


@dataclass(frozen=True)
class LeafSource:
    """States where one leaf of one layer comes from: a tensor's name without prefixes,
    and the view of it that we store.

    The first {} of a name is the layer. Experts are read one at a time: their number is
    the second {}, or, where a layer's experts are one tensor `[e, in, out]`, `columns`
    says which of the last axis belong to the leaf.
    """

    name: str
    read: Read = lambda w, cfg: w
    columns: slice | None = None

    @property
    def per_expert(self) -> bool:
        """Whether the leaf has an axis of experts that is filled one by one."""
        return self.columns is not None or self.name.count("{}") == 2

    def view(
        self, tensors: Mapping[str, Any], name: str, expert: int, cfg: LMConfig
    ) -> np.ndarray:
        """Returns what the leaf takes of a tensor."""
        if self.columns is None:
            return self.read(tensors[name], cfg)
        return tensors[name][expert, :, self.columns]

    def shape_of(
        self, tensors: Mapping[str, Any], name: str, expert: int, cfg: LMConfig
    ) -> tuple[int, ...]:
        """Returns the shape of `view`, without reading anything."""
        if self.columns is None:
            return self.read(tensors[name], cfg).shape
        experts, rows, columns = tensors[name].shape
        return (
            (rows, len(range(columns)[self.columns]))
            if expert < experts
            else tensors[name].shape
        )


def transposed(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
    """Returns a matrix that the file has as [out, in]."""
    return w.T


def as_is(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
    """Returns a matrix that the file has as [in, out], or a vector."""
    return w


def _interleaved(part: int) -> Read:
    """GPT-NeoX keeps (head, [q, k, v], channel) in one matrix."""

    def read(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
        view = w.reshape(cfg.n_heads, 3, cfg.head_dim, *w.shape[1:])[:, part]
        return view.reshape(cfg.n_heads * cfg.head_dim, *w.shape[1:]).T

    return read


def _conv1d(part: int) -> Read:
    """GPT-2's Conv1D is [in, out] with q, k and v side by side along the outputs."""
    return lambda w, cfg: w[
        ..., part * cfg.d_model : (part + 1) * cfg.d_model if part < 2 else None
    ]


def _fused_qkv(part: int) -> Read:
    """Phi-3's qkv_proj is [q rows, k rows, v rows]; v takes all that is left, so that
    its shape tells of too many.
    """

    def read(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
        heads = (
            np.cumsum([0, cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads]) * cfg.head_dim
        )
        return w[heads[part] : heads[part + 1] if part < 2 else None].T

    return read


def _linear(ours: str, theirs: str, read: Read = transposed) -> dict[str, LeafSource]:
    bias: Read = (lambda w, cfg: w) if read is transposed else read
    return {
        f"{ours}/kernel": LeafSource(f"{theirs}.weight", read),
        f"{ours}/bias": LeafSource(f"{theirs}.bias", bias),
    }


def _norm(ours: str, theirs: str) -> dict[str, LeafSource]:
    return {
        f"{ours}/scale": LeafSource(f"{theirs}.weight"),
        f"{ours}/bias": LeafSource(f"{theirs}.bias"),
    }


_OUTER = {
    "embed/table": LeafSource("embed_tokens.weight"),
    "head/table": LeafSource("lm_head.weight"),
    **_norm("final_norm", "norm"),
}
_LLAMA = {
    **_OUTER,
    **_norm("attn_norm", "layers.{}.input_layernorm"),
    **_norm("mlp_norm", "layers.{}.post_attention_layernorm"),
    **_norm("q_norm", "layers.{}.self_attn.q_norm"),
    **_norm("k_norm", "layers.{}.self_attn.k_norm"),
    **_linear("q", "layers.{}.self_attn.q_proj"),
    **_linear("k", "layers.{}.self_attn.k_proj"),
    **_linear("v", "layers.{}.self_attn.v_proj"),
    **_linear("o", "layers.{}.self_attn.o_proj"),
    **_linear("gate", "layers.{}.mlp.gate_proj"),
    **_linear("up", "layers.{}.mlp.up_proj"),
    **_linear("down", "layers.{}.mlp.down_proj"),
}
_POST_NORMS = {
    **_norm("attn_post_norm", "layers.{}.post_attention_layernorm"),
    **_norm("mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    **_norm("mlp_post_norm", "layers.{}.post_feedforward_layernorm"),
}
_PHI3 = {
    **_LLAMA,
    **{
        f"{n}/kernel": LeafSource("layers.{}.self_attn.qkv_proj.weight", _fused_qkv(i))
        for i, n in enumerate("qkv")
    },
    "gate/kernel": LeafSource(
        "layers.{}.mlp.gate_up_proj.weight", lambda w, cfg: w[: cfg.d_mlp].T
    ),
    "up/kernel": LeafSource(
        "layers.{}.mlp.gate_up_proj.weight", lambda w, cfg: w[cfg.d_mlp :].T
    ),
}
_GPT2 = {
    "embed/table": LeafSource("wte.weight"),
    "pos/table": LeafSource("wpe.weight"),
    "head/table": LeafSource("lm_head.weight"),
    **_norm("final_norm", "ln_f"),
    **_norm("attn_norm", "h.{}.ln_1"),
    **_norm("mlp_norm", "h.{}.ln_2"),
    **_linear("q", "h.{}.attn.c_attn", _conv1d(0)),
    **_linear("k", "h.{}.attn.c_attn", _conv1d(1)),
    **_linear("v", "h.{}.attn.c_attn", _conv1d(2)),
    **_linear("o", "h.{}.attn.c_proj", as_is),
    **_linear("up", "h.{}.mlp.c_fc", as_is),
    **_linear("down", "h.{}.mlp.c_proj", as_is),
}
_NEOX = {
    "embed/table": LeafSource("embed_in.weight"),
    "head/table": LeafSource("embed_out.weight"),
    **_norm("final_norm", "final_layer_norm"),
    **_norm("attn_norm", "layers.{}.input_layernorm"),
    **_norm("mlp_norm", "layers.{}.post_attention_layernorm"),
    **_linear("q", "layers.{}.attention.query_key_value", _interleaved(0)),
    **_linear("k", "layers.{}.attention.query_key_value", _interleaved(1)),
    **_linear("v", "layers.{}.attention.query_key_value", _interleaved(2)),
    **_linear("o", "layers.{}.attention.dense"),
    **_linear("up", "layers.{}.mlp.dense_h_to_4h"),
    **_linear("down", "layers.{}.mlp.dense_4h_to_h"),
}


def _experts(
    theirs: str, router: str, gate: str, up: str, down: str
) -> dict[str, LeafSource]:
    """A tensor for every expert's matrix."""
    names = {"gate": gate, "up": up, "down": down}
    return {
        **{
            name: source
            for name, source in _LLAMA.items()
            if name.split("/")[0] not in names
        },
        **_linear("moe/router", f"{theirs}.{router}"),
        **{
            f"moe/{ours}": LeafSource(
                f"{theirs}.experts.{{}}.{name}.weight", transposed
            )
            for ours, name in names.items()
        },
    }


_MIXTRAL = _experts("layers.{}.block_sparse_moe", "gate", gate="w1", up="w3", down="w2")
_QWEN3_MOE = _experts(
    "layers.{}.mlp", "gate", gate="gate_proj", up="up_proj", down="down_proj"
)
_GPT_OSS = {
    **_LLAMA,
    "sinks": LeafSource("layers.{}.self_attn.sinks"),
    **_linear("moe/router", "layers.{}.mlp.router"),
    "moe/gate": LeafSource(
        "layers.{}.mlp.experts.gate_up_proj", columns=slice(0, None, 2)
    ),
    "moe/up": LeafSource(
        "layers.{}.mlp.experts.gate_up_proj", columns=slice(1, None, 2)
    ),
    "moe/down": LeafSource("layers.{}.mlp.experts.down_proj", columns=slice(0, None)),
    "moe/gate_bias": LeafSource(
        "layers.{}.mlp.experts.gate_up_proj_bias", lambda w, cfg: w[:, 0::2]
    ),
    "moe/up_bias": LeafSource(
        "layers.{}.mlp.experts.gate_up_proj_bias", lambda w, cfg: w[:, 1::2]
    ),
    "moe/down_bias": LeafSource("layers.{}.mlp.experts.down_proj_bias"),
}


@dataclass(frozen=True)
class Layout:
    """States how the checkpoints of a family lie.

    Args:
      leaves: leaf -> its source, where it differs from Llama's.
      prefix: what transformers writes before a tensor's name; the head has none.
      in_out: linear weights are `[in, out]` in the files, as GPT-2's Conv1D has them,
        and not `[out, in]`.
    """

    leaves: Mapping[str, LeafSource] = field(default_factory=dict)
    prefix: str = "model."
    in_out: bool = False


LAYOUTS: dict[str, Layout] = {
    "gpt2": Layout(_GPT2, "transformer.", in_out=True),
    "gpt_neox": Layout(_NEOX, "gpt_neox."),
    "phi3": Layout(_PHI3),
    "mixtral": Layout(_MIXTRAL),
    "qwen3_moe": Layout(_QWEN3_MOE),
    "gpt_oss": Layout(_GPT_OSS),
    "gemma2": Layout(_POST_NORMS),
    "gemma3_text": Layout(_POST_NORMS),
    "olmo2": Layout(_POST_NORMS),
}
"""Families that are not laid out as Llama is."""
_NO_PREFIX = ("lm_head.", "embed_out.")
# The language model in a multimodal checkpoint.
_MULTIMODAL = ("model.language_model.", "language_model.model.", "language_model.")


def without_prefix(name: str) -> str:
    """Returns a tensor's or module's name as the tables above have it: checkpoints
    differ in what stands before it.
    """
    of_families = {Layout().prefix, *(layout.prefix for layout in LAYOUTS.values())}
    for prefix in (*_MULTIMODAL, *sorted(of_families)):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def layout_of(cfg: LMConfig) -> Layout:
    """Returns how a model's family lies in its files."""
    return LAYOUTS.get(cfg.family, Layout())


def tensor_name(cfg: LMConfig, name: str) -> str:
    """Returns a tensor's name in a checkpoint that transformers writes, from its name
    without prefixes.
    """
    return name if name.startswith(_NO_PREFIX) else layout_of(cfg).prefix + name


def source_of(cfg: LMConfig, leaf: str) -> LeafSource:
    """Returns the source of a leaf, whose path may begin with blocks/."""
    leaf = leaf.removeprefix("blocks/")
    # A family with experts may have layers without.
    table = {**_LLAMA, **layout_of(cfg).leaves}
    name = dict(cfg.names).get(leaf)
    if leaf not in table and name is None:
        raise ValueError(
            f"a {cfg.family} model has no tensor for {leaf}; say its name in "
            "LMConfig.names"
        )
    source = table.get(leaf, LeafSource(""))
    return source if name is None else replace(source, name=without_prefix(name))
