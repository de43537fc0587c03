"""From a parsed Hugging Face `config.json` to `LMConfig`, with every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.hf_families import FAMILIES, Family
from sae_attr.lm.hf_schema import misfits, shown, unread_lines
from sae_attr.lm.hf_shared import ACTS, stated_types

SYNONYMS = (  # one key under two names, which may not disagree
    ("num_experts", "num_local_experts"),
    ("num_experts_per_tok", "experts_per_token"),
    ("rope_theta", "rotary_emb_base"),
    ("partial_rotary_factor", "rotary_pct"),
    ("n_positions", "n_ctx"),
)


def _implied(cfg: LMConfig) -> dict[str, Any]:
    """Keys of other families -> the value that says what this model does anyway."""
    windows = sorted(set(cfg.window_of_layer) - {NO_WINDOW})
    kinds = (
        "sliding_attention" if window < NO_WINDOW else "full_attention"
        for window in cfg.window_of_layer
    )
    return {
        **dict.fromkeys(("hidden_size", "n_embd"), cfg.d_model),
        **dict.fromkeys(("num_hidden_layers", "n_layer"), cfg.n_layers),
        **dict.fromkeys(("num_attention_heads", "n_head"), cfg.n_heads),
        **dict.fromkeys(
            ("max_position_embeddings", "n_positions", "n_ctx"), cfg.max_len
        ),
        **dict.fromkeys(
            ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), cfg.norm_eps
        ),
        **dict.fromkeys(("num_local_experts", "num_experts"), cfg.n_experts),
        **dict.fromkeys(("num_experts_per_tok", "experts_per_token"), cfg.n_chosen),
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        "scale_attn_weights": True,
        "use_parallel_residual": cfg.parallel_residual,
        "attention_multiplier": cfg.query_scale,
        "query_pre_attn_scalar": cfg.head_dim,
        "layer_types": list(kinds),
        **dict.fromkeys(
            ("sliding_window", "sliding_window_size"), windows[0] if windows else None
        ),
        **dict.fromkeys(
            ("partial_rotary_factor", "rotary_pct"),
            cfg.ropes[0].dim / cfg.head_dim if cfg.ropes else 0,
        ),
        "original_max_position_embeddings": cfg.max_len,
        "norm_topk_prob": cfg.norm_chosen if cfg.n_experts else True,
        "max_window_layers": cfg.n_layers,
    }


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> LMConfig:
    """Reads the `LMConfig` of a parsed Hugging Face `config.json`, in transformers'
    older or newer spelling.

    Of a multimodal checkpoint it is that of `text_config`. Everything is checked before
    anything is made: types and ranges of all keys, and that every key which is set is
    understood or without effect.

    Args:
      where: what messages call the file.

    Raises:
      ValueError: an unknown architecture, activation or rope type; a key that the
        family needs and the file lacks; a value of another type or out of range; two
        keys that disagree; quantised weights; a key that this model does not read and
        that may change what it computes.
    """
    _check_quantised(hf, where)
    if "text_config" in hf:
        hf = _text_part(hf, where)
    name = hf.get("model_type", "")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{where}: model_type {shown(name)} is not implemented; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[name]
    present = {
        key: value
        for key, value in hf.items()
        if value is not None or key in family.keys
    }
    if lines := misfits(present):
        raise ValueError(f"{where}: " + "\n".join(lines))
    try:
        return _checked(name, family, hf)
    except KeyError as error:
        raise ValueError(
            f"{where} of a {name} model lacks {error.args[0]!r}; take it from the "
            "original"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _checked(name: str, family: Family, hf: Mapping[str, Any]) -> LMConfig:
    _check_synonyms(hf)
    _check_rope(hf)
    hf = dict(hf)
    for alias, key in family.aliases.items():
        if alias in hf and key not in hf:
            hf[key] = hf[alias]
    if hf.get("layer_types") and "num_hidden_layers" in hf:
        stated_types(tuple(hf["layer_types"]), hf["num_hidden_layers"])
    if "hidden_activation" in family.keys and hf.get("hidden_activation"):
        hf.pop("hidden_act", None)  # of the two transformers looks at the other alone
    readable = {key: value for key, value in hf.items() if key in family.keys}
    cfg = family.read({**family.defaults, **readable})
    implied = {**_implied(cfg), **family.implied(hf)}
    if ACTS.get(str(hf.get("hidden_act"))) == cfg.act:
        implied["hidden_act"] = hf["hidden_act"]
    lines = unread_lines(hf, family.keys, implied)
    if lines:
        raise ValueError(
            f"these keys are not read for a {name} model and may change what it "
            "computes:\n"
            + "\n".join(lines[:20])
            + "\nRemove those that do nothing; a model that needs one of them is not implemented"
        )
    return cfg


def _check_synonyms(hf: Mapping[str, Any]) -> None:
    """Raises ValueError where a key and its other name disagree."""
    for one, other in SYNONYMS:
        a, b = hf.get(one), hf.get(other)
        if a is not None and b is not None and a != b:
            raise ValueError(
                f"{one} {a!r} and {other} {b!r} disagree; keep the one that is right"
            )


def _check_rope(hf: Mapping[str, Any]) -> None:
    """What stands in the entry for all layers may not differ from the same key beside
    it.
    """
    for name in ("rope_parameters", "rope_scaling"):
        entry = hf.get(name) or {}
        for key in ("rope_theta", "partial_rotary_factor"):
            inner, outer = entry.get(key), hf.get(key)
            if inner is not None and outer is not None and inner != outer:
                raise ValueError(
                    f"{key} is {outer!r} but {name}.{key} is {shown(inner)}; keep the "
                    "one that is right"
                )


def _text_part(hf: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The language model's keys of a multimodal config."""
    inner = hf["text_config"]
    if not isinstance(inner, Mapping):
        raise ValueError(f"{where}: text_config is {shown(inner)}; expected an object")
    _check_quantised(inner, f"{where}: text_config")
    tied = "tie_word_embeddings"
    if tied in hf and tied in inner and hf[tied] != inner[tied]:
        raise ValueError(
            f"{where}: {tied} is {hf[tied]!r} but text_config.{tied} is "
            f"{inner[tied]!r}; keep the right one"
        )
    outer = {
        key: hf[key] for key in ("bos_token_id", "eos_token_id", tied) if key in hf
    }
    return {"model_type": "gemma3_text", **outer, **inner}


def _check_quantised(hf: Mapping[str, Any], where: str) -> None:
    for key in ("quantization_config", "compression_config", "quantization"):
        stated = hf.get(key)
        if not stated:
            continue
        method = stated.get("quant_method") if isinstance(stated, Mapping) else None
        family = FAMILIES.get(str(hf.get("model_type")))
        if family is not None and method in family.quantised:
            continue
        kind = f"quant_method {method!r}" if method else shown(stated)
        raise ValueError(
            f"{where}: {key} ({kind}) says that the weights are quantised, which is "
            "not implemented but for gpt_oss in "
            "mxfp4; take the model's unquantised weights, or dequantise it with "
            f"transformers and save it again without {key}"
        )
