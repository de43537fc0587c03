"""The schema of a config.json: the type and range of every key that is read, and what a
key may say without being read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LAYERS, MAX_MATRICES = (
    4096,
    200_000,
)  # far beyond every model: a larger number is damage
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Kind:
    """The values that a key may have: a test, and the words for it."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """Returns the kind of whole numbers within bounds; true and false are none."""
    # bool is a kind of int in Python, and true is no number of layers.
    fits = lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high
    return Kind(f"a whole number from {low} to {high:,}", fits)


def number(low: float, high: float) -> Kind:
    """Returns the kind of finite numbers above `low`, up to `high`."""
    fits = lambda x: (
        isinstance(x, int | float) and not isinstance(x, bool) and low < x <= high
    )
    return Kind(f"a finite number above {low:g}, at most {high:g}", fits)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words}, or null", lambda x: x is None or kind.fits(x))


def _list_of(kind: Kind, most: int) -> Kind:
    fits = lambda x: (
        isinstance(x, list | tuple) and len(x) <= most and all(map(kind.fits, x))
    )
    return Kind(f"a list, each of it {kind.words}", fits)


_TEXT = Kind("text", lambda x: isinstance(x, str))
FLAG = Kind("true, false or null", lambda x: x is None or isinstance(x, bool))
OBJECT = Kind("an object, or null", lambda x: x is None or isinstance(x, Mapping))
_ID = whole(0, 2**31 - 1)
IDS = Kind(
    "a token id, a list of token ids, or null",
    lambda x: x is None or _ID.fits(x) or _list_of(_ID, 1000).fits(x),
)
_WIDTH, _HEADS, _LENGTH = whole(1, 2**24), whole(1, 2**16), whole(1, 2**31 - 1)
_EPSILON, _BASE, _SHARE = number(0, 1), number(1, 1e30), number(0, 1)
_POSITIVE = number(0, 1e30)

KEYS: Mapping[str, Kind] = {
    **dict.fromkeys(("hidden_size", "n_embd"), whole(1, 2**20)),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), whole(1, MAX_LAYERS)),
    **dict.fromkeys(("num_attention_heads", "n_head"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), _or_null(_HEADS)),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), _WIDTH),
    "n_inner": _or_null(_WIDTH),
    "vocab_size": whole(1, 2**26),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "original_max_position_embeddings",
        ),
        _LENGTH,
    ),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), _EPSILON),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), _BASE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _or_null(_SHARE)),
    **dict.fromkeys(
        ("hidden_act", "hidden_activation", "activation_function"), _or_null(_TEXT)
    ),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), OBJECT),
    "sliding_window": _or_null(_LENGTH),
    **dict.fromkeys(
        ("sliding_window_pattern", "_sliding_window_pattern"), _or_null(_LENGTH)
    ),
    "max_window_layers": _or_null(_ID),
    "layer_types": _or_null(_list_of(_TEXT, MAX_LAYERS)),
    "decoder_sparse_step": whole(1, 2**31 - 1),
    "mlp_only_layers": _or_null(_list_of(whole(0, MAX_LAYERS), MAX_LAYERS)),
    **dict.fromkeys(("num_local_experts", "num_experts"), _or_null(whole(0, 2**16))),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token"), _HEADS),
    **dict.fromkeys(
        ("query_pre_attn_scalar", "swiglu_alpha", "swiglu_limit"), _POSITIVE
    ),
    **dict.fromkeys(
        ("attn_logit_softcapping", "final_logit_softcapping"), _or_null(_POSITIVE)
    ),
    **dict.fromkeys(
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_parallel_residual"),
        FLAG,
    ),
    **dict.fromkeys(
        ("use_sliding_window", "norm_topk_prob", "use_bidirectional_attention"), FLAG
    ),
    **dict.fromkeys(
        (
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
        ),
        FLAG,
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), IDS),
    **dict.fromkeys(("dtype", "torch_dtype"), _or_null(_TEXT)),
}
_FACTORS = _list_of(_POSITIVE, 2**16)
_ROPE: Mapping[str, Kind] = {
    **dict.fromkeys(("rope_type", "type"), _or_null(_TEXT)),
    "rope_theta": _or_null(_BASE),
    "partial_rotary_factor": _or_null(_SHARE),
    **dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
        _or_null(_POSITIVE),
    ),
    **dict.fromkeys(
        ("attention_factor", "mscale", "mscale_all_dim"), _or_null(_POSITIVE)
    ),
    "original_max_position_embeddings": _or_null(_LENGTH),
    **dict.fromkeys(("short_factor", "long_factor"), _or_null(_FACTORS)),
    "truncate": FLAG,
}
_ROPE_OF_TYPE: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor"},
}
# Every type may repeat these; the trained length is without effect on those that do not
# look at it.
_ROPE_ALWAYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
}
_ROPE_HARMLESS = {
    "finetuned",
    "mrope_section",
    "mrope_interleaved",
}  # mrope is plain rotation where all is text


def misfits(values: Mapping[str, Any], keys: Mapping[str, Kind] = KEYS) -> list[str]:
    """Returns a line for every value that is not of its key's kind."""
    wrong = {
        key: kind
        for key, kind in keys.items()
        if key in values and not kind.fits(values[key])
    }
    return [
        f"{key} is {shown(values[key])}; expected {kind.words}"
        for key, kind in wrong.items()
    ]


