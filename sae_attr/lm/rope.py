"""Rotary position embeddings: frequencies of every scaling, read from either spelling
of a Hugging Face config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.lm.hf_schema import rope_kind


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of some layers: which frequencies, and by how much
    attention is scaled with them.

    Kinds: `default`, `linear` (position interpolation), `dynamic` (as default up to the
    trained length, beyond which it is refused), `llama3` (Llama 3.1's
    wavelength-dependent scaling), `yarn`
    (Peng et al. 2023) and `longrope` (Ding et al. 2024; short or long factors by the
    length of the row).
    """

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def inv_freq(self, long: bool = False) -> np.ndarray:
        """Returns inverse frequencies `[dim / 2]`, float64; `long` chooses longrope's
        factors for long rows.
        """
        base = self.theta ** (np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        return _SCALED[self.kind](self, 1.0 / base, long)


def _llama3(rope: Rope, inv: np.ndarray, long: bool) -> np.ndarray:
    wavelength = 2 * math.pi / inv
    blend = (rope.original_len / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = np.clip(
        blend, 0.0, 1.0
    )  # 0: long wavelengths, divided by the factor; 1: short ones, untouched
    return (1 - blend) * inv / rope.factor + blend * inv


def _yarn(rope: Rope, inv: np.ndarray, long: bool) -> np.ndarray:
    def dim_of(rotations: float) -> float:
        span = rope.original_len / (rotations * 2 * math.pi)
        return rope.dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return inv / rope.factor * ramp + inv * (1 - ramp)


_SCALED: Mapping[str, Callable[[Rope, np.ndarray, bool], np.ndarray]] = {
    "default": lambda rope, inv, long: inv,
    "linear": lambda rope, inv, long: inv / rope.factor,
    "dynamic": lambda rope, inv, long: inv,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": lambda rope, inv, long: (
        inv / np.asarray(rope.long_factor if long else rope.short_factor)
    ),
}


def rope_from_hf(
    hf: Mapping[str, Any], params: Mapping[str, Any], head_dim: int, theta: float
) -> Rope:
    """Returns one `Rope` from a `rope_parameters` / `rope_scaling` entry of either
    spelling.
    """
    kind = rope_kind(params)
    if kind not in _SCALED:
        raise ValueError(
            f"rope type {kind!r} is not implemented; known: {', '.join(_SCALED)}"
        )
    shares = (
        params.get("partial_rotary_factor"),
        hf.get("partial_rotary_factor"),
        hf.get("rotary_pct"),
    )
    partial = next((share for share in shares if share is not None), 1.0)
    # Phi-3 keeps the original length outside the entry; where both are given
    # transformers takes that one.
    original = hf.get("original_max_position_embeddings") or params.get(
        "original_max_position_embeddings"
    )
    trained = hf.get("max_position_embeddings", 0)
    if kind == "dynamic" and original not in (None, trained):
        raise ValueError(
            f"rope type 'dynamic' has original_max_position_embeddings {original} "
            f"beside max_position_embeddings {trained}; "
            "say which of them it was trained for by making them equal"
        )
    original = original or trained
    factor = params.get("factor")
    if factor is None and kind in ("linear", "dynamic", "llama3", "yarn"):
        raise ValueError(
            f"rope type {kind!r} needs a factor, which config.json lacks; take it from "
            "the original"
        )
    if factor is None and kind == "longrope":
        factor = hf["max_position_embeddings"] / original
    attention = params.get("attention_factor")
    if attention is None:
        attention = _attention_factor(kind, factor, original, params)
    names = (
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
    )
    extra: dict[str, Any] = {
        name: params[name] for name in names if params.get(name) is not None
    }
    extra |= {
        name: tuple(params.get(name) or ()) for name in ("short_factor", "long_factor")
    }
    theta = float(params.get("rope_theta") or theta)
    dim = int(head_dim * partial)
    if dim < 1 or (dim == head_dim and dim % 2):
        raise ValueError(
            f"{dim} of the {head_dim} channels of a head would be rotated in pairs; "
            "take the original"
        )
    if kind == "longrope" and {
        len(extra["short_factor"]),
        len(extra["long_factor"]),
    } != {dim // 2}:
        raise ValueError(
            f"longrope: short_factor and long_factor have {len(extra['short_factor'])} "
            f"and {len(extra['long_factor'])} "
            f"entries, but {dim} channels are rotated, which makes {dim // 2}; take "
            "config.json from the original"
        )
    return Rope(
        dim,
        theta,
        kind,
        float(factor or 1.0),
        int(original),
        attention_factor=attention,
        **extra,
    )


def _attention_factor(
    kind: str, factor: float | None, original: int, params: Mapping[str, Any]
) -> float:
    """By how much cos and sin grow: 1, LongRoPE's sqrt(1 + ln s / ln L) or YaRN's 0.1
    ln s + 1.
    """
    if not factor or factor <= 1 or kind not in ("longrope", "yarn"):
        return 1.0
    if kind == "longrope":
        if original < 2:
            raise ValueError(
                f"longrope: original_max_position_embeddings is {original}, of which "
                "no length can be trained; take config.json from the original"
            )
        return math.sqrt(1 + math.log(factor) / math.log(original))
    mscale, mscale_all = params.get("mscale"), params.get("mscale_all_dim")
    if mscale and mscale_all:
        return (0.1 * mscale * math.log(factor) + 1) / (
            0.1 * mscale_all * math.log(factor) + 1
        )
    return 0.1 * math.log(factor) + 1
