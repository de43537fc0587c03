"""What the readers of a config.json share: attention windows, ropes, activations, and the
fields of every RMSNorm / rotary / gated-MLP family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_attr.lm.config import NO_WINDOW, LMConfig
from sae_attr.lm.hf_schema import rope_kind, rope_misfits, shown
from sae_attr.lm.rope import Rope, rope_from_hf

Windows = Callable[[Mapping[str, Any], int], Sequence[bool]]
"""A family's older rule, where config.json lists no `layer_types`: which layers attend
to a window.
"""

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


def every_layer(hf: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Returns the commonest older rule: a window that is stated holds everywhere."""
    return [True] * n_layers


def llama_like(
    hf: Mapping[str, Any],
    *,
    windows: Windows = every_layer,
    partial_rotary: bool = False,
    **fields: Any,
) -> LMConfig:
    """Reads what every RMSNorm / rotary / gated-MLP family shares.

    Args:
      hf: config.json, with the family's defaults.
      windows: the older rule of layers with a window, where the file has one.
      partial_rotary: the family may rotate a part of every head.
      fields: of `LMConfig`, which override.
    """
    n_layers = hf["num_hidden_layers"]
    n_heads = hf["num_attention_heads"]
    d_model = hf["hidden_size"]
    n_kv_heads = hf.get("num_key_value_heads") or n_heads
    head_dim = hf.get("head_dim") or divided(
        d_model, n_heads, "hidden_size", "num_attention_heads"
    )
    divided(n_heads, n_kv_heads, "num_attention_heads", "num_key_value_heads")
    types = _layer_types(hf, n_layers, windows)
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
        "act": act(hf.get("hidden_act", "silu")),
        "window_of_layer": tuple(
            window if kind == "sliding_attention" else NO_WINDOW for kind in types
        ),
        "query_scale": head_dim**-0.5,
        "tied_head": bool(hf.get("tie_word_embeddings", False)),
        "bos_id": hf.get("bos_token_id"),
        "eos_id": eos(hf.get("eos_token_id")),
    }
    ropes = _ropes(hf, head_dim, types, partial_rotary)
    return LMConfig(**{**shared, **ropes, **fields})


def divided(whole: int, parts: int, of: str, by: str) -> int:
    """Returns how large each part is; ValueError where they are not equal."""
    if whole % parts:
        raise ValueError(
            f"{of} {whole} is not a multiple of {by} {parts}; take config.json from "
            "the original"
        )
    return whole // parts


def eos(value: int | list[int] | None) -> int | tuple[int, ...] | None:
    """Returns the ids that end a text, hashable."""
    return tuple(value) if isinstance(value, list) else value


def act(name: str | None) -> str:
    """Returns our name of an activation; ValueError for one that is not implemented."""
    if name not in ACTS:
        raise ValueError(
            f"activation {name!r} is not implemented; known: {', '.join(ACTS)}"
        )
    return ACTS[name]


# ---- windows ---------------------------------------------------------------------------


def _layer_types(
    hf: Mapping[str, Any], n_layers: int, windows: Windows
) -> tuple[str, ...]:
    """`sliding_attention` or `full_attention` per layer, stated or by the family's
    older rule.
    """
    # The Qwens have a switch beside the width, which is off by default.
    switch = bool(hf.get("use_sliding_window", True))
    has_window = switch and hf.get("sliding_window") is not None
    if hf.get("layer_types"):
        types = stated_types(tuple(hf["layer_types"]), n_layers)
        if "sliding_attention" in types and not has_window:
            raise ValueError(
                "layer_types has layers of sliding_attention, but sliding_window is "
                f"{hf.get('sliding_window')!r} and use_sliding_window "
                f"{hf.get('use_sliding_window')!r}; take the original"
            )
        return types
    if not has_window:
        return ("full_attention",) * n_layers
    kinds = {True: "sliding_attention", False: "full_attention"}
    return tuple(kinds[bool(sliding)] for sliding in windows(hf, n_layers))


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


# ---- ropes -----------------------------------------------------------------------------


def _ropes(
    hf: Mapping[str, Any], head_dim: int, types: tuple[str, ...], partial: bool
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
            kind: _rope(
                hf, f"{name}.{kind}", entry[kind] or {}, head_dim, theta, partial
            )
            for kind in set(types)
        }
    else:
        main = _rope(hf, name, entry, head_dim, theta, partial)
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


def _rope(
    hf: Mapping[str, Any],
    name: str,
    entry: Mapping[str, Any],
    head_dim: int,
    theta: float,
    partial: bool,
) -> Rope:
    lines = rope_misfits(name, entry)
    share = entry.get("partial_rotary_factor")
    if not partial and share not in (None, 1):
        lines.append(
            f"{name}.partial_rotary_factor is {share!r}, but a {hf['model_type']} "
            "model rotates whole heads"
        )
    if lines:
        raise ValueError("; ".join(lines))
    return rope_from_hf(hf, entry, head_dim, theta)