def rope_misfits(name: str, params: Mapping[str, Any]) -> list[str]:
    """Returns a line for everything that a `rope_scaling` or `rope_parameters` entry
    says wrongly or to no effect.
    """
    lines = [f"{name}.{line}" for line in misfits(params, _ROPE)]
    if lines:
        return lines
    kind = rope_kind(params)
    if kind not in _ROPE_OF_TYPE:
        return []  # the reader of that entry says which types there are
    read = _ROPE_OF_TYPE[kind] | _ROPE_ALWAYS | _ROPE_HARMLESS
    unread = {
        key: value
        for key, value in params.items()
        if key not in read and value not in (None, False, 0, 1)
    }
    lines = [
        f"{name}.{key} is {shown(value)}, which rope type {kind!r} does not have"
        for key, value in unread.items()
    ]
    if kind == "llama3" and not params.get("high_freq_factor", 4) > params.get(
        "low_freq_factor", 1
    ):
        lines.append(f"{name}.high_freq_factor must be above low_freq_factor")
    return lines


def rope_kind(params: Mapping[str, Any]) -> str:
    """Returns the type that an entry names; `su` is the older name of longrope, mrope
    is plain rotation where all is text.
    """
    kind = params.get("rope_type") or params.get("type") or "default"
    return {"su": "longrope", "mrope": "default"}.get(kind, kind)


def shown(value: Any) -> str:
    """Returns a value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


# ---- keys that are not read ----------------------------------------------------------

# How a model was trained, is stored, is run or samples; none of it changes what the
# trained model computes.
_HARMLESS = re.compile(
    r"^_(?!sliding)|dropout|pdrop|_token$|token_id|token_index|version|label|^summary_|initializer|_loss|loss_coef|^dtype$"
    r"|torch|auto_map|architectures|name_or_path|gradient_checkpointing|attn_implementation|flash_attn|unsloth|cache"
    r"|jitter|task|tokenizer|^output_|^return_dict|problem_type|chunk_size|tensor_parallel|pretraining_tp|upcast"
    r"|learning_rate|weight_decay|warmup|adam|seed|batch|train|epoch|license|author|dataset|base_model|^transformers"
    r"|max_length|min_length|do_sample|early_stopping|num_beam|temperature|^top_[kp]$|typical_p|penalty|ngram_size"
    r"|bad_words|num_return_sequences|remove_invalid_values|suppress_tokens|prefix$|is_decoder|is_llama_config"
    r"|initial_context_length|model_max_length|seq_length|max_sequence_length|max_window_layers"
)
_NEUTRAL_ONE = re.compile(r"multiplier|scal|ratio|factor|_mod$|percentage")
_TELLING = re.compile(
    r"act|norm|attn|attention|pos|rope|rotary|mlp|type|mode|method|bias|residual|embed|head|layer"
)


def unread_lines(
    values: Mapping[str, Any], read: Iterable[str], implied: Mapping[str, Any]
) -> list[str]:
    """Returns a line for every key that is set, that is not read, and that may change
    what the model computes.

    Args:
      values: config.json.
      read: keys that the family's reader looks at.
      implied: keys of other families -> the value that says what this model does
        anyway.
    """
    rest = {key: value for key, value in values.items() if key not in set(read)}
    return [
        f"{key}: {shown(value)}"
        for key, value in rest.items()
        if not _silent(key, value, implied)
    ]


def _silent(key: str, value: Any, implied: Mapping[str, Any]) -> bool:
    if key in implied and value == implied[key]:
        return True
    if key in ("intermediate_size", "n_inner"):
        return True  # the tensors' shapes say whether it is right
    if key in ("is_causal", "causal"):
        return value is not False
    if value in (None, False, 0, "", [], {}):
        return True
    if _HARMLESS.search(key):
        return True
    if key in KEYS or key == "attention_multiplier":
        return False
    if isinstance(value, str):
        return not _TELLING.search(key)
    return bool(_NEUTRAL_ONE.search(key)) and not isinstance(value, bool) and value == 1
